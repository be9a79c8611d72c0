"""Evaluation of searches: the passages that a model ranks first for a query; and of similarities of two texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tunesmith.data.examples.types import Query
from tunesmith.data.text.words import folded
from tunesmith.evaluation.candidates import candidates
from tunesmith.evaluation.diagnostics import SHUFFLED
from tunesmith.evaluation.evaluators.base import EvalSet, RowEvaluator, RowMetrics
from tunesmith.evaluation.evaluators.numbers import NumberEvaluator, NumberPredictions
from tunesmith.evaluation.hard_negatives import search
from tunesmith.evaluation.predict import BASELINES
from tunesmith.evaluation.results import BASE
from tunesmith.inference.local_model import LocalModel
from tunesmith.metrics import ranking
from tunesmith.metrics.resampling import groups_of
from tunesmith.models.kept_answers import answer_clock, once
from tunesmith.models.policy import Policy
from tunesmith.objectives import Embed, Rerank
from tunesmith.objectives.base import Retriever
from tunesmith.phases import phase
from tunesmith.retrieval.index import has_words, rank_by_words, reciprocal_ranks
from tunesmith.training.prepare import TrainingContext

WORDS, FUSED = "BM25", "BM25 + base"
DETAILS = {
    BASE: "the base model's own vectors",
    WORDS: "words that query and passage share",
    FUSED: "reciprocal rank fusion",
    SHUFFLED: "same recipe, shuffled passages",
}
RETRIEVED = {"words": WORDS, "vectors": "vectors", "fused": "BM25 + vectors"}  # names of searches
SHOWN = 3  # passages of each ranking in predictions.jsonl


@dataclass(frozen=True, slots=True)
class RankedPassages:
    """The passages that a model ranks first for each query, by index; the base has also those of the baselines."""

    given: list[list[int]]
    seconds: float
    ways: dict[str, list[list[int]]] = field(default_factory=dict)


class RetrievalEvaluator(RowEvaluator[RankedPassages]):
    """Evaluates `embed` by nDCG@10, recall and the reciprocal rank, over the passages of all rows and documents."""

    shape: ClassVar[type[Any]] = RankedPassages
    row_metrics: ClassVar[RowMetrics] = ranking
    details: ClassVar[Mapping[str, str]] = DETAILS

    def __init__(self, eval_set: EvalSet[Embed | Rerank]) -> None:
        self._examples = [example for example in eval_set.examples if isinstance(example, Query)]
        self._queries = [example.text for example in self._examples]
        self._limit = eval_set.limit
        self._groups = groups_of(self._examples)
        self._metrics = tuple(ranking.METRICS)
        given = eval_set.objective
        self._objective = given if given.passages else given.for_rows(self._examples)
        self._passages = self._objective.passages
        places: dict[str, set[int]] = {}
        for i, text in enumerate(self._passages):
            places.setdefault(folded(text), set()).add(i)
        # The right passages of each query, of whatever part of the split; and itself, which is not searched.
        self._gold, self._own = list[set[int]](), list[set[int]]()
        for example in self._examples:
            right = set[int]().union(*(places.get(text, ()) for text in self._objective.right(example)))
            own = places.get(folded(example.text), set())
            self._own.append(own if example.label else own - right)
            self._gold.append(right - self._own[-1])

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> RankedPassages:
        """Rank by the untouched base model, by BM25 if it is installed, and by both."""
        policy.train(False)
        found = self.predict(LocalModel(policy, prepared.template, self._objective, self._limit))
        if not has_words():
            return found
        with phase("baselines"):
            words = self._others(once(BASELINES, rank_by_words, list(self._passages), self._queries))
        return replace(found, ways={WORDS: words, FUSED: reciprocal_ranks(words, found.given)})

    def predict(self, model: LocalModel) -> RankedPassages:
        """Rank the passages by the vectors of a model."""
        start = answer_clock()
        found = search(model, self._queries, self._passages)
        return RankedPassages(self._others(found), answer_clock() - start)

    def details_of(self, ways: Mapping[str, Any]) -> dict[str, str]:
        """Return what is stated with base, baselines and controls: recall@5 as well."""
        details, recall = super().details_of(ways), ranking.METRICS["recall_5"]
        return {
            name: f"{details.get(name, '')}; recall@5 {recall(self._gold, given).mean():.3f}".removeprefix("; ")
            for name, given in ways.items()
        }

    def _others(self, rankings: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return rankings without the query itself, which is nearest to itself."""
        return [[i for i in ranking if i not in own] for ranking, own in zip(rankings, self._own, strict=True)]

    def to_rows(self, predictions: Mapping[str, RankedPassages]) -> list[dict[str, Any]]:
        """Return each query with its passage, and the first passages and nDCG@10 of each model."""
        values = {name: ranking.METRICS["ndcg"](self._gold, one.given) for name, one in predictions.items()}
        records = []
        for i, example in enumerate(self._examples):
            record: dict[str, Any] = {"where": example.where, "group": example.group}
            record |= {"question": example.text, "gold": example.passage}
            for name, one in predictions.items():
                record[name] = "\n\n".join(self._passages[j] for j in one.given[i][:SHOWN])
            records.append(record | {f"score_{name}": float(each[i]) for name, each in values.items()})
        return records


