"""The clock of a run: counts phases, updates the forecast while it runs, and records how long each phase took."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.config import Recipe
from tunesmith.events import Event, EventHandler, ForecastUpdated, StageStarted, StepFinished
from tunesmith.phases import Phases
from tunesmith.pipelines.plan.forecast import PhaseForecast, RunForecast
from tunesmith.pipelines.plan.history import PhaseTiming, RunTimings, append
from tunesmith.pipelines.plan.phase_costs import kind_of, machine
from tunesmith.report.schema import Forecast, ForecastPhase
from tunesmith.training.prepare import TrainingContext

# Phases that a resumed run does again; it finds the results of the others in its folder.
REPEATED = frozenset(
    {
        "loading",
        "general ability after",
        "thinking after",
        "test scoring",
        "distillation",
        "diagnostics",
        "saving",
        "report",
    }
)
# Phases whose work is proportional to the steps that are taken, so that they end together.
STEPPED = ("training", "validation", "checkpoints")
# Seconds between two updates of the forecast (each is a line in a log), and the shortest remaining time to report.
INTERVAL = 15.0
SHORTEST_REST = 5.0
# Name of everything that is not forecast by itself.
OTHER = "other"
# Weight of the forecast of a step, in steps of this run.
FORECAST_STEPS = 3.0
# Share of the run that its forecast counts for, when the pace of this run corrects the phases to come.
FORECAST_SHARE = 0.2


# Phases that are announced with a number. Some recipes have fewer.
PREPARE = "reading the rows and the model"
TEXTS = "preparing general rows and the masked-LM head"
BASE = "evaluating the base model"
CONTROLS = "control runs"
TRAINING = "training"
TUNED = "evaluating the tuned model"
REPORT = "saving the model and the report"


def numbered_phases(recipe: Recipe) -> list[str]:
    """Return the phases of a run that are announced with a number, in their order."""
    texts = any(task.objective.produces == "likelihood" for task in recipe.tasks.values())
    optional = {TEXTS: texts, CONTROLS: recipe.controls or bool(recipe.teacher.model)}
    names = (PREPARE, TEXTS, BASE, CONTROLS, TRAINING, TUNED, REPORT)
    return [name for name in names if optional.get(name, True)]


@dataclass(slots=True)
class RunClock:
    """Handles the events of a run: adds the count to each phase, and emits `ForecastUpdated`."""

    on_event: EventHandler
    names: Sequence[str]  # phases with a number
    clock: Callable[[], float] = time.perf_counter
    forecast: RunForecast | None = None
    phases: Phases = field(init=False)
    step: int = 0
    steps: int = 0
    scored: float = 1.0  # share of the test rows that the tuned model answered
    _first_step: int = 0  # step that this process started after
    _over: set[str] = field(default_factory=set)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self.phases = Phases(self.clock, self._ended)

    def expect(self, forecast: RunForecast) -> None:
        """Set the forecast of the run, which has just been reported."""
        self.forecast, self._last = forecast, self.clock()

    def start(self, name: str) -> None:
        """Announce a phase; one that this run does not have is ignored."""
        if name in self.names:
            self.on_event(StageStarted(name, self.names.index(name) + 1, len(self.names)))

    def __call__(self, event: Event) -> None:
        """Pass an event on, and follow the steps of training."""
        self.on_event(event)
        if isinstance(event, StepFinished) and self.phases.current == "training":
            if not self.steps:
                self._first_step = event.step - 1
                self._over |= self._before_training()  # a resumed run does not repeat them
            self.step, self.steps = event.step, event.steps
            self.update()

    def _ended(self, name: str) -> None:
        if name in STEPPED and name != "training":
            return  # it comes again after some steps
        self._over |= set(STEPPED) if name == "training" else {name}
        self.update()

    def _before_training(self) -> set[str]:
        """Return the forecast phases that precede training."""
        names = [phase.name for phase in self.forecast.phases] if self.forecast else []
        return set(names[: names.index("training")]) if "training" in names else set()

    @property
    def share_done(self) -> float:
        """Return the share of training that this process has done."""
        return (self.step - self._first_step) / self.steps if self.steps else 0.0

    def update(self) -> None:
        """Emit the remaining seconds, unless they were emitted shortly before or the run is about to end."""
        if self.forecast is None or self.clock() - self._last < INTERVAL:
            return
        rest = remaining(self.forecast, self)
        if rest.seconds_left >= SHORTEST_REST:
            self._last = self.clock()
            self.on_event(rest)

    def seconds_of(self, name: str) -> float:
        """Return the seconds of a phase so far."""
        return self.phases.so_far().get(name, 0.0)

    def is_over(self, name: str) -> bool:
        """Return whether a phase will not come again."""
        return name in self._over


def remaining(forecast: RunForecast, run: RunClock) -> ForecastUpdated:
    """Return the rest of a run: the forecast of the phases to come, corrected by the pace of this run."""
    over = [phase for phase in forecast.phases if run.is_over(phase.name)]
    share = run.step / run.steps if run.steps else 0.0
    taken = run.phases.so_far()
    computed = [
        (phase.seconds, taken[phase.name]) for phase in over if phase.low < phase.seconds and phase.name in taken
    ]
    known = FORECAST_SHARE * forecast.seconds
    pace = (sum(actual for _, actual in computed) + known) / (sum(expected for expected, _ in computed) + known)
    seconds = low = high = 0.0
    for phase in forecast.phases:
        if run.is_over(phase.name):
            continue
        rest, certainty = pace * phase.seconds, 1.0
        if phase.name in STEPPED and run.steps:
            rest, certainty = _rest_of_steps(phase, run, share)
        else:
            rest = max(0.0, rest - run.seconds_of(phase.name))
        reach = (phase.high / phase.seconds) ** certainty
        seconds += rest
        low += rest / reach
        high += rest * reach
    return ForecastUpdated(seconds, low, high)


def _rest_of_steps(phase: PhaseForecast, run: RunClock, share: float) -> tuple[float, float]:
    """Return the seconds that a phase has left, and how much of the uncertainty of its forecast remains, 0 to 1."""
    taken = run.share_done * run.steps
    expected = phase.seconds / run.steps
    if phase.name != "training":  # validations come in bursts, so that their rate is only known at the end
        return expected * run.steps * (1 - share), 1.0
    per_step = (FORECAST_STEPS * expected + run.seconds_of(phase.name)) / (FORECAST_STEPS + taken)
    return per_step * run.steps * (1 - share), (FORECAST_STEPS / (FORECAST_STEPS + taken)) ** 0.5


def compared(run: RunClock, *, seconds: float, resumed: bool) -> Forecast | None:
    """Compare the forecast of a run with the seconds it took; None if the run had no forecast.

    The duration of a resumed run is not comparable with the forecast.
    """
    forecast = run.forecast
    if forecast is None:
        return None
    actual = run.phases.so_far()
    phases = [
        ForecastPhase(name=phase.name, forecast_seconds=phase.seconds, actual_seconds=actual.get(phase.name, 0.0))
        for phase in forecast.phases
    ]
    rest = max(0.0, seconds - sum(phase.actual_seconds for phase in phases))
    phases.append(ForecastPhase(name=OTHER, forecast_seconds=0.0, actual_seconds=rest))
    return Forecast(
        seconds=forecast.seconds,
        low=forecast.low,
        high=forecast.high,
        basis=forecast.basis,
        actual_seconds=seconds,
        within=None if resumed else forecast.low <= seconds <= forecast.high,
        phases=phases,
    )


def record(run: RunClock, prepared: TrainingContext, *, seconds: float, resumed: bool) -> None:
    """Append what the phases of a finished run took to the history of this machine.

    Of a resumed run, only what this process really did is recorded.
    """
    forecast = run.forecast
    if forecast is None:
        return
    timings = {}
    for phase in forecast.phases:
        if phase.name in run.phases.reused:  # wholly or in part: how much was computed here is unknown
            continue
        done = run.share_done if phase.name in STEPPED else float(not resumed or phase.name in REPEATED)
        done *= run.scored if phase.name == "test scoring" else 1.0
        if done > 0 and (actual := run.seconds_of(phase.name)) > 0:
            timings[phase.name] = PhaseTiming(formula=done * phase.formula, actual=actual)
    rates = prepared.machine.gemm_gflops
    dtypes = {"products": prepared.machine.dtype, "products32": "float32"}
    append(
        RunTimings(
            machine=machine(prepared),
            kind=kind_of(prepared, prepared.recipe.technique),
            phases=timings,
            pace={name: 1e9 * rates.get(dtype, rates["float32"]) for name, dtype in dtypes.items()},
            seconds=seconds,
            forecast=None if resumed else (forecast.low, forecast.seconds, forecast.high),
        )
    )
