"""What measures a model: one for each kind of objective, the same for base and tuned, on the same frozen rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from tunesmith.data.examples import Example
from tunesmith.evaluation.results import Calibration, Judgement, Pursuit, Style
from tunesmith.evaluation.tasks import Arm, Score, TaskScore
from tunesmith.inference.local import LocalModel
from tunesmith.model.policy import Policy
from tunesmith.recipe import AnyObjective
from tunesmith.workflows.prepare import Prepared


class Said(Protocol):
    """What a model said to the test rows: a shape that pydantic can write and read."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...


S = TypeVar("S", bound=Said)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The rows that a model is measured on: read by this objective, at most so many tokens of each."""

    objective: AnyObjective
    examples: Sequence[Example]
    limit: int
    seed: int = 0
    parts: Mapping[str, Frozen] = field(default_factory=dict)  # of several tasks, each by itself

    @classmethod
    def of(cls, prepared: Prepared) -> Frozen:
        """The test rows of a run."""
        recipe = prepared.recipe
        parts = {name: cls.of(part) for name, part in prepared.parts.items()}
        return cls(recipe.objective, prepared.test, recipe.data.max_tokens, recipe.seed, parts)


@dataclass(frozen=True, slots=True)
class Worth:
    """What is measured beside the scores."""

    calibration: Calibration | None = None
    style: Style | None = None
    judgement: Judgement | None = None
    pursuit: Pursuit | None = None
    alarms: tuple[str, ...] = ()


class Yardstick(Protocol[S]):
    """Measures by frozen rows. What a side said is all that it needs to know of that side."""

    shape: ClassVar[type[Any]]  # of what a side said

    def __init__(self, frozen: Frozen) -> None: ...

    def untuned(self, prepared: Prepared, policy: Policy, out: Path) -> S:
        """What the base says at its best, and what the cheap ways say; `out` is the run's folder."""
        ...

    def tuned(self, model: LocalModel) -> S:
        """What any other model says."""
        ...

    def tasks(self, base: S, tuned: S, *, name: str) -> list[TaskScore]:
        """Base against tuned, the headline first."""
        ...

    def scores(self, said: S, *, name: str) -> list[Score]:
        """One side alone, the headline first."""
        ...

    def arms(self, task: TaskScore, sides: tuple[S, S], controls: Mapping[str, S]) -> tuple[list[Arm], list[Arm]]:
        """Baselines, the base first, and controls; the tuned model's gains over all of them are one family of tests."""
        ...

    def lines(self, sides: Mapping[str, S]) -> list[dict[str, Any]]:
        """A line for each row: what was asked, what was right, and what each side, under its name, said."""
        ...

    def worth(self, prepared: Prepared, model: LocalModel, sides: tuple[S, S]) -> Worth:
        """What is measured beside the scores, on base and tuned."""
        ...
