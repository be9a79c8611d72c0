"""Evaluation by answers, labels or texts, compared with the references of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.evaluation.diagnostics import (
    SHUFFLED,
    baselines,
    frozen_head_control,
    reliability,
    style_report,
    tool_call_counts,
)
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet, Evaluator, divided
from tunesmith.evaluation.predict import (
    AnswersByArm,
    AnswerSet,
    BaseModelPrompter,
    accepted_answers,
    answer,
    question,
    reference_answers,
)
from tunesmith.evaluation.privacy import leaks
from tunesmith.evaluation.results import BASE
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import ALPHA, groups_of
from tunesmith.metrics.significance import holm
from tunesmith.metrics.task_scores import BESIDE, ArmScore, Score, TaskScore, arms, score, task_score, value
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.objectives import Classify, Instruct
from tunesmith.phases import phase
from tunesmith.training.prepare import TrainingContext

DETAILS = {SHUFFLED: "same recipe, shuffled answers; training log in control"}
# Metrics that are not compared: each resample needs all answers again, which is slow.
ALONE_ONLY = ("bleu",)


@dataclass(frozen=True, slots=True)
class AnswerPredictions:
    """The answers of a model; for the base model also those of baselines and controls."""

    answers: AnswerSet
    ways: AnswersByArm = field(default_factory=dict)
    controls: AnswersByArm = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Return how long the answers took."""
        return self.answers.seconds


class AnswerEvaluator(Evaluator[AnswerPredictions]):
    """Evaluates `classify` and `instruct` by the metric of the objective."""

    shape: ClassVar[type[Any]] = AnswerPredictions

    def __init__(self, eval_set: EvalSet[Classify | Instruct]) -> None:
        self._objective = eval_set.objective
        self._examples = list(eval_set.examples)
        self._limit = eval_set.limit

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> AnswerPredictions:
        """Answer with the base model by its best prompt or a linear probe, and with the baselines and controls."""
        prompter = BaseModelPrompter(prepared.base, policy, prepared.template, self._objective, self._limit)
        split, test = prepared.loaded.split, self._examples
        answers = prompter.answer(train=prepared.baseline_rows, validation=split.validation, test=test)
        controls = frozen_head_control(prepared, prompter.model(), test) if prepared.recipe.controls else {}
        with phase("baselines"):
            ways = current_world().lead(lambda: baselines(prepared, test))
        return AnswerPredictions(answers, ways, controls)

    def predict(self, model: LocalModel) -> AnswerPredictions:
        """Answer the rows with a model."""
        return AnswerPredictions(answer(model, self._examples))

    def compare(self, base: AnswerPredictions, tuned: AnswerPredictions, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model by the headline metric and the metrics reported with it."""
        references, clusters = accepted_answers(self._examples), groups_of(self._examples)
        before, after = base.answers.given, tuned.answers.given
        return [
            task_score(metric, references, base=before, tuned=after, name=name, groups=clusters)
            for metric in self._metrics()
            if metric not in ALONE_ONLY
        ]

    def score(self, predictions: AnswerPredictions, *, name: str) -> list[Score]:
        """Score one model by all metrics."""
        references, clusters = accepted_answers(self._examples), groups_of(self._examples)
        given = predictions.answers.given
        return [score(metric, references, given, name=name, groups=clusters) for metric in self._metrics()]

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: AnswerPredictions,
        tuned: AnswerPredictions,
        controls: Mapping[str, AnswerPredictions],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare the tuned model with base model, baselines and controls."""
        answers, control_answers = self._answers(base, controls)
        references, clusters = accepted_answers(self._examples), groups_of(self._examples)
        scores = arms(task.metric, references, answers, tuned.answers.given, groups=clusters)
        return divided(scores, control_answers, {BASE: base.answers.how, **DETAILS})

    def decided(
        self, *, base: AnswerPredictions, tuned: AnswerPredictions, controls: Mapping[str, AnswerPredictions]
    ) -> bool:
        """Return whether the tuned model is worse than the base, or better than base, baselines and controls."""
        references, clusters, metric = accepted_answers(self._examples), groups_of(self._examples), self._metrics()[0]
        answers = self._answers(base, controls)[0]
        others = sorted(answers.keys() - {BASE}, key=lambda name: -value(metric, references, answers[name]))
        p_values: dict[str, float] = {}
        for name in (BASE, *others):  # the first that is not beaten ends the comparisons, so that the best ones lead
            found = task_score(
                metric, references, base=answers[name], tuned=tuned.answers.given, name=name, groups=clusters
            )
            if found.verdict != "better":
                return name == BASE and found.verdict == "worse"
            p_values[name] = found.p_value
        adjusted = holm(p_values)
        return all(adjusted[name] < ALPHA for name in others)

    def to_rows(self, predictions: Mapping[str, AnswerPredictions]) -> list[dict[str, Any]]:
        """Return each row with its reference, the answer of each model, and the last model's probabilities."""
        probabilities = list(predictions.values())[-1].answers.probabilities
        references = accepted_answers(self._examples)
        records = []
        for i, (example, right) in enumerate(zip(self._examples, reference_answers(self._examples), strict=True)):
            record: dict[str, Any] = {"where": example.where, "group": example.group}
            record |= {"question": question(example), "gold": right}
            record |= {name: one.answers.given[i] for name, one in predictions.items()}
            if isinstance(every := references[i], tuple):
                record["accepted"] = list(every)
            thoughts = {name: one.answers.thoughts[i] for name, one in predictions.items() if one.answers.thoughts}
            if thoughts:
                record["thoughts"] = thoughts
            if probabilities:
                record["probabilities"] = {label: round(p, 5) for label, p in probabilities[i].items()}
            records.append(record)
        return records

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: AnswerPredictions, tuned: AnswerPredictions
    ) -> Diagnostics:
        """Measure the calibration of labels, or the style of written answers, and count the outcomes of tool calls."""
        calls = None
        if self._objective.metric == "tool_calls":
            references = reference_answers(self._examples)
            calls = tool_call_counts(references, base=base.answers.given, tuned=tuned.answers.given)
        return Diagnostics(
            reliability(prepared, model, tuned.answers),
            style_report(prepared, self._examples, base=base.answers, tuned=tuned.answers),
            tool_calls=calls,
            warnings=tuple(leaks(prepared.baseline_rows, self.to_rows({"tuned": tuned}))),
        )

    @staticmethod
    def _answers(
        base: AnswerPredictions, controls: Mapping[str, AnswerPredictions]
    ) -> tuple[AnswersByArm, AnswersByArm]:
        """Return the answers of all arms, the base included, and those of the controls alone."""
        of_controls = {**base.controls, **{name: one.answers.given for name, one in controls.items()}}
        return {BASE: base.answers.given, **base.ways, **of_controls}, of_controls

    def _metrics(self) -> tuple[str, ...]:
        metric = self._objective.metric
        return (metric, *BESIDE.get(metric, ()))
