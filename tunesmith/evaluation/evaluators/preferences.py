"""Measured by people's judgement: how often the answer that they preferred is the one a model finds worth more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.types import Example, Pair, UnpairedPreference
from tunesmith.errors import DataError
from tunesmith.evaluation.diagnostics import SHUFFLED
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet
from tunesmith.evaluation.results import BASE, Calibration, PreferenceDiagnostics
from tunesmith.inference.local_model import AnswerScore, LocalModel, pair_states, score_answers
from tunesmith.metrics import calibration
from tunesmith.metrics.preference_metrics import auc_pair, difference_probe, length_bias, wins
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.scores import RowStatistic
from tunesmith.metrics.significance import (
    PairedComparison,
    compare_paired,
    corpus_compare,
    corpus_interval,
    holm,
    interval,
)
from tunesmith.metrics.style import habits
from tunesmith.metrics.task_scores import ArmScore, Difference, Score, TaskScore, as_task
from tunesmith.models.policy import Policy
from tunesmith.objectives import Preference, Reward
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.reference_logprobs import FALL

FloatArray = NDArray[np.float64]

LONGER = "the longer answer wins"
DETAILS = {SHUFFLED: "same recipe, judgements dealt out at random; journal in control"}
# Of the headline, and of the same counted by whole answers instead of by id.
SUMMED = {"preference_accuracy": "preference_accuracy_summed", "thumbs_auc": "thumbs_auc_summed"}
# Prompts that both models answer in their own words, to see how long and how repetitive they get: so many that no
# alarm rests on a single answer.
WRITTEN = 32
# What raises an alarm: answers so many times as long, so many more that repeat themselves.
GROWTH, REPETITION = 1.5, 0.1


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a model finds the answers of each row worth, and some answers in its own words."""

    valued: list[tuple[AnswerScore, ...]]
    seconds: float
    how: str = ""
    written: tuple[str, ...] = ()


