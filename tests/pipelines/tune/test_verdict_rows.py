"""The test rows of a verdict: all by default, or chosen by time before anything is scored, whole groups at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import recipe, reviews, tune
from tests.pipelines.tune.test_multitask import mixed
from tests.pipelines.tune.test_tune import stop_after
from tunesmith.config import Verdict, make_recipe
from tunesmith.events import ignore
from tunesmith.metrics.significance import expected_to_detect
from tunesmith.pipelines.tune import verdict_rows
from tunesmith.pipelines.tune.verdict_rows import FEWEST_ROWS, FILE, choose_rows, pinned
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions
from tunesmith.report.terminal import costs
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.prepare import prepare
from tunesmith.training.run_folder import identities

pytestmark = pytest.mark.usefixtures("small_world")
QUICK = {"epochs": 1, "probe": False}
MANY = {"data": {"test": 0.5}, "schedule": QUICK, "retention": False}


def grouped(count: int = 160) -> list[dict[str, Any]]:
    return [row | {"source": f"source {i // 4}"} for i, row in enumerate(reviews(count))]


def test_too_short_a_time_scores_the_fewest_rows_in_whole_groups_and_every_page_says_so(tmp_path: Path):
    data = {"test": 0.5, "group": "source"}
    made = recipe(tmp_path, grouped(), "bert", **MANY | {"data": data, "verdict": {"minutes": 1e-9}})
    run = tune(made, tmp_path / "run")
    found, rows = run.report.scored_rows, read_predictions(run.folder)
    assert found is not None
    assert len(rows) == run.report.task.n == found.scored <= FEWEST_ROWS < found.available == run.report.data.test
    assert {len([row for row in rows if row.group == group]) for group in {row.group for row in rows}} == {4}
    assert costs(run.report)[0].plain == f"scored: {found.sentence}"
    write_reports(run.folder)
    for page in ("report.html", "README.md"):
        assert f"{found.scored} of {found.available} test rows" in (run.folder / page).read_text(encoding="utf-8")


def test_a_long_time_scores_every_row(tmp_path: Path):
    run = tune(recipe(tmp_path, reviews(), "bert", **MANY, verdict=1e6), tmp_path / "run")
    assert run.report.scored_rows is None
    assert run.report.task.n == run.report.data.test
    assert pinned(run.folder) == verdict_rows.ChosenRows()


def test_a_resumed_run_scores_the_rows_that_were_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = recipe(tmp_path, reviews(160), "bert", **MANY, verdict=1e-9)
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "run", stop=stop_after(2))
    chosen = pinned(tmp_path / "run")
    monkeypatch.setattr(verdict_rows, "FEWEST_ROWS", 40)
    run = tune(made, tmp_path / "run")
    assert pinned(run.folder) == chosen
    assert len(read_predictions(run.folder)) == len(chosen.rows[""]) == 30


@pytest.mark.parametrize(("epochs", "scored"), [(100, 80), (0.01, 25)])
def test_by_default_rows_are_left_out_if_scoring_costs_more_than_training(
    epochs: float, scored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verdict_rows, "AUTO_ROWS", 25)
    made = recipe(tmp_path, reviews(160), "bert", **MANY | {"schedule": QUICK | {"epochs": epochs}})
    prepared = prepare(made, on_event=ignore)
    notes: list[Any] = []
    assert len(choose_rows(prepared, tmp_path, notes.append, timed=False).test) == scored
    assert (tmp_path / FILE).exists() == bool(notes) == (scored < 80)
    every = made.model_copy(update={"verdict": Verdict(minutes="all")})
    assert len(choose_rows(prepare(every, on_event=ignore), tmp_path / "other", ignore, timed=False).test) == 80


def test_every_task_keeps_its_share_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verdict_rows, "FEWEST_ROWS", 14)
    run = tune(mixed(tmp_path, tasks=("mood", "count"), verdict=1e-9, retention=False), tmp_path / "run")
    rows = read_predictions(run.folder)
    found = run.report.scored_rows
    assert found is not None
    assert found.scored == len(rows) < found.available
    assert {row.task for row in rows} == {"mood", "count"}
    assert [task.n for task in run.report.tasks if task.metric in ("accuracy", "rouge_l")][0] < 14


def test_questions_become_fewer_before_rows_do(tmp_path: Path):
    made = recipe(tmp_path, reviews(160), "llama", **MANY | {"retention": {"questions": 300, "texts": 0}}, verdict=1e-9)
    prepared = choose_rows(prepare(made, on_event=ignore), tmp_path, ignore, timed=True)
    extent = json.loads((tmp_path / FILE).read_text())["extent"]
    assert prepared.recipe.retention.questions == extent["questions"] == 100
    assert 0.08 < extent["drop"] < 0.1


def test_a_group_counts_as_if_its_rows_changed_together():
    alone, together = expected_to_detect([1] * 100, 0.5), expected_to_detect([4] * 100, 0.5)
    assert alone == pytest.approx(together) == pytest.approx(0.1415, abs=1e-3)  # (1.984 + 0.845) * 0.5 / 10


@pytest.mark.parametrize(("value", "minutes"), [("all", "all"), (5, 5.0), ({"minutes": 0.5}, 0.5), ({}, "auto")])
def test_a_recipe_names_minutes_or_all(value: Any, minutes: Any):
    raw = {"model": "tiny", "data": {"train": "x.jsonl"}, "objective": "classify", "verdict": value}
    assert make_recipe(raw, place="recipe.yaml")[0].verdict.minutes == minutes


def test_another_time_is_another_run_and_the_default_the_same_as_ever(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert")
    timed, default = (made.model_copy(update={"verdict": Verdict(minutes=m)}) for m in (1.0, "auto"))
    assert identities(default, tmp_path) == identities(made, tmp_path) != identities(timed, tmp_path)
