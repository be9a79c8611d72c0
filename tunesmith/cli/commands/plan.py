"""`tunesmith plan`: what each technique would take, and which to take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common, add_schema, add_source, recipe_of
from tunesmith.cli.progress import Lines
from tunesmith.cli.terminal import hush, publish, show, show_table
from tunesmith.data.files import check_folder
from tunesmith.report.formatting import count, size

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.plan.report import PlanReport, TechniqueEstimate


def add(commands: Commands) -> None:
    """Add `plan`."""
    parser = commands.add_parser(
        "plan",
        help="memory, time and the technique to take, before anything runs",
        description="Count your rows and the model, time a few steps on them, and say what each technique would take: "
        "numbers that move, memory, time, how it is expected to score; and which one to take.",
    )
    parser.add_argument("--quick", action="store_true", help="by formula alone; no step is timed")
    add_source(parser)
    add_schema(parser, _schema)
    add_common(parser)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.pipelines.plan.report import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Print the plan; 1 where no technique fits into memory."""
    from tunesmith.pipelines.plan.plan import plan_recipe

    hush()
    if args.out:
        check_folder(Path(args.out))  # now, and not after the steps that are timed
    found = plan_recipe(recipe_of(args), on_event=Lines(), timed=not args.quick, offline=args.offline)
    if not publish(found.model_dump(mode="json"), args):
        _show(found)
    return 0 if found.recommendation else 1


def _show(found: PlanReport) -> None:
    """The table, what it rests on, and the recommendation."""
    rows, tokens = count(found.train_rows), count(found.tokens)
    show(f"{found.model}, {found.objective} on {rows} rows: {count(found.steps)} steps, {tokens} tokens computed")
    columns = ("technique", "moves>", "peak memory>", "training>", "whole run>", "fits", "expected", "")
    show_table(columns, [_cells(option) for option in found.options])
    show(f"{found.how}; {size(found.room_bytes)} of memory may be used")
    show("bounds in brackets are estimates; those of memory and training held in twelve small runs (bench/PLAN.md)")
    for option in found.options:
        if not option.refused:
            show(f"  {option.technique}: {option.standing}; published: {option.published}; ours: {option.ours}")
    if found.recommendation is None:
        show("no technique fits into memory: take a smaller model, or lower data.max_tokens")
        return
    show(f"take {found.recommendation.technique}: {'; '.join(found.recommendation.reasons)}")


def _cells(option: TechniqueEstimate) -> tuple[str, ...]:
    """A technique's line."""
    from tunesmith.pipelines.plan.report import memory, time

    if option.prediction is None or option.whole_seconds is None:
        return (option.technique, "", "", "", "", "no", "", option.refused)
    made = option.prediction
    figures = (count(made.trainable), memory(made.memory), time(made.seconds), time(option.whole_seconds))
    return (option.technique, *figures, "yes" if option.fits else "no", option.standing, "")
