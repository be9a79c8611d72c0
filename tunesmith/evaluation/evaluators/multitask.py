"""Several tasks in one model, each measured by its own yardstick; the first is the headline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.evaluation.evaluators.answers import AnswerPredictions
from tunesmith.evaluation.evaluators.base import Diagnostics, Evaluator
from tunesmith.evaluation.evaluators.perplexity import PerplexityPredictions
from tunesmith.evaluation.evaluators.preferences import PairScores
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.task_scores import ArmScore, Score, TaskScore
from tunesmith.models.policy import Policy
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.run_folder import task_dir

# The word for what each task's own model says, tuned by itself on as many of its rows.
SINGLE_TASK_MODEL = "single-task model"


@dataclass(frozen=True, slots=True)
class PredictionsByTask:
    """What a model said to the rows of each task."""

    parts: dict[str, AnswerPredictions | PerplexityPredictions | PairScores]

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(said.seconds for said in self.parts.values())


class MultitaskEvaluator:
    """Measures each task by its own yardstick."""

    shape: ClassVar[type[Any]] = PredictionsByTask

    def __init__(self, parts: Mapping[str, Evaluator[Any]]) -> None:
        self.parts = dict(parts)

    @property
    def headline(self) -> str:
        """The name of the first task."""
        return next(iter(self.parts))

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> PredictionsByTask:
        """What the base says at its best to each task's rows."""
        found = {}
        for name, yardstick in self.parts.items():
            policy.head = None  # one task's head is nothing to the next
            found[name] = yardstick.evaluate_base(prepared.parts[name], policy, task_dir(out, name))
        return PredictionsByTask(found)

    def predict(self, model: LocalModel) -> PredictionsByTask:
        """What a model of all tasks says to each task's rows."""
        return PredictionsByTask({name: yardstick.predict(model.at(name)) for name, yardstick in self.parts.items()})

    def gathered(self, model_of: Callable[[str], LocalModel]) -> PredictionsByTask:
        """What each task's own model says to its rows; one is made when the one before has spoken and is gone."""
        return PredictionsByTask({name: yardstick.predict(model_of(name)) for name, yardstick in self.parts.items()})

    def compare(self, base: PredictionsByTask, tuned: PredictionsByTask, *, name: str) -> list[TaskScore]:
        """Base against tuned, task by task under its own name."""
        return [
            score
            for task, yardstick in self.parts.items()
            for score in yardstick.compare(base.parts[task], tuned.parts[task], name=task)
        ]

    def score(self, said: PredictionsByTask, *, name: str) -> list[Score]:
        """One side, task by task under its own name."""
        found = ((yardstick, said.parts[task], task) for task, yardstick in self.parts.items())
        return [score for yardstick, one, task in found for score in yardstick.score(one, name=task)]

    def compare_arms(
        self,
        task: TaskScore,
        sides: tuple[PredictionsByTask, PredictionsByTask],
        controls: Mapping[str, PredictionsByTask],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """The baselines of the first task; models of single tasks are compared task by task, not here."""
        return self.baselines(self.headline, task, sides), []

    def baselines(
        self, name: str, task: TaskScore, sides: tuple[PredictionsByTask, PredictionsByTask]
    ) -> list[ArmScore]:
        """The base and the cheap ways of one task."""
        base, tuned = sides
        return self.parts[name].compare_arms(task, (base.parts[name], tuned.parts[name]), {})[0]

    def to_rows(self, sides: Mapping[str, PredictionsByTask]) -> list[dict[str, Any]]:
        """A line for each row of each task, which it names."""
        return [
            {"task": task, **line}
            for task, yardstick in self.parts.items()
            for line in yardstick.to_rows({name: said.parts[task] for name, said in sides.items()})
        ]

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, sides: tuple[PredictionsByTask, PredictionsByTask]
    ) -> Diagnostics:
        """What is measured beside the scores of the first task, and what of any task raises an alarm."""
        base, tuned = sides
        found = {
            name: one.diagnose(prepared.parts[name], model.at(name), (base.parts[name], tuned.parts[name]))
            for name, one in self.parts.items()
        }
        alarms = tuple(f"{name}: {alarm}" for name, worth in found.items() for alarm in worth.warnings)
        return replace(found[self.headline], warnings=alarms)
