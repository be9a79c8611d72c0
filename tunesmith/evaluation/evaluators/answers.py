"""Measured by answers: labels or texts, beside what the rows say is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.evaluation.diagnostics import SHUFFLED, baselines, frozen_head_control, reliability, style_report
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet
from tunesmith.evaluation.predict import (
    AnswersByArm,
    AnswerSet,
    BaseModelPrompter,
    answer,
    question,
    reference_answers,
)
from tunesmith.evaluation.results import BASE
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.task_scores import BESIDE, ArmScore, Score, TaskScore, arms, score, task_score
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Instruct
from tunesmith.training.prepare import TrainingContext

DETAILS = {SHUFFLED: "same recipe, answers dealt out at random; journal in control"}
# Metrics of the whole set that need all answers at once and are slow to draw intervals for.
ALONE_ONLY = ("bleu",)


@dataclass(frozen=True, slots=True)
class AnswerPredictions:
    """A model's answers; of the base also what the cheap ways and a head alone answer."""

    answers: AnswerSet
    ways: AnswersByArm = field(default_factory=dict)
    controls: AnswersByArm = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long the answers took."""
        return self.answers.seconds


class AnswerEvaluator:
    """Scores answers by the objective's metric."""

    shape: ClassVar[type[Any]] = AnswerPredictions

    def __init__(self, eval_set: EvalSet[Classify | Instruct]) -> None:
        self._objective = eval_set.objective
        self._examples = list(eval_set.examples)
        self._limit = eval_set.limit

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> AnswerPredictions:
        """The base's answers by its best plain prompt or a linear probe, and those of the cheap ways."""
        untuned = BaseModelPrompter(prepared.base, policy, prepared.template, self._objective, self._limit)
        split, test = prepared.loaded.split, self._examples
        answers = untuned.answer(train=split.train, validation=split.validation, test=test)
        controls = frozen_head_control(prepared, untuned.model(), test) if prepared.recipe.controls else {}
        return AnswerPredictions(answers, baselines(prepared, test), controls)

    def predict(self, model: LocalModel) -> AnswerPredictions:
        """A model's answers."""
        return AnswerPredictions(answer(model, self._examples))

    def compare(self, base: AnswerPredictions, tuned: AnswerPredictions, *, name: str) -> list[TaskScore]:
        """Base against tuned by the headline and what is reported beside it."""
        right, clusters = reference_answers(self._examples), groups_of(self._examples)
        answers = (base.answers.given, tuned.answers.given)
        metrics = (metric for metric in self._metrics() if metric not in ALONE_ONLY)
        return [task_score(metric, right, answers, name=name, groups=clusters) for metric in metrics]

    def score(self, said: AnswerPredictions, *, name: str) -> list[Score]:
        """One side by all metrics."""
        right, clusters, given = reference_answers(self._examples), groups_of(self._examples), said.answers.given
        return [score(metric, right, given, name=name, groups=clusters) for metric in self._metrics()]

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: AnswerPredictions,
        tuned: AnswerPredictions,
        controls: Mapping[str, AnswerPredictions],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """The base, the cheap ways and the controls beside the tuned answers."""
        meaningless = {**base.controls, **{name: said.answers.given for name, said in controls.items()}}
        ways = {BASE: base.answers.given, **base.ways, **meaningless}
        details = {BASE: base.answers.how, **DETAILS}
        right, clusters = reference_answers(self._examples), groups_of(self._examples)
        found = [
            arm.model_copy(update={"detail": details.get(arm.name, "")})
            for arm in arms(task.metric, right, ways, tuned.answers.given, groups=clusters)
        ]
        return [arm for arm in found if arm.name not in meaningless], [arm for arm in found if arm.name in meaningless]

    def to_rows(self, sides: Mapping[str, AnswerPredictions]) -> list[dict[str, Any]]:
        """Each row with what was right and what the sides answered, with the last side's probabilities."""
        probabilities = list(sides.values())[-1].answers.probabilities
        found = []
        for i, (example, right) in enumerate(zip(self._examples, reference_answers(self._examples), strict=True)):
            line: dict[str, Any] = {"where": example.where, "group": example.group}
            line |= {"question": question(example), "gold": right}
            line |= {name: said.answers.given[i] for name, said in sides.items()}
            if probabilities:
                line["probabilities"] = {label: round(p, 5) for label, p in probabilities[i].items()}
            found.append(line)
        return found

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: AnswerPredictions, tuned: AnswerPredictions
    ) -> Diagnostics:
        """How far stated probabilities hold, or how near written answers are to people's."""
        return Diagnostics(
            reliability(prepared, model, tuned.answers),
            style_report(prepared, self._examples, base=base.answers, tuned=tuned.answers),
        )

    def _metrics(self) -> tuple[str, ...]:
        metric = self._objective.metric
        return (metric, *BESIDE.get(metric, ()))
