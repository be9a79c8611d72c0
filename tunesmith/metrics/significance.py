"""Significance of the difference between base and tuned model, and the power of the test set.

The unit of chance is the cluster: scores of rows from one source document are correlated, and a test that treats
them as independent reports differences that do not exist. N rows, G clusters, R resamples; delta = tuned - base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError
from tunesmith.metrics.resampling import (
    ALPHA,
    MIN_GROUPS,
    Clusters,
    bootstrap_p,
    difference_bounds,
    level,
    mcnemar,
    percentiles,
    sign_flip,
    wilson,
)
from tunesmith.metrics.scores import RowStatistic, macro_f1_pair

FloatArray = NDArray[np.float64]
K = TypeVar("K")  # name of a comparison

POWER = 0.80
# Resamples for the interval of a single score. Comparisons use 10,000: a verdict depends on them.
DRAWS = 2_000
ROUNDS = 8  # fixed-point iterations for the required sample size
SMALL_SHARE = 0.02  # differences below 2 % of the scale are negligible
# Differences of mean losses that are negligible even if they are significant: 1 % of perplexity. Any change of weights
# moves the loss of every token a little in one direction, so that enough rows make every difference significant: of
# 30 runs on random letters, 4 were "better" by at most 0.005 nats.
NEGLIGIBLE_NATS = 0.01
# Losses and functions of them; of every other metric, higher is better.
_LOSSES = frozenset({"perplexity", "nats_per_token", "bits_per_byte", "masked_loss", "mae"})


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of the metric are better."""
    return metric in _LOSSES


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Base against tuned model on the same rows, with interval, p-value and verdict.

    Higher is better: negate losses before the comparison.
    """

    base: float
    tuned: float
    delta: float  # tuned - base
    ci95: tuple[float, float]  # of delta
    p_value: float
    n: int  # rows
    clusters: int
    test: str  # name of the test behind p_value
    smallest_detectable: float  # difference that such a test set detects with 80 % power
    # "better" or "worse" (p < 0.05); "no effect" (a difference of 2 % of the scale would have been detected, or the
    # difference of mean losses is below NEGLIGIBLE_NATS);
    # "inconclusive" (the test set is too small; about `rows_needed` rows suffice)
    verdict: str
    rows_needed: int | None = None

    @property
    def sentence(self) -> str:
        """Return the comparison as one readable line."""
        low, high = self.ci95
        rows = f"{self.n} rows" + (f" in {self.clusters} groups" if self.clusters < self.n else "")
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        line = (
            f"{self.verdict}: tuned {self.tuned:.4g}, base {self.base:.4g}, difference {self.delta:+.3g} "
            f"(95 % {low:+.3g} to {high:+.3g}, {p}, {rows})"
        )
        if self.verdict == "no effect" and self.p_value < ALPHA:
            return f"{line}; significant, but less than {NEGLIGIBLE_NATS:g} nats per token"
        if self.rows_needed is None:
            return line
        if self.base == self.tuned == 1:
            return f"{line}; the base already has the highest score, which more such rows cannot raise; use harder rows"
        if self.clusters < MIN_GROUPS:
            limit = f"a test needs at least {MIN_GROUPS} groups"
        else:
            limit = f"this test set detects differences of {self.smallest_detectable:.2g} or more"
        # The range of a metric from 0 to 1 needs no explanation.
        unit = max(abs(self.base), abs(self.tuned)) <= 1
        small = f"{SMALL_SHARE:g}" if unit else f"{100 * SMALL_SHARE:g} % of the range of the metric"
        return f"{line}; {limit}; to detect a difference of {small}, use about {self.rows_needed:,} test rows"


def compare_paired(
    base: ArrayLike,
    tuned: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> PairedComparison:
    """Compare mean scores of base and tuned by a paired test.

    Binary scores of independent rows: exact McNemar. Otherwise: sign-flip permutation of the differences summed per
    cluster, which assumes only that without an effect base and tuned are exchangeable within a cluster. The interval
    is a percentile bootstrap over clusters, extended to 0 where the test does not reject, so that it never claims a
    difference on its own. The scale is 1 for binary scores, else the range of the observed scores.

    Args:
        base: score of the base model per row, [N].
        tuned: score of the tuned model per row, [N].
        groups: group of each row, [N]; None treats rows as independent.
        seed: of the resampling.
        resamples: bootstrap resamples and random sign flips, R.

    Raises:
        ValueError: the scores are not two lists of equal length.
        DataError: there are no scores, or some are not finite.
    """
    before = _finite(base)
    after = _finite(tuned)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} scores of base for {len(after)} of tuned")
    clusters = Clusters.of(len(before), groups)
    rng = np.random.default_rng(seed)
    both = np.concatenate([before, after])
    change = clusters.sums(after - before)
    binary = _is_binary(both)
    exact = binary and not clusters.grouped
    scale = 1.0 if binary else float(np.ptp(both)) or 1.0
    most = 1.0 if both.min() >= 0 and both.max() <= 1 else math.inf
    comparison = PairedComparison(
        base=float(before.mean()),
        tuned=float(after.mean()),
        delta=float((after - before).mean()),
        ci95=difference_bounds(clusters.drawn_means(after - before, rng, resamples), clusters.count, scale, most=most),
        p_value=mcnemar(change) if exact else sign_flip(change, rng, resamples),
        n=len(before),
        clusters=clusters.count,
        test="McNemar, exact" if exact else "sign-flip permutation" + " by group" * clusters.grouped,
        smallest_detectable=scale,
        verdict="no effect",
    )
    # Standard deviation of the mean under random sign flips; a significant mean difference is not part of the noise.
    noise = clusters.sums(after - before - comparison.delta) if comparison.p_value < level() else change
    deviation = math.sqrt(float(noise @ noise)) / len(before)
    return judged(comparison, deviation, scale=scale, fewest_rows=MIN_GROUPS if binary or not change.any() else 0)


@dataclass(frozen=True, slots=True)
class MarginTest:
    """The test whether a candidate is worse than a reference by less than a margin, on the same rows."""

    delta: float  # candidate - reference
    ci95: tuple[float, float]  # of delta, two-sided
    at_least: float  # one-sided lower bound of delta at the level of the test, 95 %
    p_value: float  # of the hypothesis that the candidate is worse by the margin or more
    rows_needed: int | None  # for 80 % power if nothing is lost in truth; None if the test succeeds

    @property
    def not_worse(self) -> bool:
        """Return whether the candidate is shown to be not worse by the margin."""
        return self.p_value < ALPHA


def compare_to_margin(
    reference: ArrayLike,
    candidate: ArrayLike,
    *,
    margin: float,
    scale: float = 1.0,
    groups: Sequence[str] | None = None,
    resamples: int = 10_000,
) -> MarginTest:
    """Test that a candidate is not worse than a reference by a margin or more (one-sided non-inferiority).

    Args:
        reference: score per row, [N], higher is better.
        candidate: score of the same rows, [N].
        margin: loss that is not accepted, positive.
        scale: range of the scores.
        groups: group of each row, or None.
        resamples: R.

    Raises:
        DataError: there are no scores, or some are not finite.
    """
    from scipy.special import ndtri

    change = _finite(candidate) - _finite(reference)
    clusters = Clusters.of(len(change), groups)
    lower, upper = clusters.bounded_means(change, scale, np.random.default_rng(0), resamples)
    p_value = (1 + int((lower <= -margin).sum())) / (1 + resamples)
    # The deviation of the change around its mean, and three clusters (-log 0.05) for what is not seen.
    spread = clusters.sums(change - change.mean())
    deviation = math.sqrt(float(spread @ spread) / len(change))
    unseen = -math.log(ALPHA) * float(clusters.sizes.max())
    needed = ((ndtri(1 - ALPHA) + ndtri(POWER)) * deviation / margin) ** 2 + unseen * scale / margin
    return MarginTest(
        delta=float(change.mean()),
        ci95=(float(np.quantile(lower, 0.025)), float(np.quantile(upper, 0.975))),
        at_least=float(np.quantile(lower, ALPHA)),
        p_value=p_value,
        rows_needed=None if p_value < ALPHA else max(len(change) + 1, math.ceil(needed)),
    )


def smallest_margin(rows: int, *, scale: float = 1.0, groups: Sequence[str] | None = None) -> float:
    """Return the margin above which `compare_to_margin` calls equal scores not worse, in units of the scores.

    It depends on nothing but the rows, so that it can be known before anything is scored.

    Args:
        rows: N.
        scale: range of the scores.
        groups: group of each row, or None.
    """
    equal = np.zeros(rows)
    return -compare_to_margin(equal, equal, margin=scale, scale=scale, groups=groups).at_least


def corpus_compare(
    statistic: RowStatistic,
    moved: Sequence[bool],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    scale: float = 0.0,
) -> PairedComparison:
    """Compare a corpus-level score (such as macro-F1) of base and tuned by a paired bootstrap over clusters.

    The p-value is the share of resamples beyond 0, expanded like the interval, and no smaller than that of an exact
    test in which all changed clusters have the same sign.

    Args:
        statistic: maps row indices (repeats allowed) to the scores of base and tuned on these rows.
        moved: whether the two answers differ, [N].
        groups: group of each row, [N]; None treats rows as independent.
        seed: of the resampling.
        resamples: R.
        scale: the value of a perfect score; 0: 1 if no observed score exceeds 1, else 100.

    Raises:
        DataError: there are no rows.
    """
    n = len(moved)
    if not n:
        raise DataError("scores: no rows to compare; give the test set at least one row")
    clusters = Clusters.of(n, groups)
    base, tuned = statistic(np.arange(n))
    row_sets = clusters.drawn_rows(np.random.default_rng(seed), resamples)
    pairs = np.array([statistic(rows) for rows in row_sets])  # [R, 2]
    resampled = pairs[:, 1] - pairs[:, 0]
    changed = int((clusters.sums(np.asarray(moved, dtype=np.float64)) > 0).sum())
    scale = scale or (1.0 if max(abs(base), abs(tuned), float(np.abs(pairs).max())) <= 1 else 100.0)
    most = scale if pairs.min() >= 0 else math.inf  # correlations and R squared may be negative
    comparison = PairedComparison(
        base=base,
        tuned=tuned,
        delta=tuned - base,
        ci95=difference_bounds(resampled, clusters.count, scale, most=most),
        p_value=1.0 if changed < 2 else max(bootstrap_p(resampled, clusters.count), 2.0 ** (1 - changed)),
        n=n,
        clusters=clusters.count,
        test="paired bootstrap" + " by group" * clusters.grouped,
        smallest_detectable=scale,
        verdict="no effect",
    )
    return judged(comparison, float(resampled.std()), scale=scale, fewest_rows=MIN_GROUPS)


def around(score: float, resampled: FloatArray) -> FloatArray:
    """Center resampled scores [R] on the observed score.

    Corrects the bias of resampled macro-F1: rare labels, which models often get wrong, are missing from many
    resamples, which raises the score.
    """
    centred: FloatArray = np.clip(resampled + score - resampled.mean(), 0.0, 1.0)
    return centred


def corpus_interval(
    statistic: RowStatistic, n: int, *, groups: Sequence[str] | None = None, scale: float = 1.0, centred: bool = False
) -> tuple[float, float]:
    """Return the 95 % interval of a corpus-level score by a bootstrap over clusters.

    Args:
        statistic: maps row indices to scores; only the first score is used.
        n: number of rows.
        groups: group of each row, or None.
        scale: highest possible score.
        centred: center the resamples with `around`.
    """
    clusters = Clusters.of(n, groups)
    score = statistic(np.arange(n))[0] / scale
    row_sets = clusters.drawn_rows(np.random.default_rng(0), DRAWS)
    resampled = np.array([statistic(rows)[0] for rows in row_sets]) / scale
    if clusters.count < 2 or not np.ptp(resampled):  # an interval of width 0 would claim certainty
        low, high = wilson(score, clusters.count)
    else:
        low, high = percentiles(around(score, resampled) if centred else resampled, clusters.count)
    return scale * max(0.0, low), scale * min(1.0, high)


def compare_macro_f1(
    gold: Sequence[str],
    base: Sequence[str],
    tuned: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
) -> PairedComparison:
    """Compare macro-F1 of base and tuned labels with `corpus_compare`.

    Args:
        gold: label of each row, [N].
        base: label that the base gives each row, [N].
        tuned: label that the tuned model gives each row, [N].
        groups: group of each row, [N]; None treats rows as independent.
    """
    moved = [before != after for before, after in zip(base, tuned, strict=True)]
    return corpus_compare(macro_f1_pair(gold, base, tuned), moved, groups=groups)


def interval(values: ArrayLike, *, groups: Sequence[str] | None = None, scale: float = 1.0) -> tuple[float, float]:
    """Return the 95 % interval of a mean: Wilson for binary scores of independent rows, else a cluster bootstrap.

    Constant scores, or scores of a single cluster, get the Wilson interval with clusters as rows: the bootstrap would
    claim certainty.

    Args:
        values: score per row, [N].
        groups: group of each row, or None.
        scale: highest possible score; the interval is clipped to [0, scale] if all scores are inside.

    Raises:
        DataError: there are no scores, or some are not finite.
    """
    scores = _finite(values)
    clusters = Clusters.of(len(scores), groups)
    varied = bool(np.ptp(scores)) and clusters.count > 1
    if _is_binary(scores / scale) and not (clusters.grouped and varied):
        low, high = wilson(float(scores.mean()) / scale, clusters.count)
        return scale * low, scale * high
    inside = scores.min() >= 0 and scores.max() <= scale
    if not varied:
        low, high = wilson(float(scores.mean()) / scale, clusters.count) if inside else (scores.min(), scores.max())
        return (scale * low, scale * high) if inside else (float(low), float(high))
    resampled = clusters.drawn_means(scores, np.random.default_rng(0), 10_000)
    low, high = percentiles(resampled, clusters.count)
    return (max(0.0, low), min(scale, high)) if inside else (low, high)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Adjust p-values for multiple comparisons by Holm's method; names and order are kept. Source: Holm 1979."""
    adjusted: dict[K, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _finite(values: ArrayLike) -> FloatArray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"expected one score per row, got scores of shape {scores.shape}")
    if not len(scores):
        raise DataError("scores: no rows to compare; give the test set at least one row")
    not_finite = int((~np.isfinite(scores)).sum())
    if not_finite:
        raise DataError(f"scores: {not_finite} of {len(scores)} are not finite; check whether a model diverged")
    return scores


