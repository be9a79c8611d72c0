"""`tunesmith replay`: repeat the first steps of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common, add_schema, add_set
from tunesmith.cli.progress import reported
from tunesmith.cli.terminal import hush, publish, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands


def add(commands: Commands) -> None:
    """Add `replay`."""
    parser = commands.add_parser(
        "replay",
        help="repeat the first steps of a run here, and report whether anything has changed",
        description="Repeat the first steps of a finished run and score its model, here and now, and compare both with "
        "what the run has recorded: same, within rounding, or changed, with the first quantity that differs and what "
        "differs in the environment. Exits with 1 if anything has changed. `replay:` in a recipe is something else: "
        "general rows that are mixed into training.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run, which is not changed")
    add_set(parser, "set machine.threads, dtype, device or products (default: as in the run)")
    add_schema(parser, "tunesmith.pipelines.replay:Replay")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Repeat the first steps of a run and print the outcome; return 1 if anything has changed."""
    from tunesmith.pipelines.replay import replay

    hush()
    with reported() as on_event:
        found = replay(args.folder, changes=args.changes, on_event=on_event, offline=args.offline)
    if not publish(found.model_dump(mode="json"), args):
        show(found.sentence)
        for line in found.display().lines:
            show(f"  {line}")
    return 1 if found.outcome == "changed" else 0
