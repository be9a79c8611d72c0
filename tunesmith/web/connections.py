"""Bounds of a connection before any code of an app: size and time of a request, and how many may be incomplete.

uvicorn over h11 bounds the size of a request head; over httptools it does not, and appends in quadratic time. Neither
bounds the time of a head, nor what connections without a complete request take from the others.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol as Connection
else:
    Connection = object  # an extra; `configuration` adds uvicorn's class behind ours

# Connections at once. A client with a complete request and no free place gets status 503.
MOST_CONNECTIONS = 512
# Of them without a complete request: half-open, idle, or with a slow body. The oldest is closed for a new one, so that
# they keep no client out. Accepted in batches of BACKLOG, all stay below the usual limit of 1,024 open files.
MOST_INCOMPLETE = 256
BACKLOG = 256
# Bytes of request line and headers. Browsers send a cookie of every program that was ever opened on this host name.
MOST_HEAD_BYTES = 32 * 1024
# Seconds for a request head, from the connection or the answer before it, and for the rest of a body after its answer;
# `RequestPolicy.seconds` bounds a body.
HEAD_SECONDS = 10.0
# Seconds for a client to read a part of its answers, when they fill the buffer of its connection.
READ_SECONDS = 30.0


class BoundedConnection(Connection):
    """A connection of uvicorn that is closed if its request does not arrive.

    It is kept among the incomplete ones of its server, oldest first, until then.
    """

    def __init__(self, *, incomplete: dict[BoundedConnection, None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._incomplete = incomplete
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._follow()

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._leave()
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._leave()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a client that does not read."""
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Write on: the client has read."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not an HTTP request, and drop an answer that the app may still write."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        import h11

        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer is half written
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Write no line per request into the log: `Guard` refuses WebSockets, other upgrades are ignored."""

    def _follow(self) -> None:
        """Keep the connection among the incomplete ones until its request has arrived."""
        import h11

        if self.transport.is_closing() or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._leave()
            return
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is not h11.DONE and self._deadline:
            self._deadline.cancel()
        if self in self._incomplete:
            return
        self._incomplete[self] = None
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        if len(self._incomplete) > MOST_INCOMPLETE:
            next(iter(self._incomplete)).drop()

    def _leave(self) -> None:
        self._incomplete.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()

    def _stop_waiting_for_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()

    def drop(self) -> None:
        """Close the connection at once, for the sake of others."""
        self._leave()
        self.transport.abort()


def configuration(app: Any, *, drain: int) -> uvicorn.Config:
    """Return uvicorn's configuration of an app; running requests have `drain` seconds at the end."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    bounded = type("BoundedH11Protocol", (BoundedConnection, H11Protocol), {})
    protocol: Any = partial(bounded, incomplete={})
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_level="error",  # a warning is a line per malformed request, so that a client could fill the disk
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=drain,
        limit_concurrency=MOST_CONNECTIONS,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        lifespan="auto",
    )


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of the log is about more than requests that ended because the server does."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and not str(record.msg).startswith("Cancel ")
