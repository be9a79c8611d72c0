"""Evaluation by the reward of greedy answers to held-out prompts, and the KL divergence from the base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.prompts import Completion, RLPrompt, Scorer
from tunesmith.evaluation.diagnostics import style_report
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet, Evaluator, divided
from tunesmith.evaluation.predict import AnswerSet
from tunesmith.evaluation.results import BASE, RewardDiagnostics
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.scores import rouge_l
from tunesmith.metrics.significance import compare_paired, interval
from tunesmith.metrics.style import habits
from tunesmith.metrics.task_scores import ArmScore, Score, TaskScore, arm_scores, as_task
from tunesmith.models.batch import collate
from tunesmith.models.kept_answers import answer_clock
from tunesmith.models.policy import Policy
from tunesmith.objectives import Rl
from tunesmith.objectives.online_rl import OnlineRLLearner
from tunesmith.progress import track
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.reference_logprobs import kl_to_reference
from tunesmith.training.rewards import scorer, scorer_of

FloatArray = NDArray[np.float64]
# Prompts whose sampled answers measure the KL divergence, and prompts per batch.
KL_PROMPTS, BATCH_SIZE = 64, 16
# Thresholds of warnings: KL divergence in nats per token, ratio of answer lengths, and rise of the share of answers
# with loops or without an end.
FAR, STRETCH, MORE = 0.5, 2.0, 0.1


@dataclass(frozen=True, slots=True)
class RewardedCompletions:
    """Answers to the prompts and the reward of each."""

    answers: AnswerSet
    rewards: list[float]

    @property
    def seconds(self) -> float:
        """Return how long the answers took."""
        return self.answers.seconds


class RewardEvaluator(Evaluator[RewardedCompletions]):
    """Evaluates `rl` by the recipe's reward, and by the references of the rows if there are any."""

    shape: ClassVar[type[Any]] = RewardedCompletions

    def __init__(self, eval_set: EvalSet[Rl]) -> None:
        self._objective = eval_set.objective
        self._prompts = [example for example in eval_set.examples if isinstance(example, RLPrompt)]
        self._limit = eval_set.limit
        self._score: Scorer = scorer_of(eval_set.objective)

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> RewardedCompletions:
        """Answer with the base model and the prompts of training."""
        policy.train(False)
        return self.predict(LocalModel(policy, prepared.template, self._objective.inference_objective(), self._limit))

    def predict(self, model: LocalModel) -> RewardedCompletions:
        """Answer the prompts greedily with a model."""
        start = answer_clock()
        replies = model.replies([prompt.prompt for prompt in self._prompts])
        seconds = answer_clock() - start
        completions = [Completion(p, r.text, r.finished) for p, r in zip(self._prompts, replies, strict=True)]
        answers = AnswerSet([c.text for c in completions], "unchanged", seconds, [c.finished for c in completions])
        return RewardedCompletions(answers, self._score(completions))

    def compare(self, base: RewardedCompletions, tuned: RewardedCompletions, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model by the reward, its parts, and ROUGE-L if every row has a reference."""
        return [
            as_task(compare_paired(of(base), of(tuned), groups=groups_of(self._prompts)), name=name, metric=metric)
            for metric, of in self._metrics()
        ]

    def score(self, predictions: RewardedCompletions, *, name: str) -> list[Score]:
        """Score one model by the same metrics."""
        return [self._scored(metric, of(predictions), name=name) for metric, of in self._metrics()]

    def _scored(self, metric: str, values: FloatArray, *, name: str) -> Score:
        bounds = interval(values, groups=groups_of(self._prompts))
        return Score(name=name, metric=metric, score=float(values.mean()), ci95=bounds, n=len(values))

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: RewardedCompletions,
        tuned: RewardedCompletions,
        controls: Mapping[str, RewardedCompletions],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare the tuned model with the base model and the controls by the reward."""
        rewards = {name: np.array(arm.rewards) for name, arm in {BASE: base, **controls}.items()}
        own, clusters = np.array(tuned.rewards), groups_of(self._prompts)
        comparisons = {name: compare_paired(other, own, groups=clusters) for name, other in rewards.items()}
        scores = {name: self._scored(task.metric, other, name=name) for name, other in rewards.items()}
        return divided(arm_scores(scores, comparisons), controls, {BASE: base.answers.how})

    def to_rows(self, predictions: Mapping[str, RewardedCompletions]) -> list[dict[str, Any]]:
        """Return each row with its prompt and reference, and the answer of each model with its reward."""
        records = []
        for i, prompt in enumerate(self._prompts):
            record: dict[str, Any] = {"where": prompt.where, "group": prompt.group}
            record |= {"question": prompt.prompt[-1].content, "gold": prompt.reference}
            record |= {name: one.answers.given[i] for name, one in predictions.items()}
            records.append(record | {f"score_{name}": one.rewards[i] for name, one in predictions.items()})
        return records

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: RewardedCompletions, tuned: RewardedCompletions
    ) -> Diagnostics:
        """Measure side effects of the reward, and the style of the answers if every row has a reference."""
        style = None
        if self._referenced:
            style = style_report(prepared, self._prompts, base=base.answers, tuned=tuned.answers)
        before, after = (habits(one.answers.given, finished=one.answers.finished) for one in (base, tuned))
        facts = RewardDiagnostics(
            kl_per_token=self._kl(prepared, model),
            words=(before.mean_words, after.mean_words),
            repeated_share=(before.repeated_share, after.repeated_share),
            cut_off_share=(before.never_ending_share or 0.0, after.never_ending_share or 0.0),
        )
        return Diagnostics(style=style, reward_diagnostics=facts, warnings=find_warnings(facts))

    def _kl(self, prepared: TrainingContext, model: LocalModel) -> float | None:
        """Return the KL divergence from the base on sampled answers, nats per token; None without a reference."""
        if self._objective.reference == "none" and prepared.recipe.technique.kind == "full":
            return None
        learner = OnlineRLLearner(self._objective, model.template, {e.where: e for e in self._prompts}, self._score, 0)
        rows = [self._objective.encode(e, model.template, limit=self._limit) for e in self._prompts[:KL_PROMPTS]]
        total, count = 0.0, 0
        for start in track(range(0, len(rows), BATCH_SIZE), "measuring the KL divergence", unit="batches"):
            nats, tokens = kl_to_reference(
                model.policy, learner.sample_once(collate(rows[start : start + BATCH_SIZE]), model.policy)
            )
            total += nats
            count += tokens
        return total / max(1, count)

    @property
    def _referenced(self) -> bool:
        return all(prompt.reference for prompt in self._prompts)

    def _metrics(self) -> list[tuple[str, Callable[[RewardedCompletions], FloatArray]]]:
        """Return metrics by name, the headline first, each with a function that gives one value per row."""
        metrics: list[tuple[str, Callable[[RewardedCompletions], FloatArray]]] = [
            ("reward", lambda predictions: np.array(predictions.rewards))
        ]
        parts = self._objective.reward if isinstance(self._objective.reward, dict) else {}
        if len(parts) > 1:
            short = {name: name.rpartition("/")[2].rpartition(":")[2] for name in parts}
            if len(set(short.values())) < len(short):
                short = {name: name for name in parts}
            metrics += [(f"reward: {short[name]}", self._part(name)) for name in parts]
        if self._referenced:
            references = [prompt.reference for prompt in self._prompts]
            metrics.append(("rouge_l", lambda predictions: rouge_l(references, predictions.answers.given)))
        return metrics

    def _part(self, name: str) -> Callable[[RewardedCompletions], FloatArray]:
        """Return the function that computes one of several rewards, unweighted."""
        score = scorer(name, key="objective.reward")

        def of(predictions: RewardedCompletions) -> FloatArray:
            rows = zip(self._prompts, predictions.answers.given, predictions.answers.finished, strict=True)
            return np.array(score([Completion(*row) for row in rows]))

        return of


def find_warnings(facts: RewardDiagnostics) -> tuple[str, ...]:
    """Return warnings about known side effects of optimizing a reward."""
    warnings = []
    if facts.kl_per_token is not None and facts.kl_per_token > FAR:
        warnings.append(
            f"KL to the base model is {facts.kl_per_token:.2f} nats/token; raise objective.beta or train fewer steps"
        )
    before, after = facts.words
    if not before / STRETCH <= after <= before * STRETCH:
        warnings.append(
            f"answers went from {before:.1f} to {after:.1f} words; read some and check that the reward intends this"
        )
    for problem, (base, tuned) in (("contain loops", facts.repeated_share), ("never end", facts.cut_off_share)):
        if tuned - base > MORE:
            warnings.append(f"{tuned:.0%} of answers {problem}, {base:.0%} before; penalize this in the reward")
    return tuple(warnings)
