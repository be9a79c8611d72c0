"""`tunesmith learning-curve`: fit a learning curve and predict the score with more rows."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tunesmith.cli.options import COMMAND_ALIASES, add_common, add_place, add_schema, add_source, recipe_of
from tunesmith.cli.progress import reported, work
from tunesmith.cli.terminal import emit, hush, log, show, show_table

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.learning_curve.report import LearningCurveReport


def add(commands: Commands) -> None:
    """Add `learning-curve`, with its former name `need` as an alias."""
    parser = commands.add_parser(
        "learning-curve",
        help="predict the score with more training rows",
        description="Tune on five sizes of the training set with three seeds each, score all runs on the same test "
        "rows, fit a learning curve and predict the score with more rows. Completed runs are reused. Exits with 1 if "
        "the data cannot support an estimate.",
    )
    # As `aliases` the former names would be listed in the help.
    commands.choices.update(dict.fromkeys(COMMAND_ALIASES, parser))
    text = "predict the score with N training rows; may be repeated"
    parser.add_argument("--rows", type=int, action="append", default=[], metavar="N", help=text)
    parser.add_argument("--target", type=float, metavar="SCORE", help="estimate the rows needed for this score")
    text = "time budget, met by using smaller training sizes"
    parser.add_argument("--minutes", type=float, metavar="MINUTES", help=text)
    add_place(parser)
    add_source(parser)
    add_schema(parser, "tunesmith.pipelines.learning_curve.report:LearningCurveReport")
    add_common(parser, out="folder of the curve (default: runs/need-NAME)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure or resume the curve and print it; return 1 if nothing can be predicted."""
    from tunesmith.pipelines.requests import LearningCurveOptions
    from tunesmith.training.read import check_rows, check_settings

    options = LearningCurveOptions(tuple(args.rows), args.target, args.minutes, args.on)
    if args.command in COMMAND_ALIASES:
        log(f"warning: `{args.command}` is deprecated; use `learning-curve`")
    recipe = recipe_of(args, check=check_settings)
    with reported() as on_event:
        check_rows(recipe, on_event=on_event, offline=args.offline)
    from tunesmith.pipelines.learning_curve.learning_curve import measure_learning_curve

    hush()
    with work() as callbacks:
        folder, report = measure_learning_curve(
            recipe, options, out=args.out, callbacks=callbacks, offline=args.offline
        )
    if args.json:
        emit({"folder": folder, **report.model_dump(mode="json")})
    else:
        _show(report)
        show(f"written: {folder}/need.html and {folder}/need.json")
    return 1 if report.faults else 0


def _show(report: LearningCurveReport) -> None:
    from tunesmith.pipelines.learning_curve.report import summary

    show(report.sentence)
    rows = []
    for size in report.sizes:
        seeds = ", ".join(summary(report, score) for score in size.scores)
        rows.append((f"{size.rows:,}", summary(report, size.mean), "", seeds))
    for point in report.expected:
        interval = f"{summary(report, point.low)} to {summary(report, point.high)}"
        rows.append((f"{point.rows:,}", summary(report, point.score), interval, "predicted"))
    show_table(("rows>", "score>", "95 % interval", "scores of the seeds"), rows)
    for note in report.notes:
        show(note)
