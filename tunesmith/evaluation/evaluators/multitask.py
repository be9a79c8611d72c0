"""Evaluation of a model of several tasks: each by its own evaluator; the first is the headline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.evaluation.evaluators.base import Diagnostics, Evaluator
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.task_scores import ArmScore, Score, TaskScore
from tunesmith.models.policy import Policy
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.run_folder import task_dir

# Name of the control in which each task has a separate model, tuned on as many of its rows.
SINGLE_TASK_MODEL = "single-task model"


@dataclass(frozen=True, slots=True)
class PredictionsByTask:
    """Predictions for the rows of each task."""

    parts: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Return how long the model took for all tasks."""
        return float(sum(predictions.seconds for predictions in self.parts.values()))


class MultitaskEvaluator(Evaluator[PredictionsByTask]):
    """Evaluates each task by its own evaluator."""

    shape: ClassVar[type[Any]] = PredictionsByTask

    def __init__(self, evaluators: Mapping[str, Evaluator[Any]]) -> None:
        self.tasks = dict(evaluators)

    def to_json(self, predictions: PredictionsByTask) -> Any:
        """Return the predictions of each task as its evaluator writes them."""
        return {"parts": {name: one.to_json(predictions.parts[name]) for name, one in self.tasks.items()}}

    def from_json(self, value: Any) -> PredictionsByTask:
        """Return the predictions that `to_json` has written."""
        return PredictionsByTask({name: one.from_json(value["parts"][name]) for name, one in self.tasks.items()})

    @property
    def headline(self) -> str:
        """Return the name of the first task."""
        return next(iter(self.tasks))

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> PredictionsByTask:
        """Compute the best predictions of the base model for each task."""
        parts = {}
        for name, evaluator in self.tasks.items():
            policy.head = None  # the head of the task before
            parts[name] = evaluator.evaluate_base(prepared.tasks[name], policy, task_dir(out, name))
        return PredictionsByTask(parts)

    def predict(self, model: LocalModel) -> PredictionsByTask:
        """Compute the predictions of a multitask model."""
        return PredictionsByTask({name: evaluator.predict(model.at(name)) for name, evaluator in self.tasks.items()})

    def gathered(self, model_of: Callable[[str], LocalModel]) -> PredictionsByTask:
        """Compute the predictions of one model per task; each is released before the next is made."""
        return PredictionsByTask({name: evaluator.predict(model_of(name)) for name, evaluator in self.tasks.items()})

    def compare(self, base: PredictionsByTask, tuned: PredictionsByTask, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model, task by task under the task's own name."""
        return [
            score
            for task, evaluator in self.tasks.items()
            for score in evaluator.compare(base.parts[task], tuned.parts[task], name=task)
        ]

    def score(self, predictions: PredictionsByTask, *, name: str) -> list[Score]:
        """Score one model, task by task under the task's own name."""
        return [
            score
            for task, evaluator in self.tasks.items()
            for score in evaluator.score(predictions.parts[task], name=task)
        ]

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: PredictionsByTask,
        tuned: PredictionsByTask,
        controls: Mapping[str, PredictionsByTask],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare the tuned model with the baselines of the first task; single-task models are compared by task."""
        name = self.headline
        arms, _ = self.tasks[name].compare_arms(task, base=base.parts[name], tuned=tuned.parts[name], controls={})
        return arms, []

    def to_rows(self, predictions: Mapping[str, PredictionsByTask]) -> list[dict[str, Any]]:
        """Return one record per row of each task, with the name of the task."""
        return [
            {"task": task, **record}
            for task, evaluator in self.tasks.items()
            for record in evaluator.to_rows({name: by_task.parts[task] for name, by_task in predictions.items()})
        ]

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: PredictionsByTask, tuned: PredictionsByTask
    ) -> Diagnostics:
        """Return the diagnostics of the first task, with the warnings of all tasks."""
        results = {
            name: evaluator.diagnose(
                prepared.tasks[name], model.at(name), base=base.parts[name], tuned=tuned.parts[name]
            )
            for name, evaluator in self.tasks.items()
        }
        warnings = tuple(f"{name}: {warning}" for name, result in results.items() for warning in result.warnings)
        return replace(results[self.headline], warnings=warnings)