def _is_binary(scores: FloatArray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _quantiles(clusters: float) -> float:
    """Return the difference, in standard errors, that a two-sided t-test detects with 80 % power."""
    from scipy.special import stdtrit

    degrees = max(1.0, clusters - 1)
    return float(stdtrit(degrees, 1 - level() / 2) + stdtrit(degrees, POWER))


def _times(clusters: int, deviation: float) -> float:
    """Return the factor by which the number of clusters must grow; `deviation` is in units of the difference."""
    times = 1.0  # a fixed point: with more clusters the quantiles of t are narrower as well
    for _ in range(ROUNDS):
        times = max(1.0, (_quantiles(times * clusters) * deviation) ** 2)
    return times


def expected_to_detect(sizes: ArrayLike, deviation: float) -> float:
    """Return the difference of means that a test of clusters of these sizes [G] is expected to detect with 80 % power.

    The `deviation` of the change of a row is assumed, and that the rows of a cluster change together.
    """
    rows = _finite(sizes)
    return _quantiles(len(rows)) * deviation * float(np.linalg.norm(rows) / rows.sum())


def judged(comparison: PairedComparison, deviation: float, *, scale: float, fewest_rows: int = 0) -> PairedComparison:
    """Add the verdict and the power of the test set to a comparison.

    Args:
        comparison: the comparison; its `verdict` and `smallest_detectable` are replaced.
        deviation: standard deviation of `delta` without an effect.
        scale: range of the metric.
        fewest_rows: scores that must differ for a test to reject. Without this, a model that changes one of 50 rows
            would appear to be measured very precisely.
    """
    comparison = replace(comparison, p_value=min(1.0, comparison.p_value * ALPHA / level()))
    small = SMALL_SHARE * scale
    reach = _quantiles(comparison.clusters) * deviation
    smallest = scale if comparison.clusters < MIN_GROUPS else min(scale, max(reach, scale * fewest_rows / comparison.n))
    if comparison.p_value < ALPHA:
        return replace(comparison, smallest_detectable=smallest, verdict="better" if comparison.delta > 0 else "worse")
    low, high = comparison.ci95
    negligible = smallest <= small
    rows = (
        0.0
        if negligible
        else max(fewest_rows / SMALL_SHARE, comparison.n * _times(comparison.clusters, deviation / small))
    )
    return replace(
        comparison,
        ci95=(min(low, 0.0), max(high, 0.0)),
        smallest_detectable=smallest,
        verdict="no effect" if negligible else "inconclusive",
        rows_needed=None if negligible else math.ceil(max(rows, comparison.n * MIN_GROUPS / comparison.clusters)),
    )
