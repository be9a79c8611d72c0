"""Transfer of the pieces of one answer from the engine's thread to the HTTP response, until the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from tunesmith.errors import TunesmithError
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import Taken
from tunesmith.inference.serving.request import AskError


class Late(TunesmithError):
    """An answer exceeded the time limit of the server."""


class InternalError(TunesmithError):
    """A bug in tunesmith; the traceback is in the log."""


class CompletionStream:
    """Asynchronous iterator over the pieces of an answer; cancels the request when the client disconnects.

    Args:
        request: of the client; None for an answer that no client waits for.
        done: called with the last piece.
    """

    def __init__(self, request: Any, done: Callable[[CompletionChunk], None]) -> None:
        self.ticket: Taken | None = None
        self._request, self._done = request, done
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[CompletionChunk] = asyncio.Queue()
        self._over = False
        self._gone = self._loop.create_task(self._wait_for_disconnect())
        # Also cancels requests that are still queued, when no code awaits a piece yet.
        self._gone.add_done_callback(lambda _: self.release())

    def on_chunk(self, piece: CompletionChunk) -> None:
        """Add a piece; called by the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    def __aiter__(self) -> AsyncIterator[CompletionChunk]:
        return self

    async def __anext__(self) -> CompletionChunk:
        """Return the next piece.

        Raises:
            AskError: the request is invalid, or the client disconnected.
            Late: the time limit was exceeded.
            InternalError: the engine failed.
        """
        if self._over:
            raise StopAsyncIteration
        next_piece = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait({next_piece, self._gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            next_piece.cancel()
            self.release()
            raise
        if not next_piece.done():
            next_piece.cancel()
            self.release()
            raise AskError("client: disconnected; send the request again")
        piece = next_piece.result()
        if piece.end:
            self._done(piece)
            self.release()
        failures: dict[str, type[TunesmithError]] = {"wrong": AskError, "late": Late, "broken": InternalError}
        if piece.end in failures:
            raise failures[piece.end](piece.why)
        return piece

    async def whole(self) -> CompletionChunk:
        """Return all pieces as one. Raises as `__anext__` does."""
        pieces = [piece async for piece in self]
        return replace(
            pieces[-1] if pieces else CompletionChunk(end="stop"),
            text="".join(piece.text for piece in pieces),
            thoughts="".join(piece.thoughts for piece in pieces),
            scored=tuple(token for piece in pieces for token in piece.scored),
        )

    def release(self) -> None:
        """Stop the iteration and cancel the request."""
        self._over = True
        self._gone.cancel()
        if self.ticket is not None:
            self.ticket.cancel()

    async def _wait_for_disconnect(self) -> None:
        if self._request is None:
            await asyncio.Event().wait()
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
