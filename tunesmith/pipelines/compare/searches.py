"""Retrieval figures of a comparison: every search on the same test rows, and the gains of the tuned retriever."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tunesmith.metrics import ranking
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import compare_paired, holm
from tunesmith.pipelines.compare.answers import ArmAnswers
from tunesmith.pipelines.compare.context import DEEP, ComparisonContext
from tunesmith.pipelines.compare.report import SearchGain
from tunesmith.pipelines.compare.selection import has_origins
from tunesmith.retrieval.index import Hit
from tunesmith.retrieval.recall import Recall, ids_of, recall

TUNED = "tuned-retriever"
RERANKED = "tuned-retriever+rerank"
METRICS = ("recall_5", "ndcg")


def measure_searches(
    context: ComparisonContext, answers: Sequence[ArmAnswers]
) -> tuple[list[Recall], list[SearchGain]]:
    """Measure the searches by words, by the untouched encoder, by both, and by the tuned retriever, if an arm has one.

    What a run of `rerank` ranks again is measured too.

    Returns:
        Recall, MRR and nDCG@10 of each, and the gains of the tuned retriever, with tests paired by test row and
        p-values adjusted for all of them; both empty if no test row has a known chunk.
    """
    if not has_origins(context.recipe):
        return [], []
    retrieval = context.retrieval()
    known = [row for row, ids in zip(context.test, retrieval.correct(context.test), strict=True) if ids]
    if not known:
        return [], []
    queries, correct = [retrieval.query(row) for row in known], retrieval.correct(known)
    index = retrieval.index
    methods = ("fused", "words", "vectors") if index.search == "fused" else (index.search,)
    hits = {method: index.find(queries, shown=DEEP, search=method) for method in methods}
    if run := next((arm.retriever for arm in answers if arm.retriever), ""):
        hits[TUNED] = context.tuned_retrieval(run).index.find(queries, shown=DEEP)
    if reranker := next((arm.reranker for arm in answers if arm.reranker), ""):
        hits[RERANKED] = context.search_of(run, reranker).index.find(queries, shown=DEEP)
    recalls = [recall(name, found, correct) for name, found in hits.items()]
    groups = groups_of(known)
    return recalls, _gains(hits, correct, groups) if run else []


def _gains(
    hits: dict[str, list[list[Hit]]], correct: Sequence[set[str]], groups: Sequence[str] | None
) -> list[SearchGain]:
    """Compare the tuned retriever with each untouched search, and ranking again with the tuned retriever."""
    values = {
        (metric, name): ranking.METRICS[metric](correct, ids_of(found))
        for metric, (name, found) in product(METRICS, hits.items())
    }
    against = [(TUNED, name) for name in hits if name not in (TUNED, RERANKED)]
    against += [(RERANKED, TUNED)] if RERANKED in hits else []
    pairs = {
        (metric, name, over): compare_paired(values[metric, over], values[metric, name], groups=groups)
        for metric, (name, over) in product(METRICS, against)
    }
    adjusted = holm({key: pair.p_value for key, pair in pairs.items()})
    return [
        SearchGain(
            metric=key[0], search=key[1], over=key[2], delta=pair.delta, ci95=pair.ci95, p_adjusted=adjusted[key]
        )
        for key, pair in pairs.items()
    ]
