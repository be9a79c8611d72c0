"""Scores of quantized files of a tuned model in llama.cpp.

`python -m bench.quantized RUN TYPE...` writes each file as `tunesmith export --format gguf --dtype TYPE` does, with an
importance matrix from training rows, and asks it the test rows as the tuned model was asked. `export --smallest` has
this table only as far as its sequence of tests goes: to the first file that is not shown to be within the margin.

`python -m bench.quantized RUN FILE.gguf --rows ROWS` asks files that exist already, and the tuned model, rows of
another file, so that a file is scored on rows that had no part in choosing it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunesmith.config import load_recipe
from tunesmith.data.examples.types import Example
from tunesmith.evaluation.predict import accepted_answers, answer, subsample
from tunesmith.inference.export.formats import GGUF, merged, write_file
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import compare_paired, interval
from tunesmith.metrics.task_scores import PER_ROW
from tunesmith.pipelines.export.export import IMPORTANCE_ROWS
from tunesmith.pipelines.export.smallest import Ask, HeldOutRows, asker
from tunesmith.report.predictions import read_predictions
from tunesmith.training.read import read_data

HEAD = ("file", "MB", "score", "95 %", "file minus tuned model", "95 %", "p", "answers equal", "s")


class Table:
    """Files against the tuned model on the same rows."""

    def __init__(self, rows: HeldOutRows, examples: Sequence[Example], tuned: Sequence[str]) -> None:
        self.metric, self.scale = rows.metric, rows.scale
        self.references, self.tuned = accepted_answers(examples), tuned
        self.groups = groups_of(examples)
        self.original = PER_ROW[self.metric](self.references, tuned)
        groups = len(set(self.groups or range(len(examples))))
        print(f"tuned model: {self.original.mean():.3f} on {len(examples)} rows in {groups} groups")
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)

    def print_line(self, name: str, file: Path, ask: Ask) -> None:
        """Ask one file and print its line."""
        began = time.perf_counter()
        texts, _ = ask(file)
        seconds, size = time.perf_counter() - began, file.stat().st_size / 1e6
        scores = PER_ROW[self.metric](self.references, texts)
        low, high = interval(scores, groups=self.groups, scale=self.scale)
        gain = compare_paired(self.original, scores, groups=self.groups)
        equal = sum(text == tuned for text, tuned in zip(texts, self.tuned, strict=True)) / len(texts)
        print(
            f"| {name} | {size:.0f} | {scores.mean():.3f} | {low:.3f} to {high:.3f} | {gain.delta:+.3f} "
            f"| {gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f} | {gain.p_value:.3f} | {equal:.1%} | {seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    """Write, ask and compare one file after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("files", nargs="+", metavar="TYPE or FILE.gguf")
    parser.add_argument("--rows", type=Path, help="ask these rows instead of the test rows of the run")
    args = parser.parse_args()
    recipe = load_recipe(args.run / "recipe.yaml")[0]
    predictions = read_predictions(args.run)
    held_out = HeldOutRows(args.run, 1.0, predictions, offline=True)
    model = merged(args.run / "model", read_manifest(args.run / "model"), offline=True)
    if args.rows is None:
        examples, tuned = held_out.examples, [row.tuned for row in predictions]
        train = read_data(recipe, offline=True).split.train
        important = model.encode(subsample(train, IMPORTANCE_ROWS, 0))
    else:
        other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": str(args.rows.resolve())})})
        examples = read_data(other, offline=True).split.test
        tuned = answer(load(args.run / "model", device="cpu", offline=True), examples).given
    ask, table = asker(model, examples), Table(held_out, examples, tuned)
    for name in args.files:
        if args.rows is not None:
            table.print_line(Path(name).stem, Path(name), ask)
            continue
        with tempfile.TemporaryDirectory() as place:
            write_file(model, Path(place), dtype=name, name=args.run.name, rows=important)
            table.print_line(name, Path(place) / GGUF, ask)


if __name__ == "__main__":
    main()
