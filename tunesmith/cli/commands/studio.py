"""`tunesmith studio`: one page over all commands, in the browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common
from tunesmith.cli.page_server import add_address
from tunesmith.cli.terminal import log, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands

PORT = 8378


def add(commands: Commands) -> None:
    """Add `studio`."""
    parser = commands.add_parser(
        "studio",
        help="open one page over all of this in the browser",
        description="Serve a page on this machine from which files are checked, recipes written, models tuned, "
        "compared, asked and exported. It starts the commands that it shows, in separate processes: closing the "
        "page or stopping the server stops none. Ctrl-C stops the server.",
    )
    text = "working folder, with data files, recipes and runs (default: the current one)"
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help=text)
    add_address(parser, port=PORT)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve the page until a signal arrives."""
    from tunesmith.web.server import Address, listen, need_libraries, serve, stored_token, url
    from tunesmith.web.studio.app import POLICY, make_studio
    from tunesmith.web.studio.workspace import Workspace, WorkspaceError

    need_libraries()
    if not args.folder.is_dir():
        raise WorkspaceError(f"{args.folder}: no such folder; name the folder of your data files, or create it")
    workspace = Workspace(args.folder.resolve())
    address = Address(args.host, args.port)
    with workspace.held(), listen(address) as sock:
        token = stored_token(address, workspace.kept / "token", option="FOLDER")
        place = url(sock, address, token)
        workspace.note_address(place)
        if not publish({"url": place, "folder": workspace.folder}, args):
            show(f"open {place}")
            show("Ctrl-C stops the page, not the runs")
        serve(make_studio(workspace.folder, offline=args.offline), sock, token=token, policy=POLICY)
        log("the page is closed; the commands that it started continue")
    return 0
