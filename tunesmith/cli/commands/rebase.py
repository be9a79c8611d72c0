"""`tunesmith rebase`: a new base model on the rows of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.commands.tune import verdict
from tunesmith.cli.options import add_common, add_schema, add_set
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, log, show

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands


def add(commands: Commands) -> None:
    """Add `rebase`."""
    parser = commands.add_parser(
        "rebase",
        help="tune a new base model on the rows of a run, and test whether it is better",
        description="Tune a new base model on the same rows, in the same split and with the same recipe as a finished "
        "run, and compare old tuned model, new base and new tuned model in pairs on the test rows. Resumes an "
        "unfinished run. The earlier run is not changed. Exits with 1 if a gate of the recipe is violated.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    text = "the new base: alias, Hub id, folder or GGUF file"
    parser.add_argument("--model", metavar="NEW", required=True, help=text)
    add_set(parser, "set a recipe key, for example technique.targets=all-linear")
    add_schema(parser, "tunesmith.pipelines.rebase:Rebase")
    add_common(parser, out="folder of the new run (default: runs/NAME)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune the new base and print the comparison; return 1 if a gate of the recipe is violated."""
    from tunesmith.pipelines.rebase import check_rebase, rebase, rebased_recipe

    recipe, notes = rebased_recipe(args.folder, args.model, args.changes)
    for note in notes:
        log(note)
    with work() as callbacks:
        check_rebase(args.folder, recipe, out=args.out, callbacks=callbacks, offline=args.offline)
        hush()
        found = rebase(args.folder, recipe, out=args.out, callbacks=callbacks, offline=args.offline)
    if args.json:
        emit(found.model_dump(mode="json"))
    else:
        for task in found.tasks:
            show(task.sentence)
            for pair in task.pairs:
                show(f"  {pair.sentence}")
        show(f"page: {found.folder}/rebase.html; report of the new run: {found.folder}/report.html")
    return verdict(found.folder, found.broken_gates)
