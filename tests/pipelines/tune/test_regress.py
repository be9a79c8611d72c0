"""Regression from rows to a measured run, with tiny models: the run, its baselines, its export and a new file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import recipe, tune
from tunesmith.events import ignore
from tunesmith.inference.saved_model import load
from tunesmith.pipelines.evaluate import EvaluateRequest, evaluate
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.report.formatting import figure
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
WORDS = ("awful", "bad", "fine", "good", "great", "lovely")


def ratings(count: int = 60) -> list[dict[str, Any]]:
    """Rows whose number can be read off the text, far from 0 and 1."""
    return [{"text": f"{WORDS[i % 6]} {i}", "score": 100 + 20 * (i % 6) + i / 10} for i in range(count)]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "technique"), [("bert", "full"), ("llama", "lora")])
def test_a_number_is_learned_measured_and_exported(kind: str, technique: str, tmp_path: Path):
    made = recipe(
        tmp_path,
        ratings(),
        kind,
        objective="regress",
        technique=technique,
        schedule={"epochs": 20, "learning_rate": 0.01, "patience": 99},
        controls=True,
    )
    run = tune(made, tmp_path / "run")
    report = run.report
    assert [task.metric for task in report.tasks] == ["spearman", "mae", "r2"]
    assert [arm.name for arm in report.baselines] == ["base", "mean of the training rows", "TF-IDF + ridge regression"]
    assert [arm.name for arm in report.controls] == ["shuffled labels"]
    assert report.task.tuned > 0.8
    assert report.baselines[1].score == 0.0
    model = load(run.folder)
    rows = read_predictions(run.folder)
    predicted = model.predict([row.question for row in rows])
    assert predicted == pytest.approx([float(row.tuned) for row in rows], abs=1e-3)
    assert [row.score_tuned for row in rows] == pytest.approx(
        [-abs(float(row.tuned) - float(row.gold)) for row in rows], abs=1e-6
    )
    saved = json.loads((run.folder / "model" / "tunesmith.json").read_text())["objective"]
    assert 100 < saved["mean"] < 220
    assert saved["scale"] > 10
    write_reports(run.folder)
    page = (run.folder / "report.html").read_text()
    worst = min(rows, key=lambda row: row.score_base or 0.0)
    assert worst.score_base
    assert f"{figure(float(worst.base))} <span" in page  # not with all digits of a float
    assert f"absolute error {figure(-worst.score_base)}" in page
    card = (run.folder / "README.md").read_text()
    assert "print(model.predict(" in card
    assert "Spearman correlation" in card
    result = export(run.folder, ExportRequest.of("merged"), out=None, on_event=ignore)
    assert (result.compared, result.same_answers) == ("values", 1.0)


def test_a_run_is_evaluated_on_new_rows_against_the_base_as_the_run_did(tmp_path: Path):
    made = recipe(tmp_path, ratings(), "bert", objective="regress", technique="full")
    run = tune(made, tmp_path / "run")
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ratings(20)))
    request = EvaluateRequest(model=str(run.folder), data=str(tmp_path / "new.jsonl"), against="base")
    found = evaluate(request, on_event=ignore)
    assert [task.metric for task in found.page.tasks] == ["spearman", "mae", "r2"]
    assert "base: ridge regression on the frozen model" in found.page.notes
