"""Web server of one app on one port, until a signal stops it."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.files import quoted
from tunesmith.errors import TunesmithError
from tunesmith.inference.openai_client import is_loopback
from tunesmith.web.security import PAGE, Guard, RequestPolicy


class ServeError(TunesmithError):
    """An address is not available, or the web libraries are not installed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address to listen on; port 0 picks a free one."""

    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_private(self) -> bool:
        """Return whether only this machine can connect."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class OpenServer:
    """An app with its listening socket, not answering yet."""

    app: Any  # ASGI
    sock: socket.socket
    url: str  # with the token, if there is one
    token: str = ""
    policy: RequestPolicy = PAGE
    drain: int = 2  # seconds for running requests at the end


def need_libraries(extra: str = "studio") -> None:
    """Raise ServeError if the web libraries, which are in `extra`, are not installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServeError(
            f"pages: {error.name} is not installed; pip install {quoted(f'tunesmith[{extra}]')}"
        ) from error


def listen(address: Address) -> socket.socket:
    """Open a listening socket. Raises ServeError if the address is invalid or in use."""
    host_port = f"{address.host}:{address.port}"
    fix = "give another --port, or 0 for any free one"
    if not 0 <= address.port < 2**16:
        raise ServeError(f"{host_port}: cannot listen (port must be 0 to 65535); {fix}")
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        both = address.host == "::" and family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((address.host, address.port), family=family, backlog=128, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        # The host name is unknown or not one of this machine: another port would not help.
        if not isinstance(error, OSError) or isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            fix = "give another --host: 127.0.0.1 for this machine only, 0.0.0.0 for all interfaces"
        reason = error.strerror if isinstance(error, OSError) else "invalid host name"
        raise ServeError(f"{host_port}: cannot listen ({reason or error}); {fix}") from error


def url(sock: socket.socket, address: Address, token: str = "") -> str:
    """Return the URL to open in a browser.

    Args:
        sock: the listening socket.
        address: where it listens.
        token: access token, empty for none.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host
    if address.host in ("0.0.0.0", "::"):
        host = _lan_address()
    return f"http://{host}:{sock.getsockname()[1]}/" + (f"?token={token}" if token else "")


def stored_token(address: Address, path: Path, *, option: str = "--store") -> str:
    """Return the token of an address, empty on loopback. Arguments as in `read_token`, and its errors."""
    return "" if address.is_private else read_token(path, option=option)


def read_token(path: Path, *, option: str) -> str:
    """Return a token that is stored, so that printed addresses remain valid after a restart.

    Args:
        path: file of the token, created with a random token and readable by its owner only.
        option: command line option that changes the path, for the error message.

    Raises:
        ServeError: the file is not readable or writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
        token = path.read_text(encoding="ascii").strip()
        if len(token) < 20:
            token = secrets.token_urlsafe(24)
            path.chmod(0o600)
            path.write_text(token + "\n", encoding="ascii")
    except (OSError, ValueError) as error:
        raise ServeError(f"{path}: cannot store the token ({error}); give another path by {option}") from error
    return token


def serve(app: Any, sock: socket.socket, *, token: str = "", policy: RequestPolicy = PAGE, drain: int = 2) -> None:
    """Answer requests until a signal arrives, then finish running requests and raise the signal again.

    Args:
        app: ASGI app.
        sock: listening socket.
        token: required in requests, empty for none.
        policy: limits of requests.
        drain: time limit for running requests, in seconds.
    """
    server(app, token=token, policy=policy, drain=drain).run(sockets=[sock])


def server(app: Any, *, token: str = "", policy: RequestPolicy = PAGE, drain: int = 2) -> Any:
    """Create a uvicorn server of the app behind its `Guard`; arguments as in `serve`."""
    import uvicorn

    from tunesmith.web.connections import configuration

    return uvicorn.Server(configuration(Guard(app, token=token, policy=policy), drain=drain))


def _lan_address() -> str:
    """Return the address of this machine in its network, else its host name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737); connecting UDP sends no packet
        return str(probe.getsockname()[0])
    return socket.gethostname()
