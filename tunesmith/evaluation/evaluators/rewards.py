"""Measured by the reward: what greedy answers to held-out prompts are worth, and how far the model has moved for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.prompts import Completion, RLPrompt, Scorer
from tunesmith.evaluation.diagnostics import style_report
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet
from tunesmith.evaluation.predict import AnswerSet
from tunesmith.evaluation.results import BASE, RewardDiagnostics
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.scores import rouge_l
from tunesmith.metrics.significance import compare_paired, holm, interval
from tunesmith.metrics.style import habits
from tunesmith.metrics.task_scores import ArmScore, Difference, Score, TaskScore, as_task
from tunesmith.models.batch import collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Rl
from tunesmith.objectives.online_rl import OnlineRLLearner
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.reference_logprobs import kl_to_reference
from tunesmith.training.rewards import scorer, scorer_of

FloatArray = NDArray[np.float64]


# Prompts that answers are drawn to for the KL, and how many of them at a time.
DRAWN, ANSWERED = 64, 16
# What raises an alarm: nats a token from the start, answers so many times as long or as short, so many more that
# repeat themselves or never end.
FAR, STRETCH, MORE = 0.5, 2.0, 0.1


@dataclass(frozen=True, slots=True)
class RewardedCompletions:
    """A model's answers to the prompts and the reward of each."""

    answers: AnswerSet
    rewards: list[float]

    @property
    def seconds(self) -> float:
        """How long the answers took."""
        return self.answers.seconds


