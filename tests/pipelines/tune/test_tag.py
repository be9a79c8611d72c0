"""Spans from rows to a measured run, with a tiny model: the run, its baselines and controls, its export, a new file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import recipe, tune
from tunesmith.errors import RecipeError
from tunesmith.events import ignore
from tunesmith.inference.saved_model import load
from tunesmith.metrics.spans import row_f1
from tunesmith.pipelines.evaluate import EvaluateRequest, evaluate
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Tokenizer does not support real words"),
]


def orders(count: int = 48) -> list[dict[str, Any]]:
    """Rows in which the word after `to` is a place, and the digits are an amount."""
    rows = []
    for i in range(count):
        text = (
            f"{'please ' * (i * 5 % 6)}send {i % 7 + 2} boxes to {('bonn', 'ulm', 'jena')[i % 3]} {'now' * (i % 2)} {i}"
        )
        at = text.index("to ") + 3
        place = {"start": at, "end": text.index(" ", at), "label": "PLACE"}
        amount = text.index("send ") + 5
        rows.append({"text": text, "spans": [{"start": amount, "end": amount + 1, "label": "AMOUNT"}, place]})
    return rows


@pytest.mark.long
def test_spans_are_learned_measured_and_exported(tmp_path: Path):
    made = recipe(
        tmp_path,
        orders(),
        "bert",
        objective="tag",
        technique="full",
        schedule={"epochs": 40, "learning_rate": 0.003, "patience": 99},
        controls=True,
    )
    run = tune(made, tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["entity_f1", "entity_precision", "entity_recall", "overlap_f1"]
    names = ["base", "dictionary of the training spans", "conditional random field"]
    assert [arm.name for arm in report.baselines] == names
    assert [arm.name for arm in report.controls] == ["shuffled labels"]
    assert report.task.tuned > 0.8
    assert min(arm.score for arm in report.baselines[1:]) > 0.5
    assert report.baselines[2].score > 0.9
    assert report.controls[0].score < 0.5
    counts = report.span_counts
    assert list(counts) == ["", "AMOUNT", "PLACE"]
    rows = read_predictions(run.folder)
    assert sum(row.gold.count("[") for row in rows) == 2 * len(rows)
    for label, spans in {"": 2, "AMOUNT": 1, "PLACE": 1}.items():
        one = counts[label]
        for side in (0, 1):  # base and tuned
            found = (one.exact, one.other_bounds, one.other_label, one.missed)
            assert sum(each[side] for each in found) == spans * len(rows)
    answers = load(run.folder).answers([row.question for row in rows])
    assert answers is not None
    for row, answer in zip(rows, answers, strict=True):
        shown = "; ".join(f"{s['label']}[{s['start']}:{s['end']}] {s['text']}" for s in answer["spans"])
        assert row.tuned == shown
        assert (row.score_tuned == 1) == (row.tuned == row.gold)
    assert row_f1([[]], [[]]) == [1.0]
    write_reports(run.folder)
    assert "What became of the spans of the test rows" in (run.folder / "report.html").read_text()
    assert ".answers([" in (run.folder / "README.md").read_text()
    result = export(run.folder, ExportRequest.of("merged"), out=None, on_event=ignore)
    assert (result.compared, result.same_answers) == ("spans", 1.0)


def test_a_run_is_evaluated_on_new_rows_and_a_decoder_is_refused(tmp_path: Path):
    run = tune(recipe(tmp_path, orders(), "bert", objective="tag"), tmp_path / "run")
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in orders(20)))
    request = EvaluateRequest(model=str(run.folder), data=str(tmp_path / "new.jsonl"), against="base")
    found = evaluate(request, on_event=ignore)
    assert [task.metric for task in found.page.tasks][0] == "entity_f1"
    assert "base: logistic regression on the tokens of the frozen model" in found.page.notes
    with pytest.raises(
        RecipeError, match="objective tag: needs an encoder, .* is a decoder; nearest that works: model: minilm-l6"
    ):
        tune(recipe(tmp_path, orders(), "llama", objective="tag"), tmp_path / "other")
