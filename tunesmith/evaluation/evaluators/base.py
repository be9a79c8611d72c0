"""What measures a model: one for each kind of objective, the same for base and tuned, on the same frozen rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from tunesmith.config import AnyObjective
from tunesmith.data.examples.types import Example
from tunesmith.evaluation.results import Calibration, PreferenceDiagnostics, RewardDiagnostics, Style
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.task_scores import ArmScore, Score, TaskScore
from tunesmith.models.policy import Policy
from tunesmith.training.prepare import TrainingContext


class Predictions(Protocol):
    """What a model said to the test rows: a shape that pydantic can write and read."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...


S = TypeVar("S", bound=Predictions)


@dataclass(frozen=True, slots=True)
class EvalSet:
    """The rows that a model is measured on: read by this objective, at most so many tokens of each."""

    objective: AnyObjective
    examples: Sequence[Example]
    limit: int
    seed: int = 0
    parts: Mapping[str, EvalSet] = field(default_factory=dict)  # of several tasks, each by itself

    @classmethod
    def of(cls, prepared: TrainingContext) -> EvalSet:
        """The test rows of a run."""
        recipe = prepared.recipe
        parts = {name: cls.of(part) for name, part in prepared.parts.items()}
        return cls(recipe.objective, prepared.test, recipe.data.max_tokens, recipe.seed, parts)


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What is measured beside the scores."""

    calibration: Calibration | None = None
    style: Style | None = None
    preference_diagnostics: PreferenceDiagnostics | None = None
    reward_diagnostics: RewardDiagnostics | None = None
    warnings: tuple[str, ...] = ()


class Evaluator(Protocol[S]):
    """Measures by frozen rows. What a side said is all that it needs to know of that side."""

    shape: ClassVar[type[Any]]  # of what a side said

    def __init__(self, eval_set: EvalSet) -> None: ...

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> S:
        """What the base says at its best, and what the cheap ways say; `out` is the run's folder."""
        ...

    def predict(self, model: LocalModel) -> S:
        """What any other model says."""
        ...

    def compare(self, base: S, tuned: S, *, name: str) -> list[TaskScore]:
        """Base against tuned, the headline first."""
        ...

    def score(self, said: S, *, name: str) -> list[Score]:
        """One side alone, the headline first."""
        ...

    def compare_arms(
        self, task: TaskScore, sides: tuple[S, S], controls: Mapping[str, S]
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Baselines, the base first, and controls; the tuned model's gains over all of them are one family of tests."""
        ...

    def to_rows(self, sides: Mapping[str, S]) -> list[dict[str, Any]]:
        """A line for each row: what was asked, what was right, and what each side, under its name, said."""
        ...

    def diagnose(self, prepared: TrainingContext, model: LocalModel, sides: tuple[S, S]) -> Diagnostics:
        """What is measured beside the scores, on base and tuned."""
        ...
