"""Pieces of one answer on their way from the engine's thread to whoever asked, as long as somebody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.inference.answering import Taken
from tunesmith.inference.ask import AskError
from tunesmith.inference.row import Piece


class Late(TunesmithError):
    """An answer took longer than the server gives it."""


class InternalError(TunesmithError):
    """A bug of ours; the log has its traceback."""


class Pieces:
    """An answer as it comes; when the client is gone its ticket is given back."""

    def __init__(self, request: Any, done: Callable[[Piece], None]) -> None:
        self.ticket: Taken | None = None
        self._request, self._done = request, done
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._over = False
        self._gone = self._loop.create_task(self._left())
        # An answer of which nothing was told yet is waited for by nobody else who could give its ticket back.
        self._gone.add_done_callback(lambda _: self.let_go())

    def told(self, piece: Piece) -> None:
        """What the engine's thread calls."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """The next piece. Raises AskError, Late or Broken for an answer that came to nothing."""
        if self._over:
            raise StopAsyncIteration
        waits = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({waits, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            waits.cancel()
            self.let_go()
            raise
        if not waits.done():
            waits.cancel()
            self.let_go()
            raise AskError("client: it is gone; ask again")  # nobody reads this
        piece = waits.result()
        if piece.end:
            self._done(piece)
            self.let_go()
        failures: dict[str, type[TunesmithError]] = {"wrong": AskError, "late": Late, "broken": InternalError}
        if piece.end in failures:
            raise failures[piece.end](piece.why)
        return piece

    def let_go(self) -> None:
        """Nobody waits for more."""
        self._over = True
        self._gone.cancel()
        if self.ticket is not None:
            self.ticket.cancel()

    async def _left(self) -> None:
        """Ends when the client is gone."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
