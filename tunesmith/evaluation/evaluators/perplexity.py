"""Evaluation by the likelihood of held-out documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.data.examples.types import Text
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import DataError
from tunesmith.evaluation.evaluators.base import EvalSet, Evaluator
from tunesmith.evaluation.perplexity import (
    REPORTED,
    ReadingOptions,
    TokenLikelihood,
    can_tell,
    compare,
    rate,
    rate_interval,
    read,
    row_score,
)
from tunesmith.evaluation.results import BASE
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.task_scores import ArmScore, Difference, Score, TaskScore, as_task
from tunesmith.models.kept_answers import answer_clock
from tunesmith.models.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.training.mlm_head import how_made
from tunesmith.training.prepare import TrainingContext, masking_of

# Characters of a document in predictions.jsonl.
MAX_SHOWN_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class PerplexityPredictions:
    """The likelihood of each document, how long it took in seconds, and how the head of a base model was made."""

    told: list[TokenLikelihood]
    seconds: float
    how: str = ""


class PerplexityEvaluator(Evaluator[PerplexityPredictions]):
    """Evaluates `domain` by perplexity or masked-token loss, and by the accuracy on domain terms."""

    shape: ClassVar[type[Any]] = PerplexityPredictions

    def __init__(self, eval_set: EvalSet[Domain]) -> None:
        self._objective = eval_set.objective
        self._eval_set = eval_set
        self._examples = list(eval_set.examples)

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> PerplexityPredictions:
        """Score the base model; an encoder uses the head that the run starts with."""
        how = "unchanged"
        if prepared.head is not None:
            policy.head = self._objective.head(policy)
            assert policy.head is not None
            policy.head.load_state_dict(prepared.head)
            how = how_made(out)
        policy.train(False)
        return self._read(policy, prepared.template, how=how)

    def predict(self, model: LocalModel) -> PerplexityPredictions:
        """Score each document with a model."""
        return self._read(model.policy, model.template)

    def compare(self, base: PerplexityPredictions, tuned: PerplexityPredictions, *, name: str) -> list[TaskScore]:
        """Compare base and tuned model by the headline metric and the metrics reported with it."""
        clusters = groups_of(self._examples)
        return [
            as_task(compare(metric, base.told, tuned.told, groups=clusters), name=name, metric=metric)
            for metric in REPORTED[self._objective.metric]
            if can_tell(metric, base.told)
        ]

    def score(self, predictions: PerplexityPredictions, *, name: str) -> list[Score]:
        """Score one model by the headline metric and the metrics reported with it."""
        return [
            Score(
                name=name,
                metric=metric,
                score=rate(metric, predictions.told),
                ci95=rate_interval(metric, predictions.told, groups=groups_of(self._examples)),
                n=len(predictions.told),
            )
            for metric in REPORTED[self._objective.metric]
            if can_tell(metric, predictions.told)
        ]

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: PerplexityPredictions,
        tuned: PerplexityPredictions,
        controls: Mapping[str, PerplexityPredictions],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """Compare with the base model, the only baseline; this comparison is the headline."""
        (score,) = (one for one in self.score(base, name=BASE) if one.metric == task.metric)
        gain = Difference(**{name: getattr(task, name) for name in Difference.model_fields})
        return [ArmScore(**{**score.model_dump(), "detail": base.how}, gain=gain, p_adjusted=task.p_value)], []

    def to_rows(self, predictions: Mapping[str, PerplexityPredictions]) -> list[dict[str, Any]]:
        """Return each document with its score under each model, higher is better, and the counts behind it."""
        records = []
        # Losses of short texts can be compared and added, perplexities cannot.
        metric = "nats_per_token" if self._objective.metric == "perplexity" else self._objective.metric
        for i, example in enumerate(self._examples):
            by_model = {name: one.told[i] for name, one in predictions.items()}
            text = example.text[:MAX_SHOWN_CHARS] if isinstance(example, Text) else ""
            record: dict[str, Any] = {"where": example.where, "group": example.group, "question": text, "gold": ""}
            record |= dict.fromkeys(by_model, "")
            record |= {f"score_{name}": row_score(metric, likelihood) for name, likelihood in by_model.items()}
            records.append(record | {"counts": {name: asdict(likelihood) for name, likelihood in by_model.items()}})
        return records

    def _read(self, policy: Policy, template: Template, *, how: str = "") -> PerplexityPredictions:
        start = answer_clock()
        masking = masking_of(self._objective, template, self._eval_set.seed)
        options = ReadingOptions(self._eval_set.limit, self._objective.terms, masking)
        likelihoods = read(policy, template, [e.text for e in self._examples if isinstance(e, Text)], options)
        if not any(likelihood.tokens for likelihood in likelihoods):
            raise DataError("data.test: no document has a token to predict; hold out longer documents")
        return PerplexityPredictions(likelihoods, answer_clock() - start, how)
