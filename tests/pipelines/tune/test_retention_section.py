"""The recipe's section `retention`: how much of the general ability is measured, and what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import recipe, reviews, tune
from tunesmith.config import Recipe, Retention, make_recipe
from tunesmith.errors import RecipeError
from tunesmith.evaluation.retention import items, spread
from tunesmith.report.html import write_reports
from tunesmith.report.terminal import costs
from tunesmith.training.run_folder import identities

pytestmark = pytest.mark.usefixtures("small_world")
QUICK = {"epochs": 1, "probe": False}


def line(folder: Path, made: Recipe) -> str:
    return costs(tune(made, folder).report)[0].plain


def test_switched_off_nothing_is_measured_and_the_report_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.pipelines.tune.tune.measure", lambda *_, **__: pytest.fail("measured"))
    made = recipe(tmp_path, reviews(), "llama", schedule=QUICK, retention=False)
    run = tune(made, tmp_path / "run")
    assert run.report.retention is None
    assert costs(run.report)[0].plain == "general ability: not measured (retention: false)"
    write_reports(run.folder)
    for page in ("report.html", "README.md"):
        assert "retention: false" in (run.folder / page).read_text(encoding="utf-8")


def test_an_encoder_has_no_general_ability_and_the_report_says_so(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule=QUICK)
    reason = f"({made.model} is an encoder, which predicts no next token)"
    assert line(tmp_path / "run", made) == f"general ability: not measured {reason}"


@pytest.mark.parametrize(
    ("section", "has_loss", "questions"),
    [({"questions": 0}, True, 0), ({"texts": 0}, False, 6), ({"questions": 2, "texts": 1}, True, 2)],
)
def test_each_part_is_bounded_by_itself(section: dict[str, int], has_loss: bool, questions: int, tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", schedule=QUICK, retention=section)
    run = tune(made, tmp_path / "run")
    retention = run.report.retention
    assert retention is not None
    assert (retention.rise is not None, retention.probe_n) == (has_loss, questions)
    shown = costs(run.report)[0].plain
    assert ("nats per token" in shown, "general questions" in shown) == (has_loss, bool(questions))
    write_reports(run.folder)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert ("On text unrelated to the task" in page) is has_loss


def test_a_gate_on_general_text_needs_general_text(tmp_path: Path):
    raw = {"model": "tiny", "data": {"train": "x.jsonl"}, "objective": "classify", "gates": {"max_general_nats": 0.1}}
    with pytest.raises(RecipeError, match=r"retention.texts is 0; set retention.texts=12, or remove the gate") as told:
        make_recipe({**raw, "retention": False}, place="recipe.yaml")
    assert "\n" not in str(told.value)
    assert make_recipe({**raw, "retention": {"questions": 0}}, place="recipe.yaml")


@pytest.mark.parametrize(
    ("value", "section"),
    [(False, Retention(questions=0, texts=0)), (True, Retention()), ({"questions": 8}, Retention(questions=8))],
)
def test_true_and_false_are_short_forms(value: Any, section: Retention):
    raw = {"model": "tiny", "data": {"train": "x.jsonl"}, "objective": "classify", "retention": value}
    assert make_recipe(raw, place="recipe.yaml")[0].retention == section


def test_runs_that_measure_everything_keep_the_identity_they_had(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama")
    bounded = made.model_copy(update={"retention": Retention(questions=8)})
    written = made.model_copy(update={"retention": Retention(questions=400, texts=12)})
    assert identities(made, tmp_path) == identities(written, tmp_path) != identities(bounded, tmp_path)


def test_fewer_questions_are_spread_over_all_fields():
    every = items()
    assert spread(every, 400) == every
    assert {item.field for item in spread(every, 16)} == {item.field for item in every}
