"""Options and main loop of the commands that serve an annotation page."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tunesmith.cli.terminal import log

if TYPE_CHECKING:
    from tunesmith.annotation.vote_store import VoteStore
    from tunesmith.web.security import RequestPolicy
    from tunesmith.web.server import Address, OpenServer

PORT = 8377


class JudgedWork(Protocol):
    """Items to annotate, with the store of their votes."""

    store: VoteStore


W = TypeVar("W", bound=JudgedWork)


@dataclass(frozen=True, slots=True)
class Page(Generic[W]):
    """An annotation page and its messages."""

    make: Callable[[], W]  # loads the items
    app: Callable[[W], Any]  # ASGI application
    say: Callable[[W, str], None]  # prints progress and URL when the page opens
    bye: str  # next command, printed when the page closes
    policy: Callable[[W], RequestPolicy] | None = None  # limits of requests, by default those of all pages


def add_place(parser: argparse.ArgumentParser, store: str) -> None:
    """Add `--overlap`, `--raters`, `--store`, `--host` and `--port`; `store` describes the default store."""
    text = "share of items that several raters judge, 0 to 1 (default: %(default)s)"
    parser.add_argument("--overlap", type=float, default=0.0, metavar="SHARE", help=text)
    parser.add_argument(
        "--raters", type=int, default=2, metavar="N", help="raters per shared item (default: %(default)s)"
    )
    parser.add_argument("--store", type=Path, metavar="FILE", help=f"file of votes (default: {store})")
    add_address(parser, port=PORT)


def add_address(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Add `--host` and `--port`."""
    text = "bind address, any other than localhost requires a token (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    parser.add_argument("--port", type=int, default=port, help="port, 0 picks a free one (default: %(default)s)")


@contextmanager
def opened(page: Page[W], address: Address, kept_in: Path) -> Iterator[OpenServer]:
    """Load a page and listen; the store is closed and named at the end.

    Args:
        page: the page.
        address: where it listens.
        kept_in: the store; the access token is written next to it.
    """
    from tunesmith.web.security import PAGE
    from tunesmith.web.server import OpenServer, listen, need_libraries, stored_token, url

    need_libraries()
    with listen(address) as sock:
        work = page.make()
        token = stored_token(address, kept_in.with_suffix(".token"))
        place = url(sock, address, token)
        page.say(work, place)
        try:
            yield OpenServer(page.app(work), sock, place, token, page.policy(work) if page.policy else PAGE)
        finally:
            work.store.close()
            log(f"votes saved in {work.store.path}; {page.bye}")


def stay(page: Page[W], args: argparse.Namespace, kept_in: Path) -> int:
    """Serve a page at the address of `add_address` until SIGINT or SIGTERM."""
    from tunesmith.web.server import Address, serve

    with opened(page, Address(args.host, args.port), kept_in) as made:
        serve(made.app, made.sock, token=made.token, policy=made.policy)
    return 0
