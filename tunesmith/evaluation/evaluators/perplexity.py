"""Measured without labels: what the untuned and the tuned model say to the same held-out documents."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunesmith.data.examples.types import Text
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import DataError
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet
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
from tunesmith.models.policy import Policy
from tunesmith.objectives import Domain
from tunesmith.training.mlm_head import how_made
from tunesmith.training.prepare import TrainingContext, masking_of

# Characters of a document that its line in predictions.jsonl shows.
MAX_SHOWN_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class PerplexityPredictions:
    """What a model says to each document, how long it took, and of a base with a head how that was made."""

    told: list[TokenLikelihood]
    seconds: float
    how: str = ""


class PerplexityEvaluator:
    """Scores what is said to documents: by how much, window for window."""

    shape: ClassVar[type[Any]] = PerplexityPredictions

    def __init__(self, eval_set: EvalSet[Domain]) -> None:
        self._objective = eval_set.objective
        self._frozen = eval_set
        self._examples = list(eval_set.examples)

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> PerplexityPredictions:
        """What the base says to the documents, an encoder through the head that the run begins with."""
        how = "as it is"
        if prepared.head is not None:
            policy.head = self._objective.head(policy)
            assert policy.head is not None
            policy.head.load_state_dict(prepared.head)
            how = how_made(out)
        policy.train(False)
        return self._read(policy, prepared.template, how=how)

    def predict(self, model: LocalModel) -> PerplexityPredictions:
        """What a model says to each document."""
        return self._read(model.policy, model.template)

    def compare(self, base: PerplexityPredictions, tuned: PerplexityPredictions, *, name: str) -> list[TaskScore]:
        """Base against tuned by the headline and what is reported beside it."""
        clusters = groups_of(self._examples)
        return [
            as_task(compare(one, base.told, tuned.told, groups=clusters), name=name, metric=one)
            for one in REPORTED[self._objective.metric]
            if can_tell(one, base.told)
        ]

    def score(self, said: PerplexityPredictions, *, name: str) -> list[Score]:
        """One model alone, by the headline and what is reported beside it."""
        return [
            Score(
                name=name,
                metric=one,
                score=rate(one, said.told),
                ci95=rate_interval(one, said.told, groups=groups_of(self._examples)),
                n=len(said.told),
            )
            for one in REPORTED[self._objective.metric]
            if can_tell(one, said.told)
        ]

    def compare_arms(
        self,
        task: TaskScore,
        *,
        base: PerplexityPredictions,
        tuned: PerplexityPredictions,
        controls: Mapping[str, PerplexityPredictions],
    ) -> tuple[list[ArmScore], list[ArmScore]]:
        """The base as a way among others; what the tuned model gains over it is the headline."""
        (alone,) = (one for one in self.score(base, name=BASE) if one.metric == task.metric)
        gain = Difference(**{name: getattr(task, name) for name in Difference.model_fields})
        return [ArmScore(**{**alone.model_dump(), "detail": base.how}, gain=gain, p_adjusted=task.p_value)], []

    def to_rows(self, sides: Mapping[str, PerplexityPredictions]) -> list[dict[str, Any]]:
        """A line for each document: what each side, under its name, finds it worth, higher being better."""
        found = []
        for i, example in enumerate(self._examples):
            named = {name: said.told[i] for name, said in sides.items()}
            text = example.text[:MAX_SHOWN_CHARS] if isinstance(example, Text) else ""
            line: dict[str, Any] = {"where": example.where, "group": example.group, "question": text, "gold": ""}
            line |= dict.fromkeys(named, "")
            line |= {f"score_{name}": row_score(_nats(self._objective.metric), one) for name, one in named.items()}
            found.append(line | {"counts": {name: asdict(one) for name, one in named.items()}})
        return found

    def diagnose(
        self,
        prepared: TrainingContext,
        model: LocalModel,
        *,
        base: PerplexityPredictions,
        tuned: PerplexityPredictions,
    ) -> Diagnostics:
        """Nothing: texts have neither probabilities of labels nor a voice to keep to."""
        return Diagnostics()

    def _read(self, policy: Policy, template: Template, *, how: str = "") -> PerplexityPredictions:
        began = time.perf_counter()
        masking = masking_of(self._objective, template, self._frozen.seed)
        asked = ReadingOptions(self._frozen.limit, self._objective.terms, masking)
        told = read(policy, template, [e.text for e in self._examples if isinstance(e, Text)], asked)
        if not any(one.tokens for one in told):
            raise DataError("data.test: no document has a second token to tell; hold longer ones out")
        return PerplexityPredictions(told, time.perf_counter() - began, how)


def _nats(metric: str) -> str:
    """The metric of one document: losses add up and compare, perplexities of short texts do not."""
    return "nats_per_token" if metric == "perplexity" else metric
