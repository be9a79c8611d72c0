"""`tunesmith demo`: the main job on shipped real rows, start to end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.cli.commands.tune import as_document, show_next
from tunesmith.cli.options import add_common
from tunesmith.cli.progress import work
from tunesmith.cli.terminal import emit, hush, show, show_table
from tunesmith.report.formatting import count, figure, p_value, signed

if TYPE_CHECKING:
    from tunesmith.cli.options import Commands
    from tunesmith.pipelines.demo import Demo


def add(commands: Commands) -> None:
    """Add `demo`."""
    parser = commands.add_parser(
        "demo",
        help="the main job on shipped real rows, start to end",
        description="Tunes an encoder and a decoder on product reviews that travel with the package, scores "
        "both against their bases, and asks the decoder three new questions: some minutes on two cores. "
        "Run again, it goes on where it was stopped.",
    )
    add_common(parser, out="folder for both runs (default: runs)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo, or show it again when it is finished."""
    from tunesmith.pipelines.demo import demo

    hush()
    with work(kept="saved") as callbacks:
        told = demo(args.out or Path("runs"), callbacks=callbacks, offline=args.offline)
    if args.json:
        emit(_document(told))
    else:
        _show(told)
    return 0


def _document(told: Demo) -> dict[str, Any]:
    answers = [
        {"text": text, "label": found.label, "probabilities": found.probabilities} for text, found in told.answers
    ]
    return {"runs": [as_document(run) for run in (told.encoder, told.decoder)], "answers": answers}


def _show(told: Demo) -> None:
    """Both comparisons in one table, the answers, and where everything lies."""
    from tunesmith.report.terminal import costs

    runs = (told.encoder, told.decoder)
    rows = []
    for run in runs:
        task, report = run.report.task, run.report
        scores = (figure(task.base), figure(task.tuned), signed(task.delta), p_value(task.p_value))
        rows.append((report.model, report.technique, task.metric, *scores, str(task.n)))
    show_table(("model", "technique", "metric", "base>", "tuned>", "delta>", "p-value>", "rows>"), rows)
    for run in runs:
        # Both runs are judged on the same test rows, and their cheap ways learn from as many rows as they do.
        show(f"{run.report.model}, {count(run.report.data.train)} training rows: {run.report.verdict}")
        for other in run.report.baselines:
            show(f"  {other.name}: {figure(other.score)} {' '.join(other.detail.split())}".rstrip())
        for line in costs(run.report):
            show(f"  {line.plain}")
    show(f"\nnew sentences, judged by the tuned {told.decoder.report.model}:")
    for text, found in told.answers:
        show(f"  {found.label} ({found.confidence:.2f})  {text}")
    show("\nrun folders:")
    for run in runs:
        show(f"  {run.folder}")
    show_next(told.decoder)
