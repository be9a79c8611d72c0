"""`tunesmith compare`: compare prompting, retrieval and fine-tuning on the user's rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.cli.options import add_common, add_engine, add_place, add_schema, add_source, recipe_of
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, show, show_table
from tunesmith.data.files import quoted, write_whole
from tunesmith.report.formatting import bounds, duration, figure, p_value, price, share, signed

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.config import Recipe
    from tunesmith.pipelines.compare.report import ArmPage, Comparison

KEY = "TUNESMITH_API_KEY"


def add(commands: Commands) -> None:
    """Add `compare`."""
    parser = commands.add_parser(
        "compare",
        help="compare prompting, retrieval and fine-tuning on your rows",
        description="Let every arm of a recipe answer the same held-out rows, and recommend one. Resumes an "
        "interrupted comparison.",
    )
    add_source(parser)
    add_common(parser, out="folder of the comparison (default: comparisons/NAME)")
    text = "time budget, met by using fewer test rows; 0: no limit (default: 0)"
    parser.add_argument("--budget", type=float, default=0.0, metavar="MINUTES", help=text)
    text = "machine price per hour, for the cost columns"
    parser.add_argument("--price-per-hour", type=float, default=0.0, metavar="PRICE", help=text)
    add_engine(parser)
    add_place(parser)
    add_schema(parser, "tunesmith.pipelines.compare.report:Comparison")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run or resume the comparison and print it."""
    from tunesmith.inference.engine_program import check_engine
    from tunesmith.pipelines.requests import SERVER_KEY, CompareOptions, key_from_environment
    from tunesmith.training.read import read_data

    options = CompareOptions(args.budget, args.price_per_hour, key_from_environment(SERVER_KEY), args.engine, args.on)

    def check(recipe: Recipe) -> None:
        _check_models(recipe)
        if args.engine:
            check_engine(args.engine, recipe.compare.model or recipe.model, offline=args.offline)

    recipe = recipe_of(args, check=check)
    if not recipe.parts:
        read_data(recipe, offline=args.offline)  # only to report wrong rows before torch is imported
    from tunesmith.pipelines.compare.compare import HTML, compare
    from tunesmith.pipelines.compare.report import page

    hush()
    with work() as callbacks:
        comparison = compare(recipe, options, callbacks=callbacks, out=args.out, offline=args.offline)
    write_whole(Path(comparison.folder) / HTML, page(comparison))
    if args.json:
        emit(comparison.model_dump(mode="json"))
    else:
        _show(comparison)
    return 0


def _check_models(recipe: Recipe) -> None:
    """Raise ModelError if there cannot be such a model."""
    from tunesmith.models.loading.locate import local_family

    for name in (recipe.model, recipe.compare.model):
        if name:
            local_family(name)


def _show(comparison: Comparison) -> None:
    confidence = comparison.verdict.confidence
    stability = "" if confidence is None else f"; the same in {share(confidence)} of bootstrap resamples"
    show(f"verdict: {comparison.verdict.text} ({comparison.verdict.arm}{stability})")
    for reason in comparison.verdict.reasons:
        show(f"  - {reason}")
    show()
    heads = (
        "arm",
        f"{comparison.metric}>",
        "95 % interval",
        "against",
        "delta>",
        "p (Holm)>",
        "p50>",
        "p95>",
        "answers/s>",
        "to build>",
        "per 1,000>",
    )
    ranked = sorted(comparison.arms, key=lambda arm: -arm.task.score)
    dropped = ("p95", "answers/s", "p (Holm)", "per 1,000", "to build", "p50", "against", "delta")
    show_table(heads, [_cells(arm) for arm in ranked], drop=dropped)
    for arm in ranked:
        if arm.cost.price_per_1000 is not None and arm.cost.price_to_build is not None:
            build, answers = price(arm.cost.price_to_build), price(arm.cost.price_per_1000)
            show(f"price of {arm.name}: {build} to build, {answers} per 1,000 answers")
    for search in comparison.retrieval:
        cuts = ", ".join(f"@{cut} {value:.3f}" for cut, value in search.recall.items())
        sizes = f"{search.n} rows, {comparison.chunks} chunks"
        show(f"retrieval by {search.search}: recall {cuts}; MRR {search.mrr:.3f} ({sizes})")
    show()
    for row in comparison.table:
        if row.known:
            show(f"{row.row} (common belief: {' / '.join(row.belief)}): {row.measured}")
        for name, cell in row.measurements.items():
            show(f"  {name}: {cell}")
    if missing := [row.row for row in comparison.table if not row.known]:
        show(f"not measured here: {', '.join(missing)}")
    for note in comparison.notes:
        show(f"note: {note}")
    show(f"full results: {comparison.folder}")
    show(f'next: tunesmith ask {quoted(comparison.folder)} "..."')


def _cells(arm: ArmPage) -> tuple[str, ...]:
    latency, against = arm.latency, arm.against
    return (
        arm.name if arm.candidate else f"({arm.name})",
        figure(arm.task.score),
        bounds(arm.task.ci95),
        against.arm if against else "",
        signed(against.delta) if against else "",
        p_value(against.p_adjusted) if against else "",
        figure(latency.p50),
        figure(latency.p95),
        figure(latency.answers_per_second),
        duration(arm.cost.build_seconds),
        duration(arm.cost.seconds_per_1000),
    )
