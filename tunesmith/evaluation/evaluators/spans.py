"""Evaluation by marked spans, compared with those of the rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from tunesmith.data.examples.spans import readable
from tunesmith.data.examples.types import Example, Span, TaggedText
from tunesmith.data.tokenization.span_tokens import TextTokens
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.evaluation.diagnostics import SHUFFLED
from tunesmith.evaluation.evaluators.base import Diagnostics, EvalSet, RowEvaluator, RowMetrics
from tunesmith.evaluation.predict import BASELINES
from tunesmith.evaluation.results import SpanCounts
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics import spans
from tunesmith.metrics.baselines import fit_linear
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.span_baselines import Marked, crf_tagger, dictionary_tagger
from tunesmith.metrics.spans import SPAN_OUTCOMES, outcomes, row_f1
from tunesmith.models.batch import collate
from tunesmith.models.kept_answers import answer_clock, once
from tunesmith.models.policy import Policy
from tunesmith.objectives.tag import Tag
from tunesmith.phases import phase
from tunesmith.training.prepare import TrainingContext

DICTIONARY, CRF = "dictionary of the training spans", "conditional random field"
CONTROLS = {SHUFFLED: "same recipe, spans of other rows"}
# Training tokens that the probe of the base model is fitted on; rows with a label that none of them has are added.
PROBE_TOKENS = 10_000
UNSEEN = -1e4  # logit of a tag that none of them has


@dataclass(frozen=True, slots=True)
class SpanPredictions:
    """The spans that a model marks in each row, and for the base model also those of the baselines."""

    given: list[list[Span]]
    seconds: float
    ways: dict[str, list[list[Span]]] = field(default_factory=dict)


class SpanEvaluator(RowEvaluator[SpanPredictions]):
    """Evaluates `tag` by F1, precision and recall of exact spans, and by F1 of overlapping ones."""

    shape: ClassVar[type[Any]] = SpanPredictions
    row_metrics: ClassVar[RowMetrics] = spans
    details: ClassVar[Mapping[str, str]] = CONTROLS
    probed: ClassVar[str] = "logistic regression on the tokens of the frozen model"

    def __init__(self, eval_set: EvalSet[Tag]) -> None:
        self._objective = eval_set.objective
        self._examples = _tagged(eval_set.examples)
        self._texts = [example.text for example in self._examples]
        self._gold = [list(example.spans) for example in self._examples]
        self._groups = groups_of(self._examples)
        self._metrics = tuple(spans.METRICS)
        self._limit = eval_set.limit

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> SpanPredictions:
        """Mark by logistic regression on the token states of the base model, and by the baselines."""
        train = _tagged(prepared.loaded.split.train)
        policy.train(False)
        found = self.probe(LocalModel(policy, prepared.template, self._objective, self._limit), train)
        marked: list[Marked] = [(example.text, example.spans) for example in train]
        with phase("baselines"):
            for name, tagger in ((DICTIONARY, dictionary_tagger), (CRF, crf_tagger)):
                found.ways[name] = [
                    [Span(*span) for span in row] for row in once(BASELINES, tagger, marked, self._texts)
                ]
        return found

    def probe(self, model: LocalModel, train: Sequence[Example], *, seed: int = 0) -> SpanPredictions:
        """Mark by logistic regression on the token states of a model that is not tuned, fitted to training tokens."""
        objective, template = self._objective, model.template
        rows, states, tags, row_of = _tagged(train), list[torch.Tensor](), list[str](), list[int]()
        random.Random(seed).shuffle(rows)
        seen = set[str]()
        for number, row in enumerate(rows):
            labels = {span.label for span in row.spans}
            if len(tags) < PROBE_TOKENS or labels - seen:
                encoded = objective.encode_all(row, template, limit=model.limit)
                states += [_states(model.policy, window) for window in encoded if window.hidden]
                tags += [objective.all_tags[tag] for window in encoded for _, tag in window.hidden]
                row_of += [number] * (len(tags) - len(row_of))
                seen |= labels
        fitted = fit_linear(torch.cat(states).numpy(), tags, metric="macro_f1", groups=row_of)
        index = [objective.all_tags.index(tag) for tag in fitted.labels]
        layer = torch.nn.Linear(model.policy.hidden, len(objective.all_tags))
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(UNSEEN)
            layer.weight[index], layer.bias[index] = (torch.tensor(p).float() for p in (fitted.weight, fitted.bias))
        layer.to(model.policy.device)
        start = answer_clock()  # as for other models, fitting is not counted
        read = [TextTokens.of(text, template) for text in self._texts]
        found = zip(read, objective.tagged(read, model, layer), strict=True)
        given = [[span for span, _ in objective.marked(tokens, marks)] for tokens, (marks, _) in found]
        return SpanPredictions(given, answer_clock() - start)

    def predict(self, model: LocalModel) -> SpanPredictions:
        """Mark the spans with a model."""
        start = answer_clock()
        found = self._objective.answers(self._texts, model)
        given = [[Span(span["start"], span["end"], span["label"]) for span in row["spans"]] for row in found]
        return SpanPredictions(given, answer_clock() - start)

    def to_rows(self, predictions: Mapping[str, SpanPredictions]) -> list[dict[str, Any]]:
        """Return each row with its spans, those that each model marked, and the F1 of the row."""
        f1 = {f"score_{name}": row_f1(self._gold, one.given) for name, one in predictions.items()}
        records = []
        for i, example in enumerate(self._examples):
            record: dict[str, Any] = {"where": example.where, "group": example.group}
            record |= {"question": example.text, "gold": readable(example.spans, example.text)}
            record |= {name: readable(one.given[i], example.text) for name, one in predictions.items()}
            records.append(record | {name: values[i] for name, values in f1.items()})
        return records

    def diagnose(
        self, prepared: TrainingContext, model: LocalModel, *, base: SpanPredictions, tuned: SpanPredictions
    ) -> Diagnostics:
        """Count what became of the spans of all rows and of each label, for base and tuned model."""
        labels = ("", *self._objective.labels)
        both = [{label: outcomes(self._gold, one.given, label) for label in labels} for one in (base, tuned)]
        return Diagnostics(
            span_counts={
                label: SpanCounts(**{name: tuple(side[label][name] for side in both) for name in SPAN_OUTCOMES})
                for label in labels
            }
        )


@torch.no_grad()
def _states(policy: Policy, window: Encoded) -> torch.Tensor:
    """Return the states of the tokens that a window answers, [M, D]."""
    return policy.learned(collate([window]).to(policy.device)).float().cpu()


def _tagged(examples: Sequence[Example]) -> list[TaggedText]:
    return [example for example in examples if isinstance(example, TaggedText)]
