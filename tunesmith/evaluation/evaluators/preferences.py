"""Evaluation by human preferences: how often a model scores the preferred answer higher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.types import Example, Pair, UnpairedPreference
from tunesmith.errors import DataError
from tunesmith.evaluation.diagnostics import CURVE_POINTS, SHUFFLED
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet, Evaluator, divided
from tunesmith.evaluation.results import BASE, Calibration, PreferenceDiagnostics
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.scoring import AnswerScore, pair_states, score_answers
from tunesmith.metrics import calibration
from tunesmith.metrics.preference_metrics import auc_pair, difference_probe, length_bias, wins
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.scores import RowStatistic
from tunesmith.metrics.significance import PairedComparison, compare_paired, corpus_compare, corpus_interval, interval
from tunesmith.metrics.style import habits
from tunesmith.metrics.task_scores import ArmScore, Score, TaskScore, arm_scores, as_task
from tunesmith.models.kept_answers import answer_clock
from tunesmith.models.policy import Policy
from tunesmith.objectives import Preference, Reward
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.reference_logprobs import FALL

FloatArray = NDArray[np.float64]

LONGER = "the longer answer wins"
DETAILS = {SHUFFLED: "same recipe, shuffled preferences; training log in control"}
# Headline metric -> the same metric on log-probabilities summed over the answer instead of per token.
SUMMED = {"preference_accuracy": "preference_accuracy_summed", "thumbs_auc": "thumbs_auc_summed"}
# Prompts that both models answer, to measure length and repetition: enough that no warning rests on a single answer.
WRITTEN = 32
# Thresholds of warnings: ratio of answer lengths, and rise of the share of repetitive answers.
GROWTH, REPETITION = 1.5, 0.1


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of the answers of each row, and some answers that the model generated."""

    valued: list[tuple[AnswerScore, ...]]
    seconds: float
    how: str = ""
    written: tuple[str, ...] = ()


