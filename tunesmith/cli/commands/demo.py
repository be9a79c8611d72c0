"""`tunesmith demo`: tune two bundled models on bundled reviews, start to end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

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
        help="tune two bundled models on bundled product reviews",
        description="Tune an encoder and a decoder on bundled product reviews, score both against their base models, "
        "and classify three new sentences. Takes a few minutes on two CPU cores. Resumes if it was interrupted.",
    )
    add_common(parser, out="folder for both runs (default: runs)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run or resume the demo and print its results."""
    from tunesmith.pipelines.demo import demo

    hush()
    with work() as callbacks:
        done = demo(args.out or Path("runs"), callbacks=callbacks, offline=args.offline)
    if args.json:
        answers = [
            {"text": text, "label": answer.label, "probabilities": answer.probabilities}
            for text, answer in done.answers
        ]
        emit({"runs": [as_document(run) for run in (done.encoder, done.decoder)], "answers": answers})
    else:
        _show(done)
    return 0


def _show(done: Demo) -> None:
    from tunesmith.report.terminal import costs

    runs = (done.encoder, done.decoder)
    rows = []
    for run in runs:
        task, report = run.report.task, run.report
        scores = (figure(task.base), figure(task.tuned), signed(task.delta), p_value(task.p_value))
        rows.append((report.model, report.technique, task.metric, *scores, str(task.n)))
    show_table(
        ("model", "technique", "metric", "base>", "tuned>", "delta>", "p-value>", "rows>"),
        rows,
        drop=("rows", "p-value"),
    )
    for run in runs:
        show(f"{run.report.model}, {count(run.report.data.train)} training rows: {run.report.verdict}")
        for baseline in run.report.baselines:
            show(f"  {baseline.name}: {figure(baseline.score)} {' '.join(baseline.detail.split())}".rstrip())
        for line in costs(run.report):
            show(f"  {line.plain}")
    show(f"\nnew sentences, classified by the tuned {done.decoder.report.model}:")
    for text, answer in done.answers:
        show(f"  {answer.label} ({answer.confidence:.2f})  {text}")
    show("\nrun folders:")
    for run in runs:
        show(f"  {run.folder}")
    show_next(done.decoder)
