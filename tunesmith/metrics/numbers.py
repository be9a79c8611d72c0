"""Metrics of predicted values: Spearman's rank correlation, mean absolute error and R squared.

N rows, K distinct values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.metrics.resampling import Clusters, percentiles
from tunesmith.metrics.scores import RowStatistic
from tunesmith.metrics.significance import DRAWS, PairedComparison, compare_paired, corpus_compare, interval
from tunesmith.metrics.task_scores import ArmScore, Score, arm_scores

FloatArray = NDArray[np.float64]
# The headline metric, and those reported with it. Only the first judges the order alone, whatever the unit.
METRICS = ("spearman", "mae", "r2")


def spearman(gold: ArrayLike, given: ArrayLike) -> float:
    """Return Spearman's rank correlation [-1, 1]; equal values share their mean rank.

    Constant predictions order nothing and get 0.

    Args:
        gold: reference values, [N].
        given: predicted values, [N].

    Source: Spearman 1904, "The Proof and Measurement of Association between Two Things".
    """
    return spearman_pair(gold, given, given)(np.arange(len(np.asarray(gold))))[0]


def mae(gold: ArrayLike, given: ArrayLike) -> float:
    """Return the mean absolute error, in the unit of the values."""
    return float(np.abs(_array(gold) - _array(given)).mean())


def r2(gold: ArrayLike, given: ArrayLike) -> float:
    """Return 1 - squared error / squared deviation from the mean of `gold`; 0 if all of `gold` are equal."""
    return r2_pair(gold, given, given)(np.arange(len(np.asarray(gold))))[0]


def value(metric: str, gold: ArrayLike, given: ArrayLike) -> float:
    """Return the score of predictions by one of METRICS."""
    return {"spearman": spearman, "mae": mae, "r2": r2}[metric](gold, given)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Values [N] in a form that gives the ranks of any resample without sorting again."""

    codes: NDArray[np.intp]  # index of each value among the K distinct ones in ascending order, [N]

    @classmethod
    def of(cls, values: ArrayLike) -> _Ranked:
        return cls(np.unique(_array(values), return_inverse=True)[1])

    def ranks(self, counts: FloatArray) -> FloatArray:
        """Return the mean rank of each row, [N], where row i occurs `counts[i]` times."""
        sizes = np.bincount(self.codes, weights=counts)
        ranks: FloatArray = (np.cumsum(sizes) - (sizes - 1) / 2)[self.codes]
        return ranks


def spearman_pair(gold: ArrayLike, base: ArrayLike, tuned: ArrayLike) -> RowStatistic:
    """Return the function from row indices (repeats allowed) to Spearman's correlation of base and tuned."""
    ranked = [_Ranked.of(values) for values in (gold, base, tuned)]

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        counts = np.bincount(rows, minlength=len(ranked[0].codes)).astype(np.float64)
        reference, before, after = (column.ranks(counts) for column in ranked)
        return _correlation(reference, before, counts), _correlation(reference, after, counts)

    return statistic


def r2_pair(gold: ArrayLike, base: ArrayLike, tuned: ArrayLike) -> RowStatistic:
    """Return the function from row indices (repeats allowed) to R squared of base and tuned."""
    reference = _array(gold)
    errors = [(reference - _array(given)) ** 2 for given in (base, tuned)]

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        chosen = reference[rows]
        spread = float(((chosen - chosen.mean()) ** 2).sum())
        before, after = (0.0 if not spread else 1 - float(error[rows].sum()) / spread for error in errors)
        return before, after

    return statistic


def compare(
    metric: str, gold: ArrayLike, base: ArrayLike, tuned: ArrayLike, *, groups: Sequence[str] | None
) -> PairedComparison:
    """Compare the predictions of base and tuned model.

    Spearman and R squared are values of the whole set: paired bootstrap. Absolute errors are compared row by row.

    Args:
        metric: one of METRICS.
        gold: reference values, [N].
        base: predictions of the base model, [N].
        tuned: predictions of the tuned model, [N].
        groups: group of each row, or None.
    """
    if metric == "mae":
        before, after = (-np.abs(_array(gold) - _array(given)) for given in (base, tuned))
        found = compare_paired(before, after, groups=groups)
        low, high = found.ci95
        return replace(found, base=-found.base, tuned=-found.tuned, delta=-found.delta, ci95=(-high, -low))
    moved = (_array(base) != _array(tuned)).tolist()
    return corpus_compare(_statistic(metric, gold, base, tuned), moved, groups=groups, scale=1.0)


def score(metric: str, gold: ArrayLike, given: ArrayLike, *, name: str, groups: Sequence[str] | None) -> Score:
    """Score predictions, with a 95 % interval.

    Args:
        metric: one of METRICS.
        gold: target of each row, [N].
        given: prediction for each row, [N].
        name: of the arm.
        groups: group of each row, [N]; None treats rows as independent.

    Returns:
        The score; `ci95` is None where a bootstrap would claim certainty: a single cluster, or constant predictions.
    """
    count = len(_array(gold))
    bounds: tuple[float, float] | None = None
    if metric == "mae":
        errors = np.abs(_array(gold) - _array(given))
        bounds = interval(errors, groups=groups, scale=max(1.0, float(errors.max())))
    elif (clusters := Clusters.of(count, groups)).count > 1:
        statistic = _statistic(metric, gold, given, given)
        row_sets = clusters.drawn_rows(np.random.default_rng(0), DRAWS)
        resampled = np.array([statistic(rows)[0] for rows in row_sets])
        if np.ptp(resampled):
            low, high = percentiles(resampled, clusters.count)
            bounds = (max(-1.0, low) if metric == "spearman" else low, min(1.0, high))
    return Score(name=name, metric=metric, score=value(metric, gold, given), ci95=bounds, n=count)


def arms(
    metric: str,
    gold: ArrayLike,
    ways: Mapping[str, ArrayLike],
    tuned: ArrayLike,
    *,
    groups: Sequence[str] | None,
) -> list[ArmScore]:
    """Score each arm and compare it with the tuned model; p-values are adjusted for the whole family.

    Args:
        metric: one of METRICS.
        gold: reference values, [N].
        ways: predictions of each arm by name, [N] each.
        tuned: predictions of the tuned model, [N].
        groups: group of each row, or None.
    """
    comparisons = {name: compare(metric, gold, given, tuned, groups=groups) for name, given in ways.items()}
    scores = {name: score(metric, gold, given, name=name, groups=groups) for name, given in ways.items()}
    return arm_scores(scores, comparisons)


def _statistic(metric: str, gold: ArrayLike, base: ArrayLike, tuned: ArrayLike) -> RowStatistic:
    return (spearman_pair if metric == "spearman" else r2_pair)(gold, base, tuned)


def _correlation(first: FloatArray, second: FloatArray, counts: FloatArray) -> float:
    """Return Pearson's correlation of two columns whose row i occurs `counts[i]` times; 0 if one is constant."""
    total = counts.sum()
    a = first - counts @ first / total
    b = second - counts @ second / total
    spread = float(np.sqrt((counts @ (a * a)) * (counts @ (b * b))))
    return float(counts @ (a * b)) / spread if spread else 0.0


def _array(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
