"""`tunesmith push`: upload a run to the Hugging Face Hub, after showing what would be uploaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common, add_schema
from tunesmith.cli.terminal import hush, publish, show, show_table
from tunesmith.report.formatting import size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.push import Push


def add(commands: Commands) -> None:
    """Add `push`."""
    parser = commands.add_parser(
        "push",
        help="upload a run to the Hugging Face Hub, privately unless told otherwise",
        description="Upload the model of a run with a model card to a repository of the Hugging Face Hub. First shows "
        "every file, where it goes and who can read it, and asks. Without a terminal and without --yes nothing is "
        "uploaded. Rows, answers, logs, checkpoints and the recipe are never uploaded.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository, created if it does not exist")
    parser.add_argument("--public", action="store_true", help="let everyone read it (default: private)")
    parser.add_argument("--report", action="store_true", help="also upload the report, without its example rows")
    text = "licence of the model, as the Hub names it (default: that of base and data, other if it is not known)"
    parser.add_argument("--license", default="", metavar="ID", help=text)
    text = "Hub id of the base, for a run over a copy of it in a folder (default: as in training)"
    parser.add_argument("--base", default="", metavar="OWNER/NAME", help=text)
    parser.add_argument("--yes", action="store_true", help="upload without asking")
    add_schema(parser, "tunesmith.pipelines.push:Push")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the plan, ask, and upload."""
    from tunesmith.pipelines.push import push

    hush()

    def confirm(plan: Push) -> bool:
        if not args.json:
            show_table(("file", "size>"), [(file.name, size(file.bytes)) for file in plan.files])
            for line in plan.lines():
                show(line)
        if args.yes:
            return True
        asks = sys.stdin is not None and sys.stdin.isatty() and not args.json
        return asks and input("upload? [y/N] ").strip().lower() in ("y", "yes")

    done = push(
        args.folder,
        args.repo,
        confirm=confirm,
        public=args.public,
        report=args.report,
        licence=args.license,
        base=args.base,
        offline=args.offline,
    )
    if not publish(done.model_dump(mode="json"), args):
        show(f"uploaded: {done.url}" if done.commit else "nothing was uploaded; add --yes to upload it")
    return 0
