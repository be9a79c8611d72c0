"""The interface of evaluators: one per kind of objective, for base and tuned model on the same held-out rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from tunesmith.data.examples.types import Example
from tunesmith.evaluation.results import (
    BASE,
    Calibration,
    PreferenceDiagnostics,
    RewardDiagnostics,
    SpanCounts,
    Style,
    ToolCallCounts,
)
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.significance import PairedComparison
from tunesmith.metrics.task_scores import ArmScore, Score, TaskScore, as_task
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import SINGLE_TASK, Objective
from tunesmith.training.prepare import TrainingContext


class Predictions(Protocol):
    """The output of a model for the evaluation rows, in a form that pydantic can write and read."""

    @property
    def seconds(self) -> float:
        """Return how long the model took."""
        ...


O_co = TypeVar("O_co", bound=Objective, covariant=True)
S = TypeVar("S", bound=Predictions)


@dataclass(frozen=True, slots=True)
class EvalSet(Generic[O_co]):
    """The held-out rows of a run with their objective."""

    objective: O_co  # encodes and scores the rows
    examples: Sequence[Example]  # the rows
    limit: int  # tokens of the longest row
    seed: int = 0  # seed of masked words
    subtasks: Mapping[str, EvalSet[Any]] = field(default_factory=dict)  # multitask: the rows of each task

    @property
    def tasks(self) -> Mapping[str, EvalSet[Any]]:
        """Return the rows of every task by name; a single task has the name `SINGLE_TASK`."""
        return self.subtasks or {SINGLE_TASK: self}

    @classmethod
    def of(cls, prepared: TrainingContext) -> EvalSet[Any]:
        """Return the test rows of a run."""
        recipe = prepared.recipe
        subtasks = {name: EvalSet.of(task) for name, task in prepared.subtasks.items()}
        return EvalSet(recipe.objective, prepared.test, recipe.data.max_tokens, recipe.seed, subtasks)


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Measurements besides the scores; None where one does not apply."""

    calibration: Calibration | None = None
    style: Style | None = None
    preference_diagnostics: PreferenceDiagnostics | None = None
    reward_diagnostics: RewardDiagnostics | None = None
    tool_calls: ToolCallCounts | None = None
    span_counts: Mapping[str, SpanCounts] = field(default_factory=dict)  # by label; of all labels with an empty one
    warnings: tuple[str, ...] = ()


