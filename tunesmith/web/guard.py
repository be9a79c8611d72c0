"""What stands before every route of a page: who may ask, from where, and what the browser may do with the answer.

Plain ASGI, so that no answer can go round it, static files and errors included.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tunesmith.data.collect.endpoint import is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[str, str]

# And the port: a browser keeps cookies by host, and two pages may be open on one.
COOKIE = "tunesmith_"
# A page that posts must send this header: a form of another site cannot, and its scripts would have to ask first.
OWN_HEADER = "x-tunesmith"
SAFE = ("GET", "HEAD")
MOST_BYTES = 64 * 1024
# Nothing is loaded but our own files, nobody frames the page, and no answer is guessed to be something else.
ANSWER_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered: an HTTP status, the finding and the cure."""

    status: int
    text: str


def _page_refuses(refused: Refusal) -> Mapping[str, Any]:
    return {"detail": refused.text}


@dataclass(frozen=True, slots=True)
class Manner:
    """How an app is asked: whether what posts must send our header, the most bytes and seconds a request may take to
    come in, and what a refusal looks like."""

    own_header: bool = True
    most_bytes: int = MOST_BYTES
    seconds: float = 20.0
    refuses: Callable[[Refusal], Mapping[str, Any]] = _page_refuses


PAGE = Manner()


class Guard:
    """The app behind its checks; with an empty token (loopback only) everybody on this machine may ask."""

    def __init__(self, app: App, *, token: str = "", manner: Manner = PAGE) -> None:
        self._app, self._token, self._manner = app, token, manner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, hand on or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._host(headers) or self._origin(scope, headers) or self._size(headers)
        if refused is None and self._enters(scope):
            await _answer(send, 303, b"", [(b"location", b"/"), (b"set-cookie", self._cookie(headers))])
            return
        refused = refused or self._token_of(headers)
        try:
            body = b"" if refused is not None else await asyncio.wait_for(_whole(receive), self._manner.seconds)
        except TimeoutError:
            refused = Refusal(408, f"not all of it came within {self._manner.seconds:.0f} s; send it faster")
        if refused is not None:
            said = json.dumps(self._manner.refuses(refused)).encode()
            await _answer(send, refused.status, said, [(b"content-type", b"application/json")])
            return
        await self._app(scope, _again(body, receive), _with_headers(send))

    def _host(self, headers: Headers) -> Refusal | None:
        """A name that somebody else pointed at this machine is no name of ours (DNS rebinding)."""
        host = _place(headers)[0]
        if self._token or is_loopback(host):
            return None  # with a token a wrong name gains nothing: the browser sends no cookie to it
        return Refusal(421, f"host {host!r} is not this machine; open the address that tunesmith printed")

    def _origin(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Pages of other sites may not ask, least of all write."""
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin", "")
        if origin and _netloc(origin) != headers.get("host", "").lower():
            return Refusal(403, "asked by a page of another site; use this page itself")
        if scope["method"] in SAFE:
            return None
        if site not in ("same-origin", "none"):
            return Refusal(403, "asked by a page of another site; use this page itself")
        if self._manner.own_header and OWN_HEADER not in headers:
            return Refusal(403, f"not asked by this page; programs send the header {OWN_HEADER}: 1")
        if (
            scope["method"] != "DELETE"
            and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json"
        ):
            return Refusal(415, "only JSON is read; send content-type: application/json")
        return None

    def _size(self, headers: Headers) -> Refusal | None:
        length = headers.get("content-length", "0")
        most = self._manner.most_bytes
        if "transfer-encoding" in headers or not length.isdigit() or int(length) > most:
            return Refusal(413, f"more than {most} bytes, or no length; send less")
        return None

    def _enters(self, scope: Scope) -> bool:
        """Whether this is the printed address, with the token in it: it becomes a cookie and leaves the address."""
        if not self._token or scope["path"] != "/" or scope["method"] not in SAFE:
            return False
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return self._is_token(given)

    def _token_of(self, headers: Headers) -> Refusal | None:
        if not self._token:
            return None
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        # Part by part: other programs' cookies come along, and not all of them are well formed.
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        kept = cookies.get(f"{COOKIE}{_place(headers)[1]}", "")
        given = bearer.strip() if kind.lower() == "bearer" else kept
        if self._is_token(given):
            return None
        return Refusal(401, "no token; open the whole address that tunesmith printed, with ?token= in it")

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _cookie(self, headers: Headers) -> bytes:
        # Lax, not Strict: people come by a link in a mail, and a Strict cookie would not reach the page behind it.
        name = f"{COOKIE}{_place(headers)[1]}"
        return f"{name}={self._token}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000".encode()


def _place(headers: Headers) -> tuple[str, int]:
    """The host and the port that a request was sent to; an empty host for what is none."""
    try:
        parts = urlsplit(f"//{headers.get('host', '')}")
        return (parts.hostname or "").lower(), parts.port or 80
    except ValueError:
        return "", 80


def _netloc(origin: str) -> str | None:
    """The host and port of a page; None for what is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def _whole(receive: Receive) -> bytes:
    """The whole body; the server holds it to the length that was checked."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once, and then what comes after it."""
    left = [body]

    async def replayed() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            set_here = {name for name, _ in ANSWER_HEADERS}
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in set_here]
            message = {**message, "headers": [*kept, *ANSWER_HEADERS]}
        await send(message)

    return guarded


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """One whole answer of the guard's own."""
    length = (b"content-length", str(len(body)).encode())
    guarded = _with_headers(send)
    await guarded({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await guarded({"type": "http.response.body", "body": body})
