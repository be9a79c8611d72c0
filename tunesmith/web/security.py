"""Security middleware of every app: token, host, origin and size checks, and response headers.

Plain ASGI, so that it applies to every response, including static files and errors.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tunesmith.inference.openai_client import is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[str, str]

# Prefix of the cookie name; the port follows, because browsers separate cookies by host but not by port.
COOKIE = "tunesmith_"
# Required of pages that post (against CSRF): forms of other sites cannot set it, scripts need a CORS preflight.
OWN_HEADER = "x-tunesmith"
ADMIN = "/admin/"
SAFE = ("GET", "HEAD")
# The Host header, without the user names, paths and queries that a URL may have around a host.
HOST = re.compile(r"(\[(?P<ip6>[0-9a-z:.%]+)\]|(?P<name>[a-z0-9._-]+))(:(?P<port>[0-9]{1,5}))?")
MOST_BYTES = 64 * 1024  # of a request body
# Only our own files are loaded, the page cannot be framed, and content types are not sniffed.
CSP = b"content-security-policy"
ANSWER_HEADERS = (
    (
        CSP,
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
    """A rejected request: HTTP status and message."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """Limits of requests and format of rejections of one app."""

    own_header: bool = True  # POST requires OWN_HEADER
    content_types: tuple[str, ...] = ("application/json",)  # of a request body
    most_bytes: int = MOST_BYTES  # of a request body
    seconds: float = 20.0  # to receive a request body
    admin_token: str = field(default="", repr=False)  # of routes below ADMIN, in place of the token; empty: the token
    # JSON body of a rejection.
    refuses: Callable[[Refusal], Mapping[str, Any]] = lambda refused: {"detail": refused.text}


PAGE = RequestPolicy()


class Guard:
    """ASGI middleware that checks every request before the app handles it.

    Args:
        app: the ASGI app.
        token: required in every request; empty on loopback, where every local process may connect.
        policy: limits and format of rejections.
    """

    def __init__(self, app: App, *, token: str = "", policy: RequestPolicy = PAGE) -> None:
        self._app, self._token, self._policy = app, token, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, forward or reject one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._host(headers) or self._origin(scope, headers) or self._size(headers)
        if refused is None and self._enters(scope):
            # Lax, not Strict: a Strict cookie is not sent when the page is opened from a link in a mail.
            name = f"{COOKIE}{_host_and_port(headers)[1]}"
            cookie = f"{name}={self._token}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000".encode()
            await _answer(send, 303, b"", [(b"location", b"/"), (b"set-cookie", cookie)])
            return
        refused = refused or self._token_of(scope, headers) or _upgrade(headers)
        body: bytes | None = b""
        try:
            if refused is None:
                body = await asyncio.wait_for(_read_body(receive), self._policy.seconds)
        except TimeoutError:
            refused = Refusal(408, f"request body: not received within {self._policy.seconds:.0f} s; send it faster")
        if refused is not None:
            content = json.dumps(self._policy.refuses(refused)).encode()
            await _answer(send, refused.status, content, [(b"content-type", b"application/json")])
        elif body is not None:
            await self._app(scope, _replay(body, receive), _with_headers(send))

    def _host(self, headers: Headers) -> Refusal | None:
        """Reject foreign host names that resolve to this machine (DNS rebinding)."""
        host = _host_and_port(headers)[0]
        if is_loopback(host) or (self._token and (host or not headers.get("host"))):
            return None  # with a token this is harmless: the browser sends no cookie to a foreign name
        given = headers.get("host", "")[:100]
        return Refusal(421, f"host header: {given!r} is not this machine; open the address that tunesmith printed")

    def _origin(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Reject requests from pages of other sites."""
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin", "")
        if origin and _netloc(origin) != headers.get("host", "").lower():
            return Refusal(403, "request origin: a page of another site; use the page of this server")
        if scope["method"] in SAFE:
            return None
        if site not in ("same-origin", "none"):
            return Refusal(403, "request origin: a page of another site; use the page of this server")
        if self._policy.own_header and OWN_HEADER not in headers:
            return Refusal(403, f"request origin: not this page; programs must send the header {OWN_HEADER}: 1")
        if (
            scope["method"] != "DELETE"
            and headers.get("content-type", "").partition(";")[0].strip().lower() not in self._policy.content_types
        ):
            return Refusal(415, f"content-type: expected {self._policy.content_types[0]}; set the header")
        return None

    def _size(self, headers: Headers) -> Refusal | None:
        length = headers.get("content-length", "0")
        most = self._policy.most_bytes
        if "transfer-encoding" in headers or not length.isdigit() or int(length) > most:
            return Refusal(413, f"request body: more than {most} bytes, or no content-length; send less")
        return None

    def _enters(self, scope: Scope) -> bool:
        """Return whether this is the printed address with the token, which is then moved to a cookie."""
        if not self._token or scope["path"] != "/" or scope["method"] not in SAFE:
            return False
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return _equal(given, self._token)

    def _token_of(self, scope: Scope, headers: Headers) -> Refusal | None:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if self._policy.admin_token and scope["path"].startswith(ADMIN):
            if kind.lower() == "bearer" and _equal(bearer.strip(), self._policy.admin_token):
                return None
            return Refusal(401, "request token: administration has its own; send the content of --admin-token-file")
        if not self._token:
            return None
        # Parsed by hand: http.cookies rejects the whole header if a cookie of another program is malformed.
        cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
        cookie = cookies.get(f"{COOKIE}{_host_and_port(headers)[1]}", "")
        if _equal(bearer.strip() if kind.lower() == "bearer" else cookie, self._token):
            return None
        return Refusal(
            401, "request token: missing or wrong; open the full address that tunesmith printed, with ?token="
        )


def _equal(given: str, token: str) -> bool:
    """Compare a token in constant time."""
    return hmac.compare_digest(given.encode(), token.encode())


def _host_and_port(headers: Headers) -> tuple[str, int]:
    """Return host and port of the Host header; an empty host if it is anything else than these two."""
    match = HOST.fullmatch(headers.get("host", "").lower())
    return (match["ip6"] or match["name"], int(match["port"] or 80)) if match else ("", 80)


def _upgrade(headers: Headers) -> Refusal | None:
    """Reject WebSockets, which no app here has; servers ignore an upgrade to another version of HTTP."""
    if "websocket" not in headers.get("upgrade", "").lower():
        return None
    return Refusal(400, "request upgrade: WebSockets are not supported; send plain HTTP requests")


def _netloc(origin: str) -> str | None:
    """Return host and port of an origin, None if it is invalid."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def _read_body(receive: Receive) -> bytes | None:
    """Read the body, None if the client left; uvicorn limits it to the content length, which was checked."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body once and then further messages."""
    pending = [body]

    async def replayed() -> Message:
        return {"type": "http.request", "body": pending.pop(), "more_body": False} if pending else await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = message.get("headers", ())
            # The studio shows reports in a frame, and reports have styles that are named by their hashes.
            own = {name.lower() for name, _ in given if name.lower() == CSP}
            replaced = {name for name, _ in ANSWER_HEADERS} - own
            others = [pair for pair in given if pair[0].lower() not in replaced]
            message = {**message, "headers": [*others, *(pair for pair in ANSWER_HEADERS if pair[0] not in own)]}
        await send(message)

    return guarded


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a complete response."""
    length = (b"content-length", str(len(body)).encode())
    guarded = _with_headers(send)
    await guarded({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await guarded({"type": "http.response.body", "body": body})
