"""The forecast of a whole run, phase by phase: seconds by formula, corrected by earlier runs on this machine.

The log of actual over computed seconds of a phase is modelled as normal, with a mean that depends on the run: close
kinds of runs have close means. Runs of other families inform the mean for this family a little, runs of the same model,
technique and objective almost fix it. Without any earlier run the formula is used, with wide bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tunesmith.pipelines.plan.history import RunKind, RunTimings, machine_of, read_history
from tunesmith.pipelines.plan.report import Bounds, CostPrediction
from tunesmith.pipelines.plan.rough_costs import RoughRun, rough_seconds

if TYPE_CHECKING:
    from tunesmith.config import AnyTechnique
    from tunesmith.pipelines.plan.cost_model import Estimate
    from tunesmith.pipelines.plan.phase_costs import RunWork
    from tunesmith.pipelines.plan.profile import RunProfile
    from tunesmith.training.prepare import TrainingContext

BY_FORMULA = "by formula"
TIMED_NOW = "from steps timed now"


@dataclass(frozen=True, slots=True)
class Spread:
    """Distribution of the log of actual over computed seconds."""

    formula: float  # standard deviation without any earlier run
    noise: float  # standard deviation between two runs of the same kind
    mean: float = 0.0  # without any earlier run


# Phases by what they do. `bench/PLAN.json`: training by formula took 1.0 to 2.5 times as long, at the median twice;
# small matrix products are slower than the measured ones.
TRAINING = Spread(formula=0.5, noise=0.2, mean=0.7)
COMPUTING = Spread(formula=0.5, noise=0.2)
GENERATING = Spread(formula=0.8, noise=0.35, mean=0.5)  # the length of answers is unknown
OTHER = Spread(formula=0.7, noise=0.3)
SPREADS: Mapping[str, Spread] = {
    "replay samples": GENERATING,
    "masked-LM head": COMPUTING,
    "base scoring": GENERATING,
    "general ability before": COMPUTING,
    "controls": TRAINING,
    "reference log-probabilities": COMPUTING,
    "training": TRAINING,
    "validation": COMPUTING,
    "general ability after": COMPUTING,
    "test scoring": GENERATING,
    "thinking before": GENERATING,
    "thinking after": GENERATING,
}
# Standard deviation of the mean between a kind of run and the next narrower kind.
NARROWER = (0.0, 0.3, 0.2, 0.15)
# Runs at each distance that count, the latest ones.
MOST = (5, 8, 12, 20)
# A run does not count for a phase that is computed to take this many times as long: the time of a few rows, or of a
# tiny model, is mostly fixed costs. Without this limit, many runs of random models forecast hours for a run of minutes.
MOST_TIMES_AS_LONG = 50.0
# Observations that the prior noise counts for.
PRIOR_RUNS = 4.0
# Correlation of the errors of two phases: a busy machine slows all of them.
TOGETHER = 0.6
# Share of a run from which a phase decides how certain the whole is.
LARGE = 0.2
# Quantile of each bound: both bounds hold in 9 of 10 runs, with a reserve for what the model leaves out.
QUANTILE = 0.96


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PhaseForecast(_Part):
    """One phase of a run."""

    name: str
    formula: float  # seconds before the correction
    seconds: float
    low: float
    high: float


class RunForecast(_Part):
    """Expected seconds of a whole run; `low` and `high` should hold in 9 of 10 runs."""

    seconds: float
    low: float
    high: float
    basis: str
    phases: list[PhaseForecast]

    def of(self, *names: str) -> float:
        """Return the expected seconds of some phases; 0 for one that the run does not have."""
        return sum(phase.seconds for phase in self.phases if phase.name in names)

    def prediction(self, technique: str, cost: Estimate) -> CostPrediction:
        """Return the cost of a technique with the seconds of this forecast."""
        training = next(phase for phase in self.phases if phase.name == "training")
        return CostPrediction(
            technique=technique,
            trainable=cost.trainable,
            memory=cost.memory,
            seconds=Bounds(low=training.low, expected=training.seconds, high=training.high),
            how=self.basis,
        )


@dataclass(frozen=True, slots=True)
class Correction:
    """The effect of earlier runs on the forecast of one phase."""

    mean: float  # of the log ratio
    deviation: float  # of the log ratio of the next run
    freedom: float  # degrees of freedom of the deviation

    def reach(self) -> float:
        """Return the factor between the expected seconds and each bound."""
        return math.exp(self.deviation * t_quantile(self.freedom))


def forecast_run(
    prepared: TrainingContext,
    profile: RunProfile,
    *,
    technique: AnyTechnique | None = None,
    work: RunWork | None = None,
    timed: Sequence[RunTimings] = (),
    measured: Mapping[str, float] | None = None,
) -> RunForecast:
    """Forecast a whole run of a technique on this machine.

    Args:
        prepared: the run.
        profile: its workload and the speed of the machine.
        technique: in place of the recipe's own.
        work: `count_run(prepared, profile)`, if several techniques are forecast.
        timed: steps that were timed in this process.
        measured: seconds of phases that are over, such as loading.

    Returns:
        The forecast, corrected by earlier runs and by the timed steps.
    """
    from tunesmith.pipelines.plan.phase_costs import count_run, kind_of, machine, phase_seconds

    technique = technique or prepared.recipe.technique
    work = work or count_run(prepared, profile)
    return correct(
        phase_seconds(work, profile, technique),
        kind_of(prepared, technique),
        [*read_history(machine(prepared)), *timed],
        done=measured,
        earliest=work.earliest,
        timed_now=bool(timed),
    )


def rough_forecast(run: RoughRun) -> RunForecast:
    """Forecast a whole run from statistics of its rows alone, without torch, a model or a measurement."""
    history = read_history(machine_of())
    pace = next((line.pace for line in reversed(history) if line.pace), {})
    kind = RunKind(model="", family=run.size.family, objective=run.objective, technique=run.technique)
    return correct(rough_seconds(run, pace), kind, history)


def correct(
    formula: Mapping[str, float],
    kind: RunKind,
    history: Sequence[RunTimings],
    *,
    done: Mapping[str, float] | None = None,
    earliest: float = 1.0,
    timed_now: bool = False,
) -> RunForecast:
    """Correct the computed seconds of each phase by earlier runs on the same machine, the oldest first.

    Phases in `done` are over. `earliest` is the share of training after which the run may stop at the soonest.
    """
    done = done or {}
    phases, corrections = [], []
    # Phases without a formula that are over, such as the check of a model that is new here, come first.
    for name in [*(name for name in done if name not in formula), *formula]:
        seconds = low = high = done.get(name, 0.0)
        if name not in done:
            correction = correction_of(name, kind, _informing(name, formula[name], history))
            seconds, reach = formula[name] * math.exp(correction.mean), correction.reach()
            low, high = seconds / reach, seconds * reach
            corrections.append((seconds, correction))
        phases.append(PhaseForecast(name=name, formula=formula.get(name, 0.0), seconds=seconds, low=low, high=high))
    over = sum(phase.seconds for phase in phases if phase.name in done)
    expected = sum(seconds for seconds, _ in corrections)
    reach = _combined(corrections).reach()
    stopped = sum(phase.seconds for phase in phases if phase.name in ("training", "validation")) * (1 - earliest)
    return RunForecast(
        seconds=over + expected,
        low=over + (expected - stopped) / reach,
        high=over + expected * reach,
        basis=_basis(kind, _informing("training", formula.get("training", 0.0), history), timed_now=timed_now),
        phases=phases,
    )


def _informing(phase: str, seconds: float, history: Sequence[RunTimings]) -> list[RunTimings]:
    """Return the lines that count for a phase that is computed to take `seconds`; see `MOST_TIMES_AS_LONG`."""

    def informs(line: RunTimings) -> bool:
        timing = line.phases.get(phase)
        return line.source != "run" or timing is None or timing.formula * MOST_TIMES_AS_LONG >= seconds

    return [line for line in history if informs(line)]


def _combined(corrections: Sequence[tuple[float, Correction]]) -> Correction:
    """Return the correction of a sum of phases, given as (seconds, correction)."""
    total = sum(seconds for seconds, _ in corrections)
    if not total:
        return Correction(0.0, 0.0, math.inf)
    errors = [seconds / total * correction.deviation for seconds, correction in corrections]
    variance = (1 - TOGETHER) * sum(error**2 for error in errors) + TOGETHER * sum(errors) ** 2
    large = [correction.freedom for seconds, correction in corrections if seconds >= LARGE * total]
    return Correction(0.0, math.sqrt(variance), min(large, default=PRIOR_RUNS))


def correction_of(phase: str, kind: RunKind, history: Sequence[RunTimings]) -> Correction:
    """Return what earlier runs say about a phase: a chain of normal models, from all runs to those of the same kind."""
    spread = SPREADS.get(phase, OTHER)
    ratios: list[list[float]] = [[] for _ in NARROWER]
    for line in reversed(history):
        timing = line.phases.get(phase)
        closeness = _closeness(kind, line.kind)
        if timing and timing.formula > 0 and timing.actual > 0 and len(ratios[closeness]) < MOST[closeness]:
            ratios[closeness].append(math.log(timing.actual / timing.formula))
    noise, freedom = _noise(spread, ratios)
    mean, variance = spread.mean, spread.formula**2
    for closeness, observed in enumerate(ratios):
        variance += NARROWER[closeness] ** 2
        beyond = sum(step**2 for step in NARROWER[closeness + 1 :])
        for ratio in observed:
            gain = variance / (variance + beyond + noise**2)
            mean += gain * (ratio - mean)
            variance *= 1 - gain
    return Correction(mean, math.sqrt(variance + noise**2), freedom)


def _noise(spread: Spread, ratios: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the standard deviation between runs of one kind, pooled with the prior, and its degrees of freedom."""
    squares, count = PRIOR_RUNS * spread.noise**2, PRIOR_RUNS
    closest = ratios[-1]
    if len(closest) > 1:
        centre = sum(closest) / len(closest)
        squares += sum((ratio - centre) ** 2 for ratio in closest)
        count += len(closest) - 1
    return math.sqrt(squares / count), count


def _closeness(kind: RunKind, other: RunKind) -> int:
    """Return 3 for the same model, technique and objective, 2 for family and technique, 1 for the family, else 0."""
    if other.family != kind.family:
        return 0
    if other.technique != kind.technique:
        return 1
    same = other.objective == kind.objective and kind.model in ("", other.model)
    return 3 if same else 2


def _basis(kind: RunKind, history: Sequence[RunTimings], *, timed_now: bool) -> str:
    """Describe what a forecast is based on."""
    if timed_now:
        return TIMED_NOW
    runs = [line for line in history if line.source == "run"]
    if not runs:
        return "from steps timed before on this machine" if history else BY_FORMULA
    closest = max(_closeness(kind, line.kind) for line in runs)
    count = sum(_closeness(kind, line.kind) == closest for line in runs)
    of = "" if closest else " of another model family"
    return f"from {count} earlier run{'s' * (count > 1)}{of} on this machine"


def t_quantile(freedom: float) -> float:
    """Return the quantile of Student's t distribution at `QUANTILE`; expansion 26.7.5 of Abramowitz and Stegun."""
    z = NormalDist().inv_cdf(QUANTILE)
    if math.isinf(freedom):
        return z
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
