"""`tunesmith learning-curve`: what more rows would buy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tunesmith.cli.options import UsageError, add_common, add_schema, add_source, recipe_of
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, log, show, show_table

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.learning_curve.report import LearningCurveReport


def add(commands: Commands) -> None:
    """Add `learning-curve`, and `need`, its old name."""
    parser = commands.add_parser(
        "learning-curve",
        aliases=["need"],
        help="how much more data: a learning curve on your own rows",
        description="Tune on five sizes of the training rows, three times each, score all on the same test rows, and "
        "say what more rows would bring. What has run is not run again. Exits 1 where the rows do not tell.",
    )
    parser.add_argument("--rows", type=int, action="append", default=[], metavar="N", help="foretell N training rows")
    parser.add_argument("--target", type=float, metavar="SCORE", help="how many rows does this score take?")
    parser.add_argument("--minutes", type=float, metavar="M", help="measure smaller sizes, to be done in about so long")
    add_source(parser)
    add_schema(parser, _schema)
    add_common(parser, out="folder of the curve (default: runs/need-NAME)")
    parser.set_defaults(run=run)


def _schema() -> str:
    from tunesmith.pipelines.learning_curve.report import schema

    return schema()


def run(args: argparse.Namespace) -> int:
    """Measure and say; 1 where nothing can be foretold."""
    from tunesmith.pipelines.learning_curve.learning_curve import LearningCurveOptions, need

    if any(rows < 1 for rows in args.rows) or (args.minutes is not None and not args.minutes > 0):
        raise UsageError("learning-curve: --rows and --minutes are above zero; leave them out, or give a larger number")
    hush()
    if args.command == "need":
        log("need is deprecated; use learning-curve")
    recipe = recipe_of(args)
    question = LearningCurveOptions(tuple(args.rows), args.target, args.minutes)
    with work(kept="saved") as callbacks:
        folder, found = need(recipe, question, out=args.out, callbacks=callbacks, offline=args.offline)
    if args.json:
        emit({"folder": folder, **found.model_dump(mode="json")})
    else:
        _show(found)
        show(f"in {folder}: need.html, need.json")
    return 1 if found.faults else 0


def _show(found: LearningCurveReport) -> None:
    """The sentence, and every size."""
    from tunesmith.pipelines.learning_curve.report import summary

    show(found.sentence)
    rows: list[tuple[Any, ...]] = [
        (f"{one.rows:,}", summary(found, one.mean), "", ", ".join(summary(found, score) for score in one.scores))
        for one in found.sizes
    ]
    rows += [
        (
            f"{one.rows:,}",
            summary(found, one.score),
            f"{summary(found, one.low)} to {summary(found, one.high)}",
            "foretold",
        )
        for one in found.expected
    ]
    show_table(("rows>", "score>", "95 % interval", "each seed"), rows)
    for note in found.notes:
        show(note)