class PreferenceEvaluator(Evaluator[PairScores]):
    """Evaluates `preference` and `reward`: accuracy on pairs, AUC on rated answers."""

    shape: ClassVar[type[Any]] = PairScores
    probed: ClassVar[str] = "linear probe on differences of the frozen states"

    def __init__(self, eval_set: EvalSet[Preference | Reward]) -> None:
        self._objective = eval_set.objective
        self._examples = list(eval_set.examples)
        self._limit = eval_set.limit
        ratings = [example.good for example in self._examples if isinstance(example, UnpairedPreference)]
        if ratings and len(set(ratings)) < 2:
            file, rating = self._examples[0].where.rpartition(":")[0], "good" if ratings[0] else "bad"
            raise DataError(
                f"{file}: all held-out answers are rated {rating}, so no AUC can be computed; add rows of both ratings"
            )

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> PairScores:
        """Score with the log-probabilities of the base, or for `reward` with a linear probe on its frozen states."""
        policy.train(False)
        model = LocalModel(policy, prepared.template, self._objective, self._limit)
        if self._objective.produces == "score":
            return self.probe(model, prepared.loaded.split.train)
        return replace(self.predict(model), how="unchanged")

    def probe(self, model: LocalModel, train: Sequence[Example], *, seed: int = 0) -> PairScores:
        """Score answers by a linear probe that is fitted on the frozen states of the training pairs."""
        train_pairs, test_pairs = ([e for e in part if isinstance(e, Pair)] for part in (train, self._examples))
        direction = difference_probe(
            pair_states(model.policy, model.encode(train_pairs)).numpy(), groups=groups_of(train_pairs)
        )
        start = answer_clock()  # as for other models, fitting is not counted
        values = pair_states(model.policy, model.encode(test_pairs)).numpy().astype(np.float64) @ direction
        scores: list[tuple[AnswerScore, ...]] = [
            (AnswerScore(float(chosen), 1), AnswerScore(float(rejected), 1)) for chosen, rejected in values
        ]
        return PairScores(scores, answer_clock() - start, self.probed)

    def predict(self, model: LocalModel) -> PairScores:
        """Score the answers of each row with a model."""
        start = answer_clock()
        scores = score_answers(model.policy, model.objective, model.encode(self._examples))
        seconds = answer_clock() - start
        if self._objective.produces == "score":
            return PairScores(scores, seconds)
        prompts = list(dict.fromkeys(e.prompt for e in self._examples if isinstance(e, Pair | UnpairedPreference)))
        replies = model.replies(prompts[:WRITTEN])
        return PairScores(scores, seconds, written=tuple(reply.text for reply in replies))

    def compare(self, base: PairScores, tuned: PairScores, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model, log-probabilities per token and summed."""
        return [
            as_task(self._compared(self._values(base, metric), self._values(tuned, metric)), name=name, metric=metric)
            for metric in self._metrics()
        ]

    def score(self, predictions: PairScores, *, name: str) -> list[Score]:
        """Score one model by the same metrics."""
        return [self._score(metric, self._values(predictions, metric), name=name) for metric in self._metrics()]

    def compare_arms(
        self, task: TaskScore, *, base: PairScores, tuned: PairScores, controls: Mapping[str, PairScores]
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare the tuned model with the base model, the longer answer and the controls."""
        lengths = [self._lengths(example) for example in self._examples]
        # Answers of equal length count as half a win.
        longer = wins(lengths, tie=0.5) if isinstance(self._examples[0], Pair) else self._of(lengths)
        values = {BASE: self._values(base, task.metric), LONGER: longer}
        values |= {name: self._values(control, task.metric) for name, control in controls.items()}
        own = self._values(tuned, task.metric)
        comparisons = {name: self._compared(other, own) for name, other in values.items()}
        scores = {name: self._score(task.metric, other, name=name) for name, other in values.items()}
        return divided(arm_scores(scores, comparisons), controls, {BASE: base.how, **DETAILS})

    def to_rows(self, predictions: Mapping[str, PairScores]) -> list[dict[str, Any]]:
        """Return each row with the preferred answer, or the rating, and the scores of each model."""
        records = []
        for i, example in enumerate(self._examples):
            assert isinstance(example, Pair | UnpairedPreference)
            scores = {name: [one.per_id for one in model.valued[i]] for name, model in predictions.items()}
            record: dict[str, Any] = {"where": example.where, "group": example.group}
            if isinstance(example, Pair):
                question = f"{example.prompt[-1].content}\n\nA: {example.chosen}\n\nB: {example.rejected}"
                record |= {"question": question, "gold": "A"}
                record |= {name: "A" if a > b else "B" for name, (a, b) in scores.items()}
                record |= {f"score_{name}": float(a > b) for name, (a, b) in scores.items()}
            else:
                record |= {"question": f"{example.prompt[-1].content}\n\n{example.answer}"}
                record |= {"gold": "good" if example.good else "bad", **dict.fromkeys(predictions, "")}
                record |= {f"score_{name}": values[0] * (1 if example.good else -1) for name, values in scores.items()}
            records.append(record | {"worth": scores})
        return records

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: PairScores, tuned: PairScores
    ) -> Diagnostics:
        """Measure margins, length bias, and length and repetition of generated answers."""
        values: dict[str, Any] = {}
        if isinstance(self._examples[0], Pair):
            lengths = [self._lengths(example) for example in self._examples]
            values["length_bias"] = tuple(length_bias(self._table(model), lengths) for model in (base, tuned))
            values["margin"] = tuple(float(-np.diff(self._table(model)).mean()) for model in (base, tuned))
        if base.written and tuned.written:
            styles = [habits(model.written) for model in (base, tuned)]
            values["chosen_logprob"] = tuple(self._chosen_logprob(model) for model in (base, tuned))
            values["words"] = tuple(style.mean_words for style in styles)
            values["repeated_share"] = tuple(style.repeated_share for style in styles)
        diagnostics = PreferenceDiagnostics(**values)
        return Diagnostics(
            calibration=self._calibration(tuned),
            preference_diagnostics=diagnostics,
            warnings=find_warnings(
                diagnostics, self._objective.loss if isinstance(self._objective, Preference) else ""
            ),
        )

    def _chosen_logprob(self, predictions: PairScores) -> float:
        """Return the mean log-probability per token of the preferred answers."""
        good = [e.good if isinstance(e, UnpairedPreference) else True for e in self._examples]
        scored = zip(predictions.valued, good, strict=True)
        return float(np.mean([answers[0].per_id for answers, preferred in scored if preferred]))

    def _calibration(self, tuned: PairScores) -> Calibration | None:
        """Measure the calibration of the probability, a sigmoid of the margin, that the chosen answer is better."""
        if self._objective.produces != "score":
            return None
        margin = -np.diff(self._table(tuned))[:, 0]
        confidence = 1 / (1 + np.exp(-np.abs(margin)))
        table = np.stack([1 - 1 / (1 + np.exp(-margin)), 1 / (1 + np.exp(-margin))], axis=1)
        error = calibration.ece(confidence, margin > 0)
        return Calibration(
            temperature=None,  # nothing is fitted
            ece_before=error,
            ece=error,
            brier=calibration.brier(table, np.ones(len(margin), dtype=np.int64)),
            coverage=calibration.coverage_curve(confidence, margin > 0, points=CURVE_POINTS),
        )

    def _metrics(self) -> tuple[str, ...]:
        metric = self._objective.metric
        return (metric,) if self._objective.produces == "score" else (metric, SUMMED[metric])

    def _values(self, predictions: PairScores, metric: str) -> FloatArray:
        """Return whether the chosen answer of each pair scores higher, or the score of each rated answer, [N]."""
        summed = metric in SUMMED.values()
        return self._of([tuple(one.value if summed else one.per_id for one in row) for row in predictions.valued])

    def _table(self, predictions: PairScores) -> FloatArray:
        """Return the score per token of chosen and rejected answer, [N, 2]."""
        return np.array([[one.per_id for one in row] for row in predictions.valued])

    def _of(self, values: Sequence[tuple[float, ...]]) -> FloatArray:
        if isinstance(self._examples[0], Pair):
            return wins(values)
        return np.array([one[0] for one in values])

    def _score(self, metric: str, values: FloatArray, *, name: str) -> Score:
        groups, statistic = groups_of(self._examples), self._auc(values, values)
        if statistic is None:
            score, bounds = float(values.mean()), interval(values, groups=groups)
        else:
            score = statistic(np.arange(len(values)))[0]
            bounds = corpus_interval(statistic, len(values), groups=groups)
        return Score(name=name, metric=metric, score=score, ci95=bounds, n=len(values))

    def _compared(self, base: FloatArray, tuned: FloatArray) -> PairedComparison:
        groups, statistic = groups_of(self._examples), self._auc(base, tuned)
        if statistic is None:
            return compare_paired(base, tuned, groups=groups)
        return corpus_compare(statistic, list(base != tuned), groups=groups)

    def _auc(self, base: FloatArray, tuned: FloatArray) -> RowStatistic | None:
        """Return the AUC of good against bad answers under both models; None for pairs."""
        if isinstance(self._examples[0], Pair):
            return None
        return auc_pair(base, tuned, [isinstance(e, UnpairedPreference) and e.good for e in self._examples])

    @staticmethod
    def _lengths(example: Example) -> tuple[float, ...]:
        """Return the characters of each answer."""
        if isinstance(example, Pair):
            return float(len(example.chosen)), float(len(example.rejected))
        return (float(len(example.answer)),) if isinstance(example, UnpairedPreference) else ()


def find_warnings(facts: PreferenceDiagnostics, loss: str) -> tuple[str, ...]:
    """Return warnings about known side effects of preference tuning with a loss."""
    warnings = []
    if facts.chosen_logprob and (lost := facts.chosen_logprob[0] - facts.chosen_logprob[1]) > FALL:
        fix = "raise objective.nll or lower schedule.learning_rate"
        warnings.append(f"log-probability of the chosen answers fell by {lost:.2f} nats/token; {fix}")
    if facts.words and facts.words[1] > GROWTH * facts.words[0]:
        before, after = facts.words
        # The other losses are per token already, or learn from thumbs, which dpo_norm does not.
        fix = "try loss: dpo_norm" if loss in ("dpo", "hinge") else "lower schedule.learning_rate"
        warnings.append(f"answers grew from {before:.1f} to {after:.1f} words; read some, and {fix}")
    if facts.repeated_share and facts.repeated_share[1] - facts.repeated_share[0] > REPETITION:
        before, after = facts.repeated_share
        warnings.append(f"{after:.0%} of answers contain loops, {before:.0%} before; lower schedule.learning_rate")
    return tuple(warnings)
