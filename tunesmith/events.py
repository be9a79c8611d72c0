"""Progress events of a run: what a callback receives.

    def print_losses(event: Event) -> None:
        if isinstance(event, StepFinished):
            print(event.step, event.loss)

    tunesmith.tune("reviews.csv", callback=print_losses)

`kind` is the value of `"event"` in the dictionaries that the deprecated `listen=` received.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.progress import Progress

if TYPE_CHECKING:
    from tunesmith.data.splits.load import DataFacts


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage of the command began, such as `loading smollm2-135m`.

    A stage with a number begins a phase of the command; stages without one follow within it.
    """

    kind: ClassVar[str] = "stage"
    text: str
    number: int = 0  # from 1; 0 for a stage within a phase
    total: int = 0  # phases of the command


@dataclass(frozen=True, slots=True)
class TrainingStarted(StageStarted):
    """The training loop began; it checks `should_stop` after every step."""

    text: str = "training"


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know, within the current stage."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, slots=True)
class MachineChosen:
    """Device, dtype and threads were chosen; the text gives the reason."""

    kind: ClassVar[str] = "machine"
    text: str


@dataclass(frozen=True, slots=True)
class DataLoaded:
    """The rows were read, split and encoded."""

    kind: ClassVar[str] = "data"
    facts: DataFacts


@dataclass(frozen=True, slots=True)
class OverfitChecked:
    """The model can learn a few rows: mean loss before and after some steps on them, in nats per unit."""

    kind: ClassVar[str] = "probe"
    first: float
    last: float
    steps: int


@dataclass(frozen=True, slots=True)
class StepFinished:
    """One optimizer step: loss and gradient norm, tokens of the step, seconds, speed and memory of training so far."""

    kind: ClassVar[str] = "step"
    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the objective, such as `reward` and `kl`
    peak_bytes: int = 0  # as in the report of the run; 0: unknown


@dataclass(frozen=True, slots=True)
class Validated:
    """The validation loss after a step, lower is better; infinite if the policy violates a gate."""

    kind: ClassVar[str] = "step"
    step: int
    validation_loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    task_losses: Mapping[str, float] = field(default_factory=dict)  # by task
    gradient_cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by pair of tasks


@dataclass(frozen=True, slots=True)
class Resumed:
    """Training continues after this step; 0 for a new run."""

    kind: ClassVar[str] = "resumed"
    step: int


@dataclass(frozen=True, slots=True)
class ForecastUpdated:
    """The expected rest of a run, by what was measured in it so far; both bounds should hold in 9 of 10 runs."""

    kind: ClassVar[str] = "forecast"
    seconds_left: float
    low: float
    high: float


Event = (
    StageStarted
    | Progress
    | Note
    | MachineChosen
    | DataLoaded
    | OverfitChecked
    | StepFinished
    | Validated
    | Resumed
    | ForecastUpdated
)
EventHandler = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Discard an event: the default callback."""


def _names(event: Event | DataFacts) -> list[str]:
    return [item.name for item in fields(event)]


def journal_record(event: StepFinished | Validated) -> dict[str, Any]:
    """Return the line of `journal.jsonl` for a step or a validation: its fields, then its metrics."""
    mappings = ("metrics", "task_losses", "gradient_cosines")
    record = {name: getattr(event, name) for name in _names(event) if name not in mappings}
    if not record.get("peak_bytes"):
        record.pop("peak_bytes", None)
    record |= event.metrics
    if isinstance(event, Validated):
        record |= {gradient_cosine_key(*pair): cosine for pair, cosine in event.gradient_cosines.items()}
        record |= {task_loss_key(task): loss for task, loss in event.task_losses.items()}
    return record


def task_loss_key(task: str) -> str:
    """Return the key that the validation loss of a task has in `journal.jsonl`; a single task has no name."""
    return f"validation_loss of {task}" if task else "validation_loss"


def gradient_cosine_key(first: str, second: str) -> str:
    """Return the key that the gradient cosine of two tasks has in `journal.jsonl`."""
    return f"gradients of {first} and {second}"


def as_dict(event: Event) -> dict[str, Any]:
    """Return an event in the form that the deprecated `listen=` of `tunesmith.tune` received."""
    if isinstance(event, StepFinished | Validated):
        return {"event": event.kind, **journal_record(event)}
    owner = event.facts if isinstance(event, DataLoaded) else event
    record = {"event": event.kind, **{name: getattr(owner, name) for name in _names(owner)}}
    if isinstance(event, StageStarted) and not event.number:  # as before phases were numbered
        del record["number"], record["total"]
    return record
