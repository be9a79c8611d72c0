"""One app on one port until it is stopped."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.collect.endpoint import is_loopback
from tunesmith.errors import TunesmithError
from tunesmith.web.guard import PAGE, Guard, Manner

EXTRA = "needs the extra: pip install 'tunesmith[{}]'"
# Connections at once: each holds some memory, and one that sends nothing is never asked to leave.
MOST_CONNECTIONS = 512


class ServeError(TunesmithError):
    """An address cannot be listened on, or the libraries for it are not installed."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def need_libraries(extra: str = "studio") -> None:
    """Raise ServeError where the libraries for pages are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServeError(f"pages: {error.name} is not installed; it {EXTRA.format(extra)}") from error


def listen(address: Address) -> socket.socket:
    """A socket that listens. Raises ServeError where it cannot."""
    place, cure = f"{address.host}:{address.port}", "give another --port, or 0 for any free one"
    if not 0 <= address.port < 2**16:
        raise ServeError(f"{place}: cannot listen there (no port has that number); {cure}")
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        both = address.host == "::" and family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server((address.host, address.port), family=family, backlog=128, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        # No such name, or no name of this machine: another port changes nothing.
        if not isinstance(error, OSError) or isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            cure = "give another --host: 127.0.0.1 for this machine alone, 0.0.0.0 for others too"
        said = error.strerror if isinstance(error, OSError) else "no name of a machine"
        raise ServeError(f"{place}: cannot listen there ({said or error}); {cure}") from error


def url(sock: socket.socket, address: Address, token: str = "") -> str:
    """The address to open, with the token in it if there is one."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    if address.host in ("0.0.0.0", "::"):
        host = _own_name()
    return f"http://{host}:{sock.getsockname()[1]}/" + (f"?token={token}" if token else "")


def kept_token(address: Address, path: Path, *, option: str = "--store") -> str:
    """No token on loopback; elsewhere the one in the file, drawn on the first call and readable by its owner only.

    It is kept so that the address that people have still works when the server starts again.
    """
    if address.is_private:
        return ""
    try:
        with contextlib.suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
        token = path.read_text(encoding="ascii").strip()
        if len(token) < 20:
            token = secrets.token_urlsafe(24)
            path.chmod(0o600)
            path.write_text(token + "\n", encoding="ascii")
    except (OSError, ValueError) as error:
        raise ServeError(f"{path}: the token cannot be kept here ({error}); name another place by {option}") from error
    return token


def serve(app: Any, sock: socket.socket, *, token: str = "", manner: Manner = PAGE, drain: int = 2) -> None:
    """Answer requests until a signal comes; the signal is raised again when every answer is out, or `drain` seconds
    have passed."""
    server(app, token=token, manner=manner, drain=drain).run(sockets=[sock])


def server(app: Any, *, token: str = "", manner: Manner = PAGE, drain: int = 2) -> Any:
    """A uvicorn server of the app behind its guard."""
    import uvicorn

    config = uvicorn.Config(
        Guard(app, token=token, manner=manner),
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=drain,
        limit_concurrency=MOST_CONNECTIONS,
        lifespan="off",
    )
    return uvicorn.Server(config)


def _own_name() -> str:
    """An address under which other machines of this network see this one, else its name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a UDP socket sends nothing by this; the address is one of documentation
        return str(probe.getsockname()[0])
    return socket.gethostname()