class Evaluator(ABC, Generic[S]):
    """Evaluates models on held-out rows. Scores need only the predictions, not the model.

    In all methods, `prepared` is the run, `base` and `tuned` are the predictions of both models, and `name` is that of
    the task in the report.
    """

    shape: ClassVar[type[Any]]  # the class of the predictions
    probed: ClassVar[str] = ""  # the way of `probe`; empty if there is none

    @abstractmethod
    def __init__(self, eval_set: EvalSet[Any]) -> None: ...

    def to_json(self, predictions: S) -> Any:
        """Return predictions as JSON values."""
        return TypeAdapter(self.shape).dump_python(predictions, mode="json")

    def from_json(self, value: Any) -> S:
        """Return the predictions that `to_json` has written."""
        read: S = TypeAdapter(self.shape).validate_python(value)
        return read

    @abstractmethod
    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> S:
        """Compute the best predictions of the base model without tuning, and those of the baselines."""

    def probe(self, model: LocalModel, train: Sequence[Example], *, seed: int = 0) -> S:
        """Predict by a probe of a model that is not tuned, if the objective has `probes_base` but no prompts for it.

        Args:
            model: the base model with the objective.
            train: the rows that the probe is fitted to.
            seed: divides them for the choice of its settings.
        """
        raise NotImplementedError(f"{type(self).__name__}: the base model is not probed")

    @abstractmethod
    def predict(self, model: LocalModel) -> S:
        """Compute the predictions of any other model."""

    @abstractmethod
    def compare(self, base: S, tuned: S, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model, the headline metric first."""

    @abstractmethod
    def score(self, predictions: S, *, name: str) -> list[Score]:
        """Score one model, the headline metric first."""

    @abstractmethod
    def compare_arms(
        self, task: TaskScore, *, base: S, tuned: S, controls: Mapping[str, S]
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare the tuned model by the headline `task` with the baselines, the base model first, and the controls.

        Returns:
            Baselines and controls. p-values are adjusted over all of them together.
        """

    @abstractmethod
    def to_rows(self, predictions: Mapping[str, S]) -> list[dict[str, Any]]:
        """Return one record per row: prompt, reference, and what each named model predicted."""

    def diagnose(self, prepared: TrainingContext, model: LocalModel, *, base: S, tuned: S) -> Diagnostics:
        """Measure what the scores do not show, for base and tuned model; nothing by default."""
        return Diagnostics()


class RowPredictions(Predictions, Protocol):
    """The values that a model gives for the rows, [N], and for the base model also those of the baselines."""

    @property
    def given(self) -> Sequence[Any]:
        """Return the values of the model."""
        ...

    @property
    def ways(self) -> Mapping[str, Sequence[Any]]:
        """Return the values of each baseline by its name."""
        ...


class RowMetrics(Protocol):
    """A module of `metrics` that scores by several metrics: see its functions."""

    compare: Callable[..., PairedComparison]
    score: Callable[..., Score]
    arms: Callable[..., list[ArmScore]]


W = TypeVar("W", bound=RowPredictions)


class RowEvaluator(Evaluator[W]):
    """Compares models by several metrics of what they give for each row."""

    row_metrics: ClassVar[RowMetrics]
    details: ClassVar[Mapping[str, str]]  # of baselines and controls by name; that of the base is `probed`

    _gold: Any  # references, [N]
    _groups: Sequence[str] | None  # of the rows, [N]
    _metrics: Sequence[str]  # names, the headline first

    def compare(self, base: W, tuned: W, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model by all metrics."""
        compare, groups = self.row_metrics.compare, self._groups
        return [
            as_task(compare(metric, self._gold, base.given, tuned.given, groups=groups), name=name, metric=metric)
            for metric in self._metrics
        ]

    def score(self, predictions: W, *, name: str) -> list[Score]:
        """Score one model by all metrics."""
        score, groups = self.row_metrics.score, self._groups
        return [score(metric, self._gold, predictions.given, name=name, groups=groups) for metric in self._metrics]

    def compare_arms(
        self, task: TaskScore, *, base: W, tuned: W, controls: Mapping[str, W]
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare the tuned model with base model, baselines and controls."""
        ways = {BASE: base.given, **base.ways, **{name: control.given for name, control in controls.items()}}
        scores = self.row_metrics.arms(task.metric, self._gold, ways, tuned.given, groups=self._groups)
        return divided(scores, controls, self.details_of(ways))

    def details_of(self, ways: Mapping[str, Any]) -> dict[str, str]:
        """Return what is stated with base, baselines and controls, from what each gives for the rows."""
        return {BASE: self.probed, **self.details}


def rowwise(change: Callable[[Sequence[list[Any]]], list[Any]], *parts: Any, share: float = 1.0) -> Any:
    """Return predictions with `change(lists)` in place of each list of `parts`, and a share of all their seconds."""
    first = parts[0]
    if isinstance(first, list):
        return change(parts)
    if isinstance(first, dict):
        return {name: rowwise(change, *(part[name] for part in parts), share=share) for name in first}
    if is_dataclass(first) and not isinstance(first, type):
        lists = {f.name: [getattr(part, f.name) for part in parts] for f in fields(first)}
        return replace(first, **{name: rowwise(change, *each, share=share) for name, each in lists.items()})
    return share * sum(parts) if isinstance(first, float) else first


def divided(
    arms: Sequence[ArmScore], controls: Container[str], details: Mapping[str, str]
) -> tuple[list[ArmScore], list[ArmScore]]:
    """Divide arms into baselines and controls, each with the details of its name."""
    arms = [arm.model_copy(update={"detail": details.get(arm.name, "")}) for arm in arms]
    return [arm for arm in arms if arm.name not in controls], [arm for arm in arms if arm.name in controls]