class PreferenceEvaluator:
    """Scores worths by people's judgement: of pairs how often the preferred one is ahead, of thumbs the AUC."""

    shape: ClassVar[type[Any]] = PairScores

    def __init__(self, eval_set: EvalSet[Preference | Reward]) -> None:
        self._objective = eval_set.objective
        self._examples = list(eval_set.examples)
        self._limit = eval_set.limit
        thumbs = [example.good for example in self._examples if isinstance(example, UnpairedPreference)]
        if thumbs and len(set(thumbs)) < 2:
            place, side = self._examples[0].where.rpartition(":")[0], "up" if thumbs[0] else "down"
            raise DataError(f"{place}: all thumbs of the held-out rows are {side}, which tells nothing; give more rows")

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> PairScores:
        """The base's log-probabilities, or for a reward a linear probe on its frozen states."""
        policy.train(False)
        model = LocalModel(policy, prepared.template, self._objective, self._limit)
        if self._objective.produces == "score":
            return self.probe(model, prepared.loaded.split.train)
        return replace(self.predict(model), how="as it is")

    def probe(self, model: LocalModel, train: Sequence[Example]) -> PairScores:
        """Worths along the direction in which the preferred answers of the training rows lie, the model frozen."""
        known, asked = ([e for e in part if isinstance(e, Pair)] for part in (train, self._examples))
        direction = difference_probe(pair_states(model, known).numpy(), groups=groups_of(known))
        began = time.perf_counter()  # as any other model's: what was learned before is not counted
        scores = pair_states(model, asked).numpy().astype(np.float64) @ direction
        told: list[tuple[AnswerScore, ...]] = [
            (AnswerScore(float(chosen), 1), AnswerScore(float(other), 1)) for chosen, other in scores
        ]
        return PairScores(told, time.perf_counter() - began, "linear probe on differences of the frozen states")

    def predict(self, model: LocalModel) -> PairScores:
        """A model's worths."""
        began = time.perf_counter()
        told = score_answers(model, self._examples)
        seconds = time.perf_counter() - began
        if self._objective.produces == "score":
            return PairScores(told, seconds)
        prompts = list(dict.fromkeys(e.prompt for e in self._examples if isinstance(e, Pair | UnpairedPreference)))[
            :WRITTEN
        ]
        return PairScores(told, seconds, written=tuple(reply.text for reply in model.replies(prompts)))

    def compare(self, base: PairScores, tuned: PairScores, *, name: str) -> list[TaskScore]:
        """Base against tuned by the headline, and for log-probabilities by those of whole answers."""
        return [
            as_task(self._compared(self._told(base, metric), self._told(tuned, metric)), name=name, metric=metric)
            for metric in self._metrics()
        ]

    def score(self, said: PairScores, *, name: str) -> list[Score]:
        """One side by the same."""
        return [self._score(metric, self._told(said, metric), name=name) for metric in self._metrics()]

    def compare_arms(
        self, task: TaskScore, *, base: PairScores, tuned: PairScores, controls: Mapping[str, PairScores]
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """The base, the longer answer and the controls beside the tuned model."""
        ways = {BASE: self._told(base, task.metric), LONGER: self._longer()}
        ways |= {name: self._told(said, task.metric) for name, said in controls.items()}
        right = self._told(tuned, task.metric)
        found = {name: self._compared(one, right) for name, one in ways.items()}
        adjusted = holm({name: one.p_value for name, one in found.items()})
        details = {BASE: base.how, **DETAILS}
        made = [
            ArmScore(
                **{**self._score(task.metric, one, name=name).model_dump(), "detail": details.get(name, "")},
                gain=Difference(**asdict(found[name])),
                p_adjusted=adjusted[name],
            )
            for name, one in ways.items()
        ]
        return [arm for arm in made if arm.name not in controls], [arm for arm in made if arm.name in controls]

    def to_rows(self, sides: Mapping[str, PairScores]) -> list[dict[str, Any]]:
        """Each row with the preferred answer, or the thumb, and what each side finds the answers worth."""
        found = []
        for i, example in enumerate(self._examples):
            assert isinstance(example, Pair | UnpairedPreference)
            worths = {name: [one.per_id for one in said.valued[i]] for name, said in sides.items()}
            line: dict[str, Any] = {"where": example.where, "group": example.group}
            if isinstance(example, Pair):
                question = f"{example.prompt[-1].content}\n\nA: {example.chosen}\n\nB: {example.rejected}"
                line |= {"question": question, "gold": "A"}
                line |= {name: "A" if a > b else "B" for name, (a, b) in worths.items()}
                line |= {f"score_{name}": float(a > b) for name, (a, b) in worths.items()}
            else:
                line |= {"question": f"{example.prompt[-1].content}\n\n{example.answer}"}
                line |= {"gold": "good" if example.good else "bad", **dict.fromkeys(sides, "")}
                line |= {f"score_{name}": values[0] * (1 if example.good else -1) for name, values in worths.items()}
            found.append(line | {"worth": worths})
        return found

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: PairScores, tuned: PairScores
    ) -> Diagnostics:
        """Margins, what length has to do with it, and what the answers in own words have become."""
        facts = self._facts((base, tuned))
        return Diagnostics(
            calibration=self._calibration(tuned), preference_diagnostics=facts, warnings=find_warnings(facts)
        )

    def _facts(self, sides: tuple[PairScores, PairScores]) -> PreferenceDiagnostics:
        found: dict[str, Any] = {}
        if isinstance(self._examples[0], Pair):
            lengths = [self._lengths(example) for example in self._examples]
            found["length_bias"] = tuple(length_bias(self._table(side), lengths) for side in sides)
            found["margin"] = tuple(float(-np.diff(self._table(side)).mean()) for side in sides)
        if all(side.written for side in sides):
            voices = [habits(side.written) for side in sides]
            found["chosen_logprob"] = tuple(self._liked(side) for side in sides)
            found["words"] = tuple(voice.mean_words for voice in voices)
            found["repeated_share"] = tuple(voice.repeated_share for voice in voices)
        return PreferenceDiagnostics(**found)

    def _liked(self, said: PairScores) -> float:
        """Mean log-probability for each id of the answers that people liked."""
        good = [e.good if isinstance(e, UnpairedPreference) else True for e in self._examples]
        return float(np.mean([one[0].per_id for one, liked in zip(said.valued, good, strict=True) if liked]))

    def _calibration(self, tuned: PairScores) -> Calibration | None:
        """How far the probability that a reward gives the preferred answer can be believed."""
        if self._objective.produces != "score":
            return None
        lead = -np.diff(self._table(tuned))[:, 0]
        sure = 1 / (1 + np.exp(-np.abs(lead)))
        table = np.stack([1 - 1 / (1 + np.exp(-lead)), 1 / (1 + np.exp(-lead))], axis=1)
        error = calibration.ece(sure, lead > 0)
        curve = calibration.coverage_curve(sure, lead > 0)
        some = np.linspace(0, len(curve) - 1, min(21, len(curve))).round().astype(int)
        return Calibration(
            temperature=None,  # nothing is fitted
            ece_before=error,
            ece=error,
            brier=calibration.brier(table, np.ones(len(lead), dtype=np.int64)),
            coverage=[curve[i] for i in some],
        )

    def _metrics(self) -> tuple[str, ...]:
        metric = self._objective.metric
        return (metric,) if self._objective.produces == "score" else (metric, SUMMED[metric])

    def _told(self, said: PairScores, metric: str) -> FloatArray:
        """[N]: whether each pair is told as people told it, or what the answer with a thumb is worth."""
        whole = metric in SUMMED.values()
        return self._of([tuple(one.value if whole else one.per_id for one in row) for row in said.valued])

    def _table(self, said: PairScores) -> FloatArray:
        return np.array([[one.per_id for one in row] for row in said.valued])

    def _of(self, values: Sequence[tuple[float, ...]]) -> FloatArray:
        if isinstance(self._examples[0], Pair):
            return wins(values)
        return np.array([one[0] for one in values])

    def _longer(self) -> FloatArray:
        """What length alone tells; of answers of one length as much as a coin."""
        lengths = [self._lengths(example) for example in self._examples]
        return wins(lengths, tie=0.5) if isinstance(self._examples[0], Pair) else self._of(lengths)

    def _score(self, metric: str, told: FloatArray, *, name: str) -> Score:
        groups, statistic = groups_of(self._examples), self._auc(told, told)
        if statistic is None:
            score, bounds = float(told.mean()), interval(told, groups=groups)
        else:
            score, bounds = statistic(np.arange(len(told)))[0], corpus_interval(statistic, len(told), groups=groups)
        return Score(name=name, metric=metric, score=score, ci95=bounds, n=len(told))

    def _compared(self, base: FloatArray, tuned: FloatArray) -> PairedComparison:
        groups, statistic = groups_of(self._examples), self._auc(base, tuned)
        if statistic is None:
            return compare_paired(base, tuned, groups=groups)
        return corpus_compare(statistic, list(base != tuned), groups=groups)

    def _auc(self, base: FloatArray, tuned: FloatArray) -> RowStatistic | None:
        """How often a good answer is ahead of a bad one, by both; None for pairs."""
        if isinstance(self._examples[0], Pair):
            return None
        return auc_pair(base, tuned, [isinstance(e, UnpairedPreference) and e.good for e in self._examples])

    @staticmethod
    def _lengths(example: Example) -> tuple[float, ...]:
        """Characters of each answer."""
        if isinstance(example, Pair):
            return float(len(example.chosen)), float(len(example.rejected))
        return (float(len(example.answer)),) if isinstance(example, UnpairedPreference) else ()


def find_warnings(facts: PreferenceDiagnostics) -> tuple[str, ...]:
    """What is known to go wrong when preferences are learned, where it did."""
    found = []
    if facts.chosen_logprob and (lost := facts.chosen_logprob[0] - facts.chosen_logprob[1]) > FALL:
        cure = "raise objective.nll or lower schedule.learning_rate"
        found.append(f"the preferred answers lost {lost:.2f} nats an id: it learned what not to say; {cure}")
    if facts.words and facts.words[1] > GROWTH * facts.words[0]:
        before, after = facts.words
        found.append(f"its answers grew from {before:.0f} to {after:.0f} words; read some, and try loss: dpo_norm")
    if facts.repeated_share and facts.repeated_share[1] - facts.repeated_share[0] > REPETITION:
        before, after = facts.repeated_share
        found.append(f"{after:.0%} of its answers repeat themselves, {before:.0%} before; lower schedule.learning_rate")
    return tuple(found)
