"""`tunesmith mcp`: tools for coding agents, over stdin and stdout."""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common
from tunesmith.cli.signals import Interruption
from tunesmith.cli.terminal import emit, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands

SKILL = Path(__file__).with_name("SKILL.md")


def add(commands: Commands) -> None:
    """Add `mcp`."""
    parser = commands.add_parser(
        "mcp",
        help="serve tools for a coding agent (Model Context Protocol, stdio)",
        description="Serve inspect, audit, plan, tune, compare, status, report, runs and ask to one client on stdin "
        "and stdout, without network. It only reads, unless --allow-training is given. A run that the client started "
        "is stopped, resumable, when its budget ends or the client disconnects.",
        conflict_handler="resolve",  # --out is another name of --runs
    )
    add_common(parser)
    text = "the only folder whose files may be read as rows, documents or recipes (default: the current one)"
    parser.add_argument("--data", type=Path, default=Path(), metavar="DIR", help=text)
    text = "the only folder whose runs may be read, and in which runs are written (default: DATA/runs)"
    parser.add_argument("--runs", "--out", type=Path, metavar="DIR", help=text)
    text = "allow tune and compare; each needs the token of a plan"
    parser.add_argument("--allow-training", action="store_true", help=text)
    text = "time of all runs of the session together (default: %(default)s)"
    parser.add_argument("--budget-minutes", type=float, default=30.0, metavar="N", help=text)
    text = "a model that clients may name in addition to the bundled ones and the runs; may be repeated"
    parser.add_argument("--model", dest="models", action="append", default=[], metavar="MODEL", help=text)
    parser.add_argument(
        "--skill", action="store_true", help="print instructions for a coding agent (SKILL.md) and exit"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve one client until it disconnects."""
    if args.skill:
        text = SKILL.read_text(encoding="utf-8").rstrip()
        emit({"skill": text}) if args.json else show(text)
        return 0
    if not 0 < args.budget_minutes < float("inf"):
        raise UsageError(f"--budget-minutes: expected a number > 0, got {args.budget_minutes}; use 30")
    if not args.data.is_dir():
        raise UsageError(f"--data {args.data}: no such folder; name the folder with the data files")
    if find_spec("mcp") is None:
        raise UsageError("mcp: mcp is not installed; pip install 'tunesmith[mcp]'")
    from tunesmith.cli.mcp.folders import Folders
    from tunesmith.cli.mcp.server import make_server
    from tunesmith.cli.mcp.session import Session

    data = args.data.resolve()
    runs = (args.runs or data / "runs").resolve()
    if not args.runs and runs != data / "runs":
        raise UsageError(
            f"--data {args.data}: its folder runs is a link to {runs}; if that is meant, give --runs {runs}"
        )
    folders = Folders(data, runs, tuple(args.models))
    try:
        with tempfile.TemporaryDirectory(prefix="tunesmith-mcp-", ignore_cleanup_errors=True) as scratch:
            minutes = args.budget_minutes if args.allow_training else 0.0
            make_server(Session(folders, minutes=minutes, scratch=Path(scratch).resolve())).run("stdio")
    except Interruption as stopped:
        os._exit(stopped.exit_code)  # the thread that reads stdin would wait for its end
    return 0
