"""Forecasts: corrected by earlier runs, with bounds that hold, in a history that survives damage."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.pipelines.plan import history as past
from tunesmith.pipelines.plan.forecast import BY_FORMULA, OTHER, SPREADS, correct, rough_forecast, t_quantile
from tunesmith.pipelines.plan.history import PhaseTiming, RunKind, RunTimings, append, machine_of, read_history
from tunesmith.pipelines.plan.rough_costs import ROUGH_SIZES, RoughRun

KIND = RunKind(model="a", family="encoder", objective="classify", technique="full")
MACHINE = {"processor": "p", "cores": "2", "device": "cpu", "dtype": "float32", "torch": "2"}
PRIOR = {name: SPREADS.get(name, OTHER) for name in ("loading", "base scoring", "training", "validation", "report")}
FORMULA = {"loading": 3.0, "base scoring": 10.0, "training": 60.0, "validation": 12.0, "report": 2.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def line(kind: RunKind = KIND, *, times: float = 2.0, machine: dict[str, str] | None = None) -> RunTimings:
    """A run that took so many times what the formula tells."""
    phases = {name: PhaseTiming(formula=seconds, actual=times * seconds) for name, seconds in FORMULA.items()}
    return RunTimings(machine=machine or MACHINE, kind=kind, phases=phases)


def test_without_a_history_the_formula_stands_with_wide_bounds():
    found = correct(FORMULA, KIND, [])
    assert found.basis == BY_FORMULA
    assert found.seconds == pytest.approx(sum(s * math.exp(PRIOR[name].mean) for name, s in FORMULA.items()))
    assert found.low < 0.6 * found.seconds
    assert found.high > 1.8 * found.seconds
    assert found.of("training", "report") == pytest.approx(60 * math.exp(PRIOR["training"].mean) + 2)


def test_one_earlier_run_of_the_same_kind_moves_the_forecast_most_of_the_way_and_narrows_it():
    formula, corrected = correct(FORMULA, KIND, []), correct(FORMULA, KIND, [line(times=5.0)])
    assert corrected.basis == "from 1 earlier run on this machine"
    assert corrected.seconds == pytest.approx(5 * sum(FORMULA.values()), rel=0.2)
    assert corrected.high / corrected.low < formula.high / formula.low


def test_the_closer_an_earlier_run_is_the_more_it_counts():
    others = [
        KIND.model_copy(update={"family": "decoder"}),
        KIND.model_copy(update={"technique": "lora"}),
        KIND.model_copy(update={"objective": "reward"}),
        KIND,
    ]
    seconds = [correct(FORMULA, KIND, [line(other, times=5.0)]).seconds for other in others]
    none = correct(FORMULA, KIND, []).seconds
    assert none < seconds[0] < seconds[1] < seconds[2] < seconds[3] < 5 * sum(FORMULA.values())


def test_runs_of_tiny_models_whose_time_is_mostly_fixed_costs_say_nothing_about_a_long_one():
    tiny = {name: PhaseTiming(formula=seconds / 1000, actual=0.3) for name, seconds in FORMULA.items()}
    runs = [RunTimings(machine=MACHINE, kind=KIND, phases=tiny)] * 30
    assert correct(FORMULA, KIND, runs) == correct(FORMULA, KIND, [])
    both = correct(FORMULA, KIND, [line(times=5.0), *runs])
    assert both == correct(FORMULA, KIND, [line(times=5.0)])
    assert both.basis == "from 1 earlier run on this machine"
    short = {name: seconds / 1000 for name, seconds in FORMULA.items()}
    assert correct(short, KIND, runs).of("training") == pytest.approx(0.3, rel=0.1)


def test_a_phase_that_is_over_takes_what_it_took():
    found = correct(FORMULA, KIND, [line()], done={"loading": 11.0})
    (loading,) = [phase for phase in found.phases if phase.name == "loading"]
    assert (loading.low, loading.seconds, loading.high) == (11.0, 11.0, 11.0)
    assert found.low > 11.0


def test_a_run_that_may_stop_early_has_a_lower_lower_bound_and_the_same_expectation():
    whole, early = correct(FORMULA, KIND, [line()]), correct(FORMULA, KIND, [line()], earliest=0.5)
    assert early.low < whole.low
    assert (early.seconds, early.high) == (whole.seconds, whole.high)


@pytest.mark.parametrize("earlier", [0, 1, 2, 5, 20])
def test_bounds_hold_in_nine_of_ten_simulated_runs(earlier: int):
    # The true ratios of a machine vary as assumed; runs vary around them together, as with its load, and by phase.
    rng = random.Random(earlier)
    within = 0
    for _ in range(400):
        truth = {name: rng.gauss(prior.mean, prior.formula) for name, prior in PRIOR.items()}
        runs = [_simulated(rng, truth) for _ in range(earlier + 1)]
        found = correct(FORMULA, KIND, runs[:-1])
        within += found.low <= sum(timing.actual for timing in runs[-1].phases.values()) <= found.high
    assert within >= 0.9 * 400


def test_the_second_forecast_is_closer_than_the_first():
    rng = random.Random(1)
    first = second = 0.0
    for _ in range(200):
        truth = {name: rng.gauss(prior.mean, prior.formula) for name, prior in PRIOR.items()}
        earlier, now = _simulated(rng, truth), _simulated(rng, truth)
        actual = sum(timing.actual for timing in now.phases.values())
        first += abs(correct(FORMULA, KIND, []).seconds / actual - 1)
        second += abs(correct(FORMULA, KIND, [earlier]).seconds / actual - 1)
    assert second < 0.8 * first


def _simulated(rng: random.Random, truth: dict[str, float]) -> RunTimings:
    load = rng.gauss(0.0, 0.15)
    ratios = {name: math.exp(log + load + rng.gauss(0.0, 0.15)) for name, log in truth.items()}
    phases = {name: PhaseTiming(formula=FORMULA[name], actual=FORMULA[name] * ratio) for name, ratio in ratios.items()}
    return RunTimings(machine=MACHINE, kind=KIND, phases=phases)


def test_the_quantile_is_that_of_students_distribution():
    from scipy import stats

    for freedom in (4.0, 8.0, 30.0):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.96, freedom), rel=0.01)


def test_the_history_keeps_its_last_lines_skips_damaged_ones_and_knows_its_machine(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(past, "KEPT", 3)
    assert read_history(MACHINE) == []
    for times in (1.0, 2.0, 3.0):
        assert append(line(times=times))
    file = own_cache / "timings.jsonl"
    file.write_text('{"half a li\n[1]\n' + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert append(line(times=4.0, machine={**MACHINE, "dtype": "bfloat16"}))
    assert [round(one.phases["report"].actual) for one in read_history(MACHINE)] == [4, 6]
    assert len(read_history({**MACHINE, "dtype": ""})) == 3
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3


def test_a_cache_that_cannot_be_written_is_no_error(own_cache: Path):
    own_cache.write_text("a file where a folder should be")
    assert not append(line())
    assert read_history(MACHINE) == []


def test_a_rough_forecast_needs_no_torch_and_learns_from_earlier_runs():
    run = RoughRun(size=ROUGH_SIZES["minilm-l6"], objective="classify", technique="full", train=400, validation=50,
                   test=50, characters=300.0)  # fmt: skip
    first = rough_forecast(run)
    assert first.basis == BY_FORMULA
    assert 0 < first.low < first.seconds < first.high
    slow = {phase.name: PhaseTiming(formula=phase.formula, actual=3 * phase.seconds) for phase in first.phases}
    assert append(RunTimings(machine=machine_of(dtype="bfloat16"), kind=KIND, phases=slow))
    again = rough_forecast(run)
    assert again.basis == "from 1 earlier run on this machine"
    assert again.seconds > 2 * first.seconds
    other = replace(run, size=ROUGH_SIZES["smollm2-135m"])
    assert rough_forecast(other).basis == "from 1 earlier run of another model family on this machine"
    code = "import sys, tunesmith.pipelines.plan.forecast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_decoder_takes_longer_than_an_encoder_and_more_rows_longer_than_few():
    def seconds(model: str, train: int) -> float:
        return rough_forecast(
            RoughRun(size=ROUGH_SIZES[model], objective="classify", train=train, test=50, characters=300.0)
        ).seconds

    assert seconds("minilm-l6", 200) < seconds("minilm-l6", 2000) < seconds("smollm2-135m", 2000)
