"""The test rows of a verdict: all by default, or chosen by time before anything is scored, whole groups at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.noise.paired import clopper_pearson
from bench.noise.stages import levels
from tests.pipelines.conftest import recipe, reviews, tune
from tests.pipelines.tune.test_multitask import mixed
from tests.pipelines.tune.test_tune import stop_after
from tunesmith.config import Verdict, make_recipe
from tunesmith.errors import RecipeError
from tunesmith.evaluation.evaluators import rowwise
from tunesmith.evaluation.evaluators.answers import AnswerPredictions
from tunesmith.evaluation.predict import AnswerSet
from tunesmith.events import ignore
from tunesmith.metrics.resampling import STAGES, mcnemar
from tunesmith.metrics.significance import compare_paired, expected_to_detect
from tunesmith.pipelines.plan import forecast, verdict_rows
from tunesmith.pipelines.plan.history import PhaseTiming, RunKind, RunTimings
from tunesmith.pipelines.plan.plan import plan_recipe
from tunesmith.pipelines.plan.verdict_rows import FEWEST_ROWS
from tunesmith.pipelines.tune.preview import preview
from tunesmith.pipelines.tune.verdict_rows import FILE, choose_rows, pinned
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions
from tunesmith.report.run_diff import diff_runs
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
    assert costs(run.report)[0].plain == f"rows of the verdict: {found.sentence}"
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
    assert len(chosen.rows[""]) == 30
    rows = [row.where for row in read_predictions(run.folder)]
    assert rows == [row.where for row in read_order(made, run.folder)][: len(rows)]


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


def test_plan_and_preview_count_the_rows_that_the_run_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verdict_rows, "AUTO_ROWS", 25)
    made = recipe(tmp_path, reviews(160), "bert", **MANY | {"schedule": QUICK | {"epochs": 0.01}})
    notes: list[Any] = []
    choose_rows(prepare(made, on_event=ignore), tmp_path, notes.append, timed=False)
    few, seen = plan_recipe(made, on_event=ignore, timed=False), preview(made)
    every = plan_recipe(made.model_copy(update={"verdict": Verdict(minutes="all")}), on_event=ignore, timed=False)
    assert notes[0].text in few.notes
    assert notes[0].text in seen.notes
    assert few.options[0].whole_seconds.expected < every.options[0].whole_seconds.expected


def test_every_task_keeps_its_share_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verdict_rows, "FEWEST_ROWS", 14)
    run = tune(mixed(tmp_path, tasks=("mood", "count"), verdict=1e-9, retention=False), tmp_path / "run")
    rows = read_predictions(run.folder)
    found = run.report.scored_rows
    assert found is not None
    assert found.scored == len(rows) < found.available
    assert {row.task for row in rows} == {"mood", "count"}
    assert [task.n for task in run.report.tasks if task.metric in ("accuracy", "rouge_l")][0] < 14


def test_earlier_runs_that_count_for_half_of_the_rows_only_do_not_make_rows_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The shorter a phase by formula, the more it is corrected: half of the rows are forecast to take twice as long.
    kind = RunKind(model="", family="bert", objective="classify", technique="lora")
    timings = [PhaseTiming(formula=10**-step, actual=10**step) for step in np.arange(-9, 15, 0.1).tolist()]
    history = [
        RunTimings(machine={}, kind=kind, phases=dict.fromkeys(verdict_rows.SCORING, timing)) for timing in timings
    ]
    monkeypatch.setattr(forecast, "read_history", lambda _: history)
    made = recipe(tmp_path, reviews(160), "bert", **MANY, verdict=1e-9)
    assert len(choose_rows(prepare(made, on_event=ignore), tmp_path, ignore, timed=True).test) == FEWEST_ROWS


def test_questions_become_fewer_before_rows_do(tmp_path: Path):
    made = recipe(tmp_path, reviews(160), "llama", **MANY | {"retention": {"questions": 300, "texts": 0}}, verdict=1e-9)
    prepared = choose_rows(prepare(made, on_event=ignore), tmp_path, ignore, timed=True)
    extent = json.loads((tmp_path / FILE).read_text())["extent"]
    assert prepared.recipe.retention.questions == extent["questions"] == 100
    assert "drops of 0.089 in 100 general questions" in extent["sentence"]


def test_a_group_counts_as_if_its_rows_changed_together():
    alone, together = expected_to_detect([1] * 100, 0.5), expected_to_detect([4] * 100, 0.5)
    assert alone == pytest.approx(together) == pytest.approx(0.1415, abs=1e-3)  # (1.984 + 0.845) * 0.5 / 10


@pytest.mark.parametrize(("value", "minutes"), [("all", "all"), (5, 5.0), ({"minutes": 0.5}, 0.5), ({}, "auto")])
def test_a_recipe_names_minutes_or_all(value: Any, minutes: Any):
    raw = {"model": "tiny", "data": {"train": "x.jsonl"}, "objective": "classify", "verdict": value}
    assert make_recipe(raw, place="recipe.yaml")[0].verdict.minutes == minutes


@pytest.mark.parametrize("value", [True, False, {"minutes": True}])
def test_a_switch_is_not_a_time(value: Any):
    raw = {"model": "tiny", "data": {"train": "x.jsonl"}, "objective": "classify", "verdict": value}
    with pytest.raises(RecipeError, match=r"^recipe\.yaml: verdict\.minutes: expected a number.*got (true|false).*$"):
        make_recipe(raw, place="recipe.yaml")


def test_another_time_is_another_run_and_the_default_the_same_as_ever(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert")
    timed, default = (made.model_copy(update={"verdict": Verdict(minutes=m)}) for m in (1.0, "auto"))
    assert identities(default, tmp_path) == identities(made, tmp_path) != identities(timed, tmp_path)


# ------------------------------------------------------------------ stages


def test_a_clear_result_needs_half_of_the_rows_and_every_part_of_the_run_has_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verdict_rows, "FEWEST_ROWS", 48)
    schedule = QUICK | {"epochs": 6, "learning_rate": 0.01}
    made = recipe(tmp_path, reviews(160), "bert", **MANY | {"schedule": schedule}, verdict=1e-9, technique="full")
    run = tune(made, tmp_path / "run")
    found, task = run.report.scored_rows, run.report.task
    assert found is not None
    assert (found.scored, found.level, task.verdict) == (24, STAGES[0.5], "better")
    rows = read_predictions(run.folder)
    assert [row.where for row in rows] == [row.where for row in read_order(made, run.folder)][:24]
    assert task.n == run.report.baselines[0].n == 24
    assert "24 were scored, and tested at 0.0031 as one of 3 stages" in costs(run.report)[0].plain
    again = compare_paired(*([float(getattr(row, side) == row.gold) for row in rows] for side in ("base", "tuned")))
    assert task.p_value == pytest.approx(again.p_value * 0.05 / STAGES[0.5])
    assert task.ci95[0] < again.ci95[0] < again.ci95[1] < task.ci95[1] or task.ci95[1] == 1


def test_runs_that_scored_other_parts_of_the_test_rows_are_compared_on_what_they_share(tmp_path: Path):
    every, some = (
        tune(recipe(tmp_path, reviews(160), "bert", **MANY, verdict=verdict), tmp_path / f"run {verdict}")
        for verdict in ("all", 1e-9)
    )
    found = diff_runs(every.folder, some.folder)
    assert found.n == some.report.task.n < every.report.task.n
    assert (found.delta, found.changed) == (0.0, ())
    assert diff_runs(some.folder, every.folder).n == found.n


def read_order(made: Any, out: Path) -> Any:
    """Return the chosen test rows in the order of the stages."""
    return pinned(out).of(prepare(made, on_event=ignore)).test


def test_predictions_are_cut_and_joined_row_by_row():
    def said(first: int, last: int) -> AnswerPredictions:
        texts = [f"answer {i}" for i in range(first, last)]
        shares = [{"a": i / 10} for i in range(first, last)]
        return AnswerPredictions(
            AnswerSet(texts, "how", float(last - first), [True] * len(texts), shares), {"x": texts}
        )

    assert rowwise(lambda lists: lists[0] + lists[1], said(0, 3), said(3, 8)) == said(0, 8)
    assert rowwise(lambda lists: lists[0][:3], said(0, 8), share=3 / 8) == said(0, 3)


def test_equal_models_are_called_better_or_worse_in_less_than_one_run_of_twenty_whichever_stage_decides():
    assert levels(list(STAGES)) == pytest.approx(list(STAGES.values()), rel=5e-3)
    rng = np.random.default_rng(0)
    called = {"none": 0, "none, uncorrected": 0, "some": 0, "some, at once": 0}
    for _ in range(4_000):
        none, some = (rng.choice([-1.0, 0.0, 1.0], 120, p=(0.125 - e, 0.75, 0.125 + e)) for e in (0.0, 0.06))
        called["none"] += decided(none, STAGES)
        called["none, uncorrected"] += decided(none, dict.fromkeys(STAGES, 0.05))
        called["some"] += decided(some, STAGES)
        called["some, at once"] += decided(some, {1.0: 0.05})
    assert clopper_pearson(called["none"], 4_000)[1] < 0.05 < clopper_pearson(called["none, uncorrected"], 4_000)[0]
    assert called["some"] > 0.97 * called["some, at once"] > 0.6 * 4_000


def decided(change: NDArray[np.float64], plan: dict[float, float]) -> bool:
    """Return whether the test of one of the stages of a plan rejects; `change` has the sign of each row."""
    return any(mcnemar(change[: int(share * len(change))]) <= level for share, level in plan.items())