class RewardEvaluator:
    """Scores greedy answers by the recipe's reward, and beside it by what the rows answer."""

    shape: ClassVar[type[Any]] = RewardedCompletions

    def __init__(self, eval_set: EvalSet[Rl]) -> None:
        self._objective = eval_set.objective
        self._exercises = [example for example in eval_set.examples if isinstance(example, RLPrompt)]
        self._limit = eval_set.limit
        self._score: Scorer = scorer_of(eval_set.objective)

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> RewardedCompletions:
        """What the base answers as it is asked, which is where the policy starts."""
        policy.train(False)
        return self.predict(LocalModel(policy, prepared.template, self._objective.inference_objective(), self._limit))

    def predict(self, model: LocalModel) -> RewardedCompletions:
        """A model's greedy answers."""
        began = time.perf_counter()
        replies = model.replies([exercise.prompt for exercise in self._exercises])
        seconds = time.perf_counter() - began
        attempts = [Completion(e, r.text, r.finished) for e, r in zip(self._exercises, replies, strict=True)]
        answers = AnswerSet([a.text for a in attempts], "as it is", seconds, [a.finished for a in attempts])
        return RewardedCompletions(answers, self._score(attempts))

    def compare(self, base: RewardedCompletions, tuned: RewardedCompletions, *, name: str) -> list[TaskScore]:
        """Base against tuned by reward and by each part of it, and by ROUGE-L where every row has an answer."""
        return [
            as_task(compare_paired(of(base), of(tuned), groups=groups_of(self._exercises)), name=name, metric=metric)
            for metric, of in self._metrics()
        ]

    def score(self, said: RewardedCompletions, *, name: str) -> list[Score]:
        """One side alone."""
        clusters = groups_of(self._exercises)
        return [
            Score(
                name=name,
                metric=metric,
                score=float(of(said).mean()),
                ci95=interval(of(said), groups=clusters),
                n=len(said.rewards),
            )
            for metric, of in self._metrics()
        ]

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: RewardedCompletions,
        tuned: RewardedCompletions,
        controls: Mapping[str, RewardedCompletions],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """The base and the controls, each against the tuned model by what their answers earn."""
        ways = {BASE: base.rewards, **{name: said.rewards for name, said in controls.items()}}
        clusters = groups_of(self._exercises)
        found = {
            way: compare_paired(np.array(rewards), np.array(tuned.rewards), groups=clusters)
            for way, rewards in ways.items()
        }
        adjusted = holm({way: one.p_value for way, one in found.items()})
        arms = [
            ArmScore(
                name=way,
                metric=task.metric,
                score=float(np.mean(rewards)),
                ci95=interval(np.array(rewards), groups=clusters),
                n=len(rewards),
                detail=base.answers.how if way == BASE else "",
                gain=Difference(**{name: getattr(found[way], name) for name in Difference.model_fields}),
                p_adjusted=adjusted[way],
            )
            for way, rewards in ways.items()
        ]
        return [arm for arm in arms if arm.name not in controls], [arm for arm in arms if arm.name in controls]

    def to_rows(self, sides: Mapping[str, RewardedCompletions]) -> list[dict[str, Any]]:
        """Each row with its question, its own answer, what the sides answered and the reward of that."""
        found = []
        for i, exercise in enumerate(self._exercises):
            line: dict[str, Any] = {"where": exercise.where, "group": exercise.group}
            line |= {"question": exercise.prompt[-1].content, "gold": exercise.reference}
            line |= {name: said.answers.given[i] for name, said in sides.items()}
            found.append(line | {f"score_{name}": said.rewards[i] for name, said in sides.items()})
        return found

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: RewardedCompletions, tuned: RewardedCompletions
    ) -> Diagnostics:
        """What the reward was paid with, and how near the answers are to the rows' own, where every row has one."""
        style = None
        if self._referenced:
            style = style_report(prepared, self._exercises, base=base.answers, tuned=tuned.answers)
        facts = RewardDiagnostics(kl_per_token=self._kl(prepared, model), **_habits(base.answers, tuned.answers))
        return Diagnostics(style=style, reward_diagnostics=facts, warnings=find_warnings(facts))

    def _kl(self, prepared: TrainingContext, model: LocalModel) -> float | None:
        """Nats a token to the start, on answers drawn to some of the prompts; None where no start was kept."""
        if self._objective.reference == "none" and prepared.recipe.technique.kind == "full":
            return None
        learner = OnlineRLLearner(
            self._objective, model.template, {e.where: e for e in self._exercises}, self._score, 0
        )
        rows = [self._objective.encode(e, model.template, limit=self._limit) for e in self._exercises[:DRAWN]]
        total, count = 0.0, 0
        for start in range(0, len(rows), ANSWERED):
            some, tokens = kl_to_reference(
                model.policy, learner.sample_once(collate(rows[start : start + ANSWERED]), model.policy)
            )
            total, count = total + some, count + tokens
        return total / max(1, count)

    @property
    def _referenced(self) -> bool:
        return all(exercise.reference for exercise in self._exercises)

    def _metrics(self) -> list[tuple[str, Callable[[RewardedCompletions], FloatArray]]]:
        """Metrics by name, the headline first, each a number per row."""
        found: list[tuple[str, Callable[[RewardedCompletions], FloatArray]]] = [
            ("reward", lambda said: np.array(said.rewards))
        ]
        parts = self._objective.reward if isinstance(self._objective.reward, dict) else {}
        if len(parts) > 1:
            last = {name: name.rpartition("/")[2].rpartition(":")[2] for name in parts}
            if len(set(last.values())) < len(last):
                last = {name: name for name in parts}
            found += [(f"reward: {last[name]}", self._part(name)) for name in parts]
        if self._referenced:
            wanted = [exercise.reference for exercise in self._exercises]
            found.append(("rouge_l", lambda said: rouge_l(wanted, said.answers.given)))
        return found

    def _part(self, name: str) -> Callable[[RewardedCompletions], FloatArray]:
        """One of several rewards, unweighted."""
        score = scorer(name, key="objective.reward")

        def of(said: RewardedCompletions) -> FloatArray:
            each = zip(self._exercises, said.answers.given, said.answers.finished, strict=True)
            return np.array(score([Completion(*one) for one in each]))

        return of


def find_warnings(facts: RewardDiagnostics) -> tuple[str, ...]:
    """What is known to go wrong when a reward is pursued, where it did."""
    found = []
    if facts.kl_per_token is not None and facts.kl_per_token > FAR:
        found.append(f"{facts.kl_per_token:.2f} nats a token from the start; raise objective.beta or stop earlier")
    before, after = facts.words
    if not before / STRETCH <= after <= before * STRETCH:
        found.append(
            f"its answers went from {before:.0f} to {after:.0f} words; read some: is it what the reward is for?"
        )
    for what, (base, tuned) in (("repeat themselves", facts.repeated_share), ("never end", facts.cut_off_share)):
        if tuned - base > MORE:
            found.append(f"{tuned:.0%} of its answers {what}, {base:.0%} before; let the reward say that they must not")
    return tuple(found)


def _habits(base: AnswerSet, tuned: AnswerSet) -> dict[str, tuple[float, float]]:
    """Length, repetition and missing ends of both sides."""
    one, other = (habits(side.given, finished=side.finished) for side in (base, tuned))
    return {
        "words": (one.mean_words, other.mean_words),
        "repeated_share": (one.repeated_share, other.repeated_share),
        "cut_off_share": (one.never_ending_share or 0.0, other.never_ending_share or 0.0),
    }
