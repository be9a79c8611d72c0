"""`tunesmith compare`: prompting, retrieval or tuning, measured on the user's own rows."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import UsageError, add_common, add_schema, add_source, recipe_of
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, show, show_table
from tunesmith.data.files import write_whole
from tunesmith.report.formatting import bounds, duration, figure, p_value, share, signed

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.pipelines.compare.compare import CompareOptions
    from tunesmith.pipelines.compare.report import ArmPage, Comparison

KEY = "TUNESMITH_API_KEY"


def add(commands: Commands) -> None:
    """Add `compare`."""
    parser = commands.add_parser(
        "compare",
        help="prompt, retrieve or fine-tune: measured on your own rows",
        description="Let every arm of a recipe answer the same held-out rows, and say which to take. "
        "A comparison that was interrupted is gone on with where it stopped.",
    )
    add_source(parser)
    add_common(parser, out="folder of the comparison (default: comparisons/NAME)")
    parser.add_argument(
        "--budget",
        type=float,
        default=0.0,
        metavar="MINUTES",
        help="use as many rows as fit into this time; 0: all that the recipe names",
    )
    parser.add_argument(
        "--price-per-hour", type=float, default=0.0, metavar="PRICE", help="what this machine costs, for the costs"
    )
    add_schema(parser, _schema)
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.pipelines.compare.report import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Compare as the command line says."""
    from tunesmith.pipelines.compare.compare import HTML, CompareOptions
    from tunesmith.pipelines.compare.report import page as html

    for name, value in (("--budget", args.budget), ("--price-per-hour", args.price_per_hour)):
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name}: {value} is no number from 0 on; leave it out for none")
    recipe = recipe_of(args)
    wishes = CompareOptions(args.budget, args.price_per_hour, os.environ.get(KEY, ""))
    found = _compare(recipe, wishes, args)
    write_whole(Path(found.folder) / HTML, html(found))
    if args.json:
        emit(found.model_dump(mode="json"))
    else:
        _show(found)
    return 0


def _compare(recipe: Recipe, options: CompareOptions, args: argparse.Namespace) -> Comparison:
    """The comparison, told as it goes; Ctrl-C ends it after a step or an arm, with everything kept."""
    from tunesmith.pipelines.compare.compare import compare

    hush()
    with work(kept="kept") as callbacks:
        return compare(recipe, options, callbacks=callbacks, out=args.out, offline=args.offline)


def _show(found: Comparison) -> None:
    """The verdict, every arm, the table, and where the rest lies."""
    sure = found.verdict.confidence
    redraws = "" if sure is None else f"; the same in {share(sure)} of redraws"
    show(f"verdict: {found.verdict.text} ({found.verdict.arm}{redraws})")
    for reason in found.verdict.reasons:
        show(f"  - {reason}")
    show()
    heads = (
        "arm",
        f"{found.metric}>",
        "95 % interval",
        "against",
        "gain>",
        "p (Holm)>",
        "p50>",
        "p95>",
        "answers/s>",
        "to build>",
        "per 1,000>",
    )
    ranked = sorted(found.arms, key=lambda arm: -arm.task.score)
    show_table(heads, [_line(arm) for arm in ranked])
    _show_beside(found, ranked)
    show()
    for row in found.table:
        show(f"{row.row} (usual belief: {' / '.join(row.belief)}): {row.measured}")
        if not row.known:
            show("  not measured")
        for name, cell in row.here.items() if row.known else ():
            show(f"  {name}: {cell}")
    for note in found.notes:
        show(f"note: {note}")
    show(f"everything: {found.folder}")
    show(f'next: tunesmith ask {found.folder} "..."')


def _show_beside(found: Comparison, ranked: Sequence[ArmPage]) -> None:
    """What the arms cost, and how well chunks are found."""
    from tunesmith.report.formatting import price

    for arm in ranked:
        if arm.cost.price_per_1000 is not None and arm.cost.price_to_build is not None:
            build, answers = map(price, (arm.cost.price_to_build, arm.cost.price_per_1000))
            show(f"price of {arm.name}: {build} to build, {answers} for 1,000 answers")
    for one in found.retrieval:
        cuts = ", ".join(f"@{cut} {value:.3f}" for cut, value in one.recall.items())
        show(f"retrieval by {one.search}: recall {cuts}; MRR {one.mrr:.3f} ({one.n} rows, {found.chunks} chunks)")


def _line(arm: ArmPage) -> tuple[str, ...]:
    """An arm as a line of the table."""
    found, beside = arm.latency, arm.against
    return (
        arm.name if arm.candidate else f"({arm.name})",
        figure(arm.task.score),
        bounds(arm.task.ci95),
        beside.arm if beside else "",
        signed(beside.delta) if beside else "",
        p_value(beside.p_adjusted) if beside else "",
        figure(found.p50),
        figure(found.p95),
        figure(found.answers_per_second),
        duration(arm.cost.build_seconds),
        duration(arm.cost.seconds_per_1000),
    )
