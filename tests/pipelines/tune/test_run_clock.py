"""The clock of a run: numbers, the remaining time, and what is recorded for later forecasts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import recipe, reviews, tune
from tunesmith.data.user_cache import cache_dir
from tunesmith.events import Event, ForecastUpdated, StageStarted, StepFinished
from tunesmith.phases import phase, timing
from tunesmith.pipelines.plan.forecast import SPREADS, PhaseForecast, RunForecast, correct
from tunesmith.pipelines.plan.history import RunKind
from tunesmith.pipelines.tune.run_clock import RunClock, remaining
from tunesmith.training.callbacks import Interrupted

pytestmark = pytest.mark.usefixtures("small_world")


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def forecast(**seconds: float) -> RunForecast:
    """A forecast of these phases, each with bounds of half and double."""
    phases = [
        PhaseForecast(name=name.replace("_", " "), formula=one, seconds=one, low=one / 2, high=2 * one)
        for name, one in seconds.items()
    ]
    total = sum(seconds.values())
    return RunForecast(seconds=total, low=total / 2, high=2 * total, basis="by formula", phases=phases)


def step(number: int, steps: int) -> StepFinished:
    return StepFinished(number, steps, 0.5, 1e-3, 1.0, 8, 0.1, 80.0)


def test_the_rest_shrinks_with_each_phase_and_follows_the_pace_of_the_run():
    clock, heard = Clock(), list[Event]()
    run = RunClock(heard.append, ["base scoring", "training"], clock)
    run.forecast = forecast(base_scoring=20.0, training=60.0, test_scoring=20.0)
    with timing(run.phases):
        with phase("base scoring"):
            clock.now += 40  # twice what was forecast
        (first,) = heard
        assert isinstance(first, ForecastUpdated)
        assert 80 < first.seconds_left < 160
        assert first.low < first.seconds_left < first.high
        with phase("training"):
            for number in range(1, 11):
                clock.now += 12
                run(step(number, 10))
            assert remaining(run.forecast, run).seconds_left < 45
    assert run.share_done == 1.0


def test_the_rest_of_a_resumed_run_has_none_of_the_phases_before_training():
    clock = Clock()
    run = RunClock(lambda event: None, [], clock)
    run.expect(forecast(base_scoring=500.0, training=100.0, test_scoring=20.0))
    with timing(run.phases), phase("training"):
        clock.now += 10
        run(step(6, 10))  # the first five steps, and the base model, are of the process before
        assert run.forecast
        assert remaining(run.forecast, run).seconds_left == pytest.approx(60)


def test_a_phase_is_announced_with_its_number_and_one_that_the_run_lacks_is_not():
    heard: list[Any] = []
    run = RunClock(heard.append, ["loading", "training"])
    for name in ("loading", "control runs", "training"):
        run.start(name)
    run(StageStarted("within training"))
    assert [(event.text, event.number, event.total) for event in heard] == [
        ("loading", 1, 2),
        ("training", 2, 2),
        ("within training", 0, 0),
    ]


def lines() -> list[dict[str, Any]]:
    file = cache_dir() / "timings.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def test_updates_are_seldom_and_stop_before_the_end():
    clock, heard = Clock(), list[Event]()
    run = RunClock(heard.append, [], clock)
    run.expect(forecast(training=100.0))
    with timing(run.phases), phase("training"):
        for number in range(1, 101):
            clock.now += 1
            run(step(number, 100))
    updates = [event for event in heard if isinstance(event, ForecastUpdated)]
    assert [round(event.seconds_left) for event in updates] == [85, 70, 55, 40, 25, 10]


def test_the_bounds_of_the_rest_hold_in_nine_of_ten_simulated_runs():
    rng, within, names = random.Random(4), 0, ("base scoring", "training", "test scoring")
    formula = {"base scoring": 20.0, "training": 60.0, "test scoring": 20.0}
    kind = RunKind(model="a", family="encoder", objective="classify", technique="full")
    for _ in range(300):
        truth = {name: rng.gauss(SPREADS[name].mean, SPREADS[name].formula) for name in names}
        actual = {name: formula[name] * math.exp(truth[name] + rng.gauss(0.0, SPREADS[name].noise)) for name in names}
        clock = Clock()
        run = RunClock(lambda event: None, [], clock, forecast=correct(formula, kind, []))
        with timing(run.phases), phase("base scoring"):
            clock.now += actual["base scoring"]
        assert run.forecast is not None
        rest = remaining(run.forecast, run)
        within += rest.low <= actual["training"] + actual["test scoring"] <= rest.high
    assert within >= 0.9 * 300


def test_a_finished_run_reports_forecast_and_actual_and_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.pipelines.tune.run_clock.INTERVAL", 0.0)
    monkeypatch.setattr("tunesmith.pipelines.tune.run_clock.SHORTEST_REST", 0.0)
    before, heard = len(lines()), list[Event]()
    made = recipe(tmp_path, reviews(), "bert")
    run = tune(made, tmp_path / "run", on_event=heard.append)
    found = run.report.forecast
    assert found is not None
    assert found.within is (found.low <= found.actual_seconds <= found.high)
    actual = {one.name: one.actual_seconds for one in found.phases}
    assert {"loading", "base scoring", "training", "validation", "test scoring", "report"} <= set(actual)
    assert all(actual[name] for name in ("loading", "base scoring", "training", "validation"))
    assert sum(actual.values()) == pytest.approx(found.actual_seconds, abs=0.5)
    assert sum(one.forecast_seconds for one in found.phases) == pytest.approx(found.seconds)
    assert any(isinstance(event, ForecastUpdated) for event in heard)
    numbers = [event.number for event in heard if isinstance(event, StageStarted) and event.number]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers[-1] == next(event.total for event in heard if isinstance(event, StageStarted) and event.number)
    (line,) = lines()[before:]
    assert line["kind"]["objective"] == "classify"
    assert line["kind"]["family"] == "encoder"
    assert "rows.jsonl" not in json.dumps(line)
    assert tune(made, tmp_path / "run").reused
    assert len(lines()) == before + 1


def test_the_second_run_is_forecast_from_the_first(tmp_path: Path):
    made = recipe(tmp_path, reviews(44), "bert")
    tune(made, tmp_path / "one")
    again = tune(made.model_copy(update={"seed": 1}), tmp_path / "two").report.forecast
    assert again is not None
    assert again.basis.endswith("on this machine")
    (training,) = [one for one in again.phases if one.name == "training"]
    assert training.forecast_seconds == pytest.approx(training.actual_seconds, rel=3.0)


def test_a_resumed_run_records_only_what_it_did_itself(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"epochs": 4, "save_steps": 1})
    taken = []
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "run", on_event=taken.append,
             stop=lambda: any(isinstance(event, StepFinished) for event in taken))  # fmt: skip
    before = len(lines())
    found = tune(made, tmp_path / "run").report.forecast
    assert found is not None
    assert found.within is None
    (line,) = lines()[before:]
    assert "base scoring" not in line["phases"]
    assert line["forecast"] is None
    planned = json.loads((tmp_path / "run" / "forecast.json").read_text())
    (training,) = [one["formula"] for one in planned["phases"] if one["name"] == "training"]
    assert 0.5 * training < line["phases"]["training"]["formula"] < training
