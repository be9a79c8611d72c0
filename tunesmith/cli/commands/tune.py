"""`tunesmith tune`: fine-tune a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import UsageError, add_common, add_place, add_schema, add_source, recipe_of
from tunesmith.cli.processes import launch
from tunesmith.cli.progress import reported, work
from tunesmith.cli.terminal import console, emit, hush, log, show
from tunesmith.data.files import quoted
from tunesmith.data.remote import remote_url
from tunesmith.models.world import join, started_as

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.pipelines.tune.tune import Run


def add(commands: Commands) -> None:
    """Add `tune`."""
    parser = commands.add_parser(
        "tune",
        help="fine-tune a model and score it against its base",
        description="Fine-tune a model with a recipe, or with defaults on a data file, and score base and tuned model "
        "on the same held-out rows. Resumes an unfinished run of the same recipe. A finished run is not repeated.",
    )
    add_source(parser)
    add_common(parser, out="run folder, or its URL such as s3://bucket/run (default: runs/NAME)")
    text = "show the training rows with their learned tokens and exit"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "overwrite an earlier run in this folder, and continue despite severe data errors"
    parser.add_argument("--force", action="store_true", help=text)
    text = "share the work among N processes of this machine, with the same rows in each step (default: 1)"
    parser.add_argument("--processes", type=int, default=1, metavar="N", help=text)
    text = "score as many test rows, chosen at random beforehand, as take N minutes; all: every one (default: auto)"
    change = "verdict.minutes={}".format
    parser.add_argument("--verdict-minutes", dest="changes", action="append", type=change, metavar="N", help=text)
    add_place(parser, "the control runs")
    add_schema(parser, "tunesmith.report.schema:Report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune and print the result; return 1 if a gate of the recipe is violated."""
    if args.processes < 1:
        raise UsageError(f"--processes: expected an integer >= 1, got {args.processes}; use 1 for a single process")
    if args.on != "local" and max(args.processes, started_as()[1]) > 1:
        raise UsageError(f"--on {args.on}: not for several processes, which share their control runs; leave it out")
    if args.processes > 1 and started_as()[1] == 1 and not args.dry_run:
        return launch(args.processes, args.command_line)
    # Whatever can be judged without torch is judged before the imports that take seconds.
    from tunesmith.pipelines.many_runs import check_place
    from tunesmith.training.read import check_rows, check_settings
    from tunesmith.training.run_folder import earlier_run

    args.out = _folder(args.out)
    folder = not (args.force or args.dry_run)

    def check(recipe: Recipe) -> None:
        check_place(args.on, controls=recipe.controls)
        check_settings(recipe, out=args.out, folder=folder)
        if args.force and not args.dry_run:
            earlier_run(recipe, args.out)  # refuses to overwrite anything but a run

    recipe = recipe_of(args, *(["data.audit=note"] if args.force else []), check=check)
    with reported() as on_event:
        check_rows(recipe, on_event=on_event, out=args.out, folder=folder, offline=args.offline)
    if args.dry_run:
        from tunesmith.cli.tune_preview import show as show_preview
        from tunesmith.pipelines.tune.preview import preview

        hush()
        return show_preview(preview(recipe, offline=args.offline), args)
    from tunesmith.pipelines.tune.tune import tune_recipe
    from tunesmith.training.run_folder import delete_run

    world = join()
    if args.force:
        with world.first():
            if world.leads and (deleted := delete_run(recipe, args.out)):
                log(f"deleted the run in {deleted}")
    hush()
    with work() as callbacks:
        done = tune_recipe(recipe, out=args.out, callbacks=callbacks, offline=args.offline, on=args.on)
    if args.json:
        emit(as_document(done))
    else:
        _show(done)
    return verdict(done.folder, done.report.broken_gates)


def _folder(out: Path | None) -> Path | None:
    """Return the folder to work in; a copy of a remote one is made by the first process for all."""
    from tunesmith.pipelines.tune.remote_run import local_run

    if started_as()[1] == 1:
        return local_run(out)
    if out and remote_url(out) and join().local_size < join().size:
        raise UsageError(f"--out {out}: not for several machines; give a folder that all of them see")
    return Path(join().lead(lambda: str(local_run(out)))) if out and remote_url(out) else out


def verdict(folder: str | Path, broken_gates: Sequence[str]) -> int:
    """Log each violated gate and return the exit code: 1 if there is one, else 0."""
    for gate in broken_gates:
        log(f"error: {folder}: {gate}; lower schedule.learning_rate, change the recipe, or relax the gate")
    return 1 if broken_gates else 0


def as_document(run: Run) -> dict[str, Any]:
    """Return the JSON document of a run: its folder and its report."""
    return {"folder": run.folder, "already_finished": run.reused, **run.report.model_dump(mode="json")}


def show_next(run: Run) -> None:
    """Print commands that use the run."""
    from tunesmith.objectives import objective_class
    from tunesmith.report.code_snippets import ask_line

    folder = quoted(run.folder)
    show("next:")
    show(f"  {ask_line(run.report, run.folder, place=folder, text='...')}")
    if run.report.family == "decoder" and objective_class(run.report.objective).route.startswith("v1/"):
        show(f"  tunesmith chat {folder}")


def _show(run: Run) -> None:
    from tunesmith.report.terminal import render

    if run.reused:
        show(f"already finished: {run.folder}; use --force to tune again")
    screen = console(sys.stdout)
    for part in render(run.report, run.folder):
        screen.print(part)
    show_next(run)
