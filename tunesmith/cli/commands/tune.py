"""`tunesmith tune`: rows or a recipe in, a tuned model and its measured worth out."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import add_common, add_schema, add_source, recipe_of
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import console, emit, hush, log, show
from tunesmith.errors import CheckpointError

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.pipelines.tune.tune import Run


def add(commands: Commands) -> None:
    """Add `tune`."""
    parser = commands.add_parser(
        "tune",
        help="fine-tune, then score base and tuned model on held-out rows",
        description="Fine-tune a model by a recipe or straight on a file of rows, and measure what it "
        "brought. An unfinished run of the same recipe is gone on with; a finished one is left as it is.",
    )
    add_source(parser)
    add_common(parser, out="folder of the run (default: runs/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be learned, and stop")
    parser.add_argument(
        "--force",
        action="store_true",
        help="begin again over an earlier run in the folder, and go on over grave faults of the rows",
    )
    add_schema(parser, _schema)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune as the command line says."""
    recipe = recipe_of(args, *(["data.audit=note"] if args.force else []))
    if args.dry_run:
        return _dry_run(recipe, args)
    if args.force:
        _forget(recipe, args.out)
    finished = _tune(recipe, args)
    if args.json:
        emit(as_document(finished))
    else:
        _show(finished)
    return verdict(finished.folder, finished.report.broken_gates)


def verdict(folder: str | Path, broken_gates: Sequence[str]) -> int:
    """1 for what broke a gate of its recipe, which is said on stderr; else 0."""
    for gate in broken_gates:
        log(f"error: {folder}: {gate}; lower schedule.learning_rate, change the recipe, or loosen the gate")
    return 1 if broken_gates else 0


def _schema() -> str:
    from tunesmith.report.schema import schema

    return schema()


def as_document(run: Run) -> dict[str, Any]:
    """The report with where the run lies."""
    return {"folder": run.folder, "already_finished": run.reused, **run.report.model_dump(mode="json")}


def _tune(recipe: Recipe, args: argparse.Namespace) -> Run:
    """The run, told as it goes; Ctrl-C ends it after a step, with everything saved."""
    from tunesmith.pipelines.tune.tune import tune_recipe

    hush()
    with work(kept="saved") as callbacks:
        return tune_recipe(recipe, out=args.out, callbacks=callbacks, offline=args.offline)


def _dry_run(recipe: Recipe, args: argparse.Namespace) -> int:
    """Show what the loss would look at, and train nothing."""
    from tunesmith.cli.tune_preview import show as show_preview
    from tunesmith.pipelines.tune.preview import preview

    hush()
    return show_preview(preview(recipe, offline=args.offline), args)


def _forget(recipe: Recipe, out: Path | None) -> None:
    """Delete the run that lies where this one is to lie; nothing that is not a run is touched."""
    from tunesmith.training.run_folder import PAGE, exclusive_lock, open_run, with_name

    folder = with_name(out) if out else open_run(recipe, None).path
    with exclusive_lock(folder):
        if (folder / PAGE).is_file():
            log(f"deleting the run in {folder}")
            for entry in folder.iterdir():  # the folder itself may be where we are
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        elif folder.exists():
            raise CheckpointError(f"{folder}: not a run, so --force leaves it alone; give another --out")


def _show(run: Run) -> None:
    """Base against tuned, where it all lies, and what to do next."""
    from tunesmith.report.terminal import render

    if run.reused:
        show(f"already finished, nothing was done (--force tunes again): {run.folder}")
    screen = console(sys.stdout)
    for part in render(run.report, run.folder):
        screen.print(part)
    show_next(run)


def show_next(run: Run) -> None:
    """Commands that use the run."""
    from tunesmith.report.code_snippets import ask_line

    folder = shlex.quote(str(run.folder))
    show("next:")
    show(f"  {ask_line(run.report, run.folder, place=folder, text='...')}")
    if run.report.family == "decoder" and run.report.objective not in ("classify", "multitask", "reward"):
        show(f"  tunesmith chat {folder}")
