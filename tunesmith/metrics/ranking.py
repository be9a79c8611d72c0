"""Metrics of rankings: nDCG@10, recall@k and the mean reciprocal rank, one value per query.

N queries. A ranking lists passages by index or name, best first; a passage that it does not list is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.metrics.significance import PairedComparison, compare_paired, interval
from tunesmith.metrics.task_scores import ArmScore, Score, arm_scores

FloatArray = NDArray[np.float64]
Rankings = Sequence[Sequence[object]]
Gold = Sequence[Collection[object]]  # the passages that answer each query
DEPTH = 10  # ranks that nDCG looks at


def ndcg(gold: Gold, rankings: Rankings) -> FloatArray:
    """Return nDCG@10 of each query, [N], 0 to 1: gains of 1, discounted by log2(1 + rank).

    Source: Jarvelin and Kekalainen 2002, "Cumulated gain-based evaluation of IR techniques".
    """
    discounts = 1 / np.log2(np.arange(2, DEPTH + 2))
    found = [
        sum(discounts[rank] for rank, passage in enumerate(ranking[:DEPTH]) if passage in right)
        for right, ranking in zip(gold, rankings, strict=True)
    ]
    # Summed one by one as above, so that a perfect ranking has exactly 1.
    best = np.array([sum(discounts[: max(1, len(right))]) for right in gold], dtype=np.float64)
    return np.asarray(np.array(found) / best, dtype=np.float64)


def recall_at(cut: int) -> Callable[[Gold, Rankings], FloatArray]:
    """Return the metric that is the share of the right passages among the first `cut`, for each query."""

    def recall(gold: Gold, rankings: Rankings) -> FloatArray:
        shares = (
            sum(passage in right for passage in ranking[:cut]) / max(1, len(right))
            for right, ranking in zip(gold, rankings, strict=True)
        )
        return np.array(list(shares), dtype=np.float64)

    return recall


def reciprocal_rank(gold: Gold, rankings: Rankings) -> FloatArray:
    """Return 1 / rank of the first right passage of each query, [N]; 0 if none is listed."""
    ranks = (
        next((rank for rank, passage in enumerate(ranking, 1) if passage in right), 0)
        for right, ranking in zip(gold, rankings, strict=True)
    )
    return np.array([1 / rank if rank else 0.0 for rank in ranks])


# The headline, and the metrics reported with it.
METRICS: Mapping[str, Callable[[Gold, Rankings], FloatArray]] = {
    "ndcg": ndcg,
    "recall_1": recall_at(1),
    "recall_5": recall_at(5),
    "recall_10": recall_at(10),
    "mrr": reciprocal_rank,
}


def compare(
    metric: str, gold: Gold, base: Rankings, tuned: Rankings, *, groups: Sequence[str] | None
) -> PairedComparison:
    """Compare the rankings of base and tuned model query by query.

    Args:
        metric: one of METRICS.
        gold: right passages of each query, N.
        base: ranking of the base model for each query, N.
        tuned: ranking of the tuned model, N.
        groups: group of each query, or None.
    """
    return compare_paired(METRICS[metric](gold, base), METRICS[metric](gold, tuned), groups=groups)


def score(metric: str, gold: Gold, rankings: Rankings, *, name: str, groups: Sequence[str] | None) -> Score:
    """Score rankings with a 95 % interval; arguments as in `arms`, `name` is that of the arm."""
    values = METRICS[metric](gold, rankings)
    return Score(
        name=name, metric=metric, score=float(values.mean()), ci95=interval(values, groups=groups), n=len(gold)
    )


def arms(
    metric: str, gold: Gold, ways: Mapping[str, Rankings], tuned: Rankings, *, groups: Sequence[str] | None
) -> list[ArmScore]:
    """Score each arm and compare it with the tuned model; p-values are adjusted for the whole family.

    Args:
        metric: one of METRICS.
        gold: right passages of each query, N.
        ways: rankings of each arm by name, N each.
        tuned: rankings of the tuned model, N.
        groups: group of each query, or None.
    """
    comparisons = {name: compare(metric, gold, given, tuned, groups=groups) for name, given in ways.items()}
    scores = {name: score(metric, gold, given, name=name, groups=groups) for name, given in ways.items()}
    return arm_scores(scores, comparisons)
