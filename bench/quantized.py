"""Scores of quantized files of a run in llama.cpp, on all of its test rows: `python -m bench.quantized RUN TYPE...`.

A file is written as `tunesmith export --format gguf --dtype TYPE` writes it, with an importance matrix from training
rows, and answers the test rows as the tuned model was asked. `export --smallest` has this table only as far as its
sequence of tests goes: to the first file that is not shown to be within the margin.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tunesmith.config import load_recipe
from tunesmith.evaluation.predict import subsample
from tunesmith.inference.export.formats import GGUF, merged, write_file
from tunesmith.inference.identify import read_manifest
from tunesmith.metrics.significance import compare_paired, interval
from tunesmith.metrics.task_scores import PER_ROW
from tunesmith.pipelines.export.export import IMPORTANCE_ROWS
from tunesmith.pipelines.export.smallest import HeldOutRows, asker
from tunesmith.report.predictions import read_predictions
from tunesmith.training.read import read_data

HEAD = ("file", "MB", "score", "95 %", "file minus tuned model", "95 %", "p", "answers equal", "s")


def main() -> None:
    """Write, ask and compare one file after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("types", nargs="+", metavar="TYPE")
    args = parser.parse_args()
    rows = HeldOutRows(args.run, 1.0, read_predictions(args.run), offline=True)
    model = merged(args.run / "model", read_manifest(args.run / "model"), offline=True)
    ask, references = asker(model, rows), [row.reference for row in rows.test]
    train = read_data(load_recipe(args.run / "recipe.yaml")[0], offline=True).split.train
    important = model.encode(subsample(train, IMPORTANCE_ROWS, 0))
    groups = len(set(rows.groups or range(len(references))))
    print(f"tuned model: {rows.tuned.mean():.3f} on {len(references)} rows in {groups} groups")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name in args.types:
        with tempfile.TemporaryDirectory() as place:
            write_file(model, Path(place), dtype=name, name=args.run.name, rows=important)
            file, began = Path(place) / GGUF, time.perf_counter()
            texts, _ = ask(file)
            seconds, size = time.perf_counter() - began, file.stat().st_size / 1e6
        scores = PER_ROW[rows.metric](references, texts)
        low, high = interval(scores, groups=rows.groups, scale=rows.scale)
        gain = compare_paired(rows.tuned, scores, groups=rows.groups)
        equal = sum(text == row.tuned for text, row in zip(texts, rows.test, strict=True)) / len(texts)
        print(
            f"| {name} | {size:.0f} | {scores.mean():.3f} | {low:.3f} to {high:.3f} | {gain.delta:+.3f} "
            f"| {gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f} | {gain.p_value:.3f} | {equal:.1%} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
