"""What every command that opens a page of votes does: where it is opened, and that it stays until it is stopped."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tunesmith.cli.terminal import log

if TYPE_CHECKING:
    from tunesmith.annotation.vote_store import VoteStore

PORT = 8377


class JudgedWork(Protocol):
    """Items that people judge, with the store of their votes."""

    store: VoteStore


W = TypeVar("W", bound=JudgedWork)


@dataclass(frozen=True, slots=True)
class Page(Generic[W]):
    """What stands behind a page, its app, what is said when it opens at an address, and what when it ends."""

    make: Callable[[], W]
    app: Callable[[W], Any]
    say: Callable[[W, str], None]
    bye: str


def add_place(parser: argparse.ArgumentParser, store: str) -> None:
    """Add `--overlap`, `--raters`, `--store`, `--host` and `--port`; `store` is the usual file."""
    parser.add_argument("--overlap", type=float, default=0.0, metavar="SHARE", help="what several people judge, 0 to 1")
    parser.add_argument("--raters", type=int, default=2, metavar="N", help="people for each of them (%(default)s)")
    parser.add_argument("--store", type=Path, metavar="FILE", help=f"where votes are kept (default: {store})")
    parser.add_argument("--host", default="127.0.0.1", help="elsewhere than here a token is asked for (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes a free one (%(default)s)")


def stay(page: Page[W], args: argparse.Namespace, kept_in: Path) -> int:
    """Serve the page until a signal comes."""
    from tunesmith.web.server import Address, listen, need_libraries, serve, stored_token, url

    need_libraries()
    address = Address(args.host, args.port)
    with listen(address) as sock:
        work = page.make()
        token = stored_token(address, kept_in.with_suffix(".token"))
        page.say(work, url(sock, address, token))
        try:
            serve(page.app(work), sock, token=token)
        finally:
            work.store.close()
            log(f"everything is in {work.store.path}; {page.bye}")
    return 0