class RerankEvaluator(RetrievalEvaluator):
    """Evaluates `rerank` by the same metrics, over the passages that a search finds for each query."""

    details: ClassVar[Mapping[str, str]] = {
        BASE: "the untouched model: its own scores if it is a cross-encoder, else the cosine of its vectors",
        SHUFFLED: DETAILS[SHUFFLED],
        **dict.fromkeys(RETRIEVED.values(), "the order of the search"),
    }

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> RankedPassages:
        """Rank what the search finds by the untouched base model; the order of the search is a baseline."""
        policy.train(False)
        policy.head = self._objective.untuned_head(policy)
        found = self.predict(LocalModel(policy, prepared.template, self._objective, self._limit))
        policy.head = None
        return replace(found, ways={RETRIEVED[self._retriever.search]: self._found})

    def predict(self, model: LocalModel) -> RankedPassages:
        """Rank the passages that the search finds by the scores of a model, or by its vectors if it has no head."""
        found, start = self._found, answer_clock()
        pairs = [(row, i) for row, ranking in enumerate(found) for i in ranking]
        if model.policy.head is None:
            queries = model.embed(self._queries)
            used = {i: number for number, i in enumerate(dict.fromkeys(i for _, i in pairs))}
            passages = model.embed([self._passages[i] for i in used], passage=True)
            scores = iter([float(queries[row] @ passages[used[i]]) for row, i in pairs])
        else:
            scores = iter(model.relevance([(self._queries[row], self._passages[i]) for row, i in pairs]))
        given = [[i for i, _ in sorted(((i, next(scores)) for i in row), key=lambda item: -item[1])] for row in found]
        return RankedPassages(given, answer_clock() - start)

    @property
    def _retriever(self) -> Retriever:
        assert (found := self._objective.retriever) is not None
        return found

    @cached_property
    def _found(self) -> list[list[int]]:
        """The passages that the search finds for each query, best first."""
        with phase("baselines"):
            found = candidates(self._passages, self._queries, self._retriever)
        return [row[: self._retriever.candidates] for row in self._others(found)]


class SimilarityEvaluator(NumberEvaluator):
    """Evaluates scored pairs by the rank correlation of their cosine with the score."""

    probed: ClassVar[str] = ""

    def __init__(self, eval_set: EvalSet[Embed]) -> None:
        self._objective = eval_set.objective
        self._examples = self._pairs = [each for each in eval_set.examples if isinstance(each, Query)]
        self._gold = np.array([pair.score for pair in self._pairs], dtype=np.float64)
        self._groups = groups_of(self._pairs)
        self._limit = eval_set.limit
        self._metrics = ("spearman",)

    def evaluate_base(self, prepared: TrainingContext, policy: Policy, out: Path) -> NumberPredictions:
        """Return the cosines of the untouched base model."""
        policy.train(False)
        return self.predict(LocalModel(policy, prepared.template, self._objective, self._limit))

    def predict(self, model: LocalModel) -> NumberPredictions:
        """Return the cosine of each pair."""
        start = answer_clock()
        first = model.embed([pair.text for pair in self._pairs])
        second = model.embed([pair.passage for pair in self._pairs])
        return NumberPredictions((first * second).sum(dim=1).tolist(), answer_clock() - start)
