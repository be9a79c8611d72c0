"""Bootstrap and permutation over clusters of rows, and the tests and intervals based on them.

N rows, G clusters, R resamples, S scores per row. A row without a group is a separate cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Indices = NDArray[np.intp]

ALPHA = 0.05
MIN_GROUPS = 6  # clusters with equal sign that an exact two-sided test needs: 2 / 2**6 < ALPHA < 2 / 2**5
_BLOCK = 2_000_000  # random values in memory at a time
_FEWEST_BEYOND = 10  # resamples beyond a quantile that estimate it
# Share of the chosen rows after which the tuned model may have answered enough -> level of a two-sided test there. All
# together reject with 5 %: alpha spending of the O'Brien-Fleming type (Lan and DeMets 1983, Biometrika 70:659), from
# `bench/noise/stages.py`. Intervals at these levels hold wherever a run stops (Jennison and Turnbull 1989). Half of the
# rows are the first stage: after a quarter the level is below the smallest p-value of 10,000 resamples.
STAGES = {0.5: 0.00305, 0.75: 0.01832, 1.0: 0.044}
_LEVEL: ContextVar[float] = ContextVar("level", default=ALPHA)


def level() -> float:
    """Return the level of a single test or interval: ALPHA, or less where one of several stages decides."""
    return _LEVEL.get()


@contextmanager
def at_level(value: float) -> Iterator[None]:
    """Run the block with another level of every test and interval; p-values are scaled to be compared with ALPHA."""
    token = _LEVEL.set(value)
    try:
        yield
    finally:
        _LEVEL.reset(token)


class Placed(Protocol):
    """A row with its location and group."""

    @property
    def where(self) -> str:
        """Return its location, `file:line`."""
        ...

    @property
    def group(self) -> str:
        """Return its source, shared with other rows; empty for none."""
        ...


def groups_of(rows: Sequence[Placed]) -> list[str] | None:
    """Return the group of each row, a row without one being its own group; None if no row has a group."""
    if not any(row.group for row in rows):
        return None
    return [row.group or f"\n{row.where}" for row in rows]  # no group name begins with a line break


@dataclass(frozen=True, slots=True)
class Clusters:
    """The assignment of rows to clusters, the unit of all resampling."""

    codes: Indices  # cluster index of each row, [N]
    sizes: FloatArray  # rows of each cluster, [G]

    @classmethod
    def of(cls, n: int, groups: Sequence[str] | None) -> Clusters:
        """Return the clusters of `n` rows; without groups each row is its own cluster."""
        if groups is None:
            return cls(np.arange(n), np.ones(n))
        if len(groups) != n:
            raise ValueError(f"{len(groups)} groups for {n} rows")
        index: dict[str, int] = {}
        codes = np.array([index.setdefault(group, len(index)) for group in groups], dtype=np.intp)
        return cls(codes, np.bincount(codes).astype(np.float64))

    @property
    def count(self) -> int:
        """Return the number of clusters, G."""
        return len(self.sizes)

    @property
    def grouped(self) -> bool:
        """Return whether any cluster has several rows."""
        return len(self.sizes) < len(self.codes)

    def sums(self, values: FloatArray) -> FloatArray:
        """Sum values [N] within each cluster, [G]."""
        return np.bincount(self.codes, weights=values, minlength=self.count).astype(np.float64)

    def drawn_means(self, values: FloatArray, rng: np.random.Generator, resamples: int) -> FloatArray:
        """Return bootstrap means [R] of values [N], each over G clusters sampled with replacement."""
        return self.drawn_rates([values], np.ones(len(self.codes)), rng, resamples)[:, 0]

    def bounded_means(
        self, values: FloatArray, scale: float, rng: np.random.Generator, resamples: int
    ) -> tuple[FloatArray, FloatArray]:
        """Return resampled means [R] for a lower and for an upper bound of the mean of values [N].

        Clusters get exponential weights (a Bayesian bootstrap), and one more cluster is added, as large as the largest,
        whose rows are all as low, or as high, as possible: resamples of the rows alone would claim that what they do
        not show never happens. For single rows with scores of 0 and 1, the quantiles are those of Clopper and Pearson.

        Args:
            values: differences of scores, [N].
            scale: largest possible difference of a row.
            rng: source of randomness.
            resamples: R.

        Source: Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a
        nonnegative variable"; Learned-Miller and Thomas 2019, arXiv 1905.06208.
        """
        sums, sizes = self.sums(values), self.sizes
        largest = float(sizes.max())
        lower, upper = [], []
        for size in _blocks(resamples, self.count + 1):
            weights = rng.exponential(size=(size, self.count + 1))
            over, extreme = weights[:, :-1] @ sums, weights[:, -1]
            under = weights[:, :-1] @ sizes + extreme * largest
            lower.append((over - extreme * largest * scale) / under)
            upper.append((over + extreme * largest * scale) / under)
        return np.concatenate(lower), np.concatenate(upper)

    def drawn_rates(
        self, over: Sequence[FloatArray], under: FloatArray, rng: np.random.Generator, resamples: int
    ) -> FloatArray:
        """Return bootstrap ratios of sums, each over G clusters sampled with replacement.

        Args:
            over: S numerators, each [N].
            under: the denominator, [N].
            rng: source of randomness.
            resamples: R.

        Returns:
            [R, S]; all S ratios of a resample use the same clusters.
        """
        below = self.sums(under)
        above = [self.sums(values) for values in over]
        blocks = []
        for size in _blocks(resamples, self.count):
            resampled = rng.integers(self.count, size=(size, self.count))
            divisor = np.maximum(below[resampled].sum(axis=1), 1e-12)
            blocks.append(np.stack([sums[resampled].sum(axis=1) / divisor for sums in above], axis=1))
        return np.concatenate(blocks)

    def drawn_rows(self, rng: np.random.Generator, resamples: int) -> Iterator[Indices]:
        """Yield R times the row indices of G clusters sampled with replacement."""
        order = np.argsort(self.codes, kind="stable")
        lengths = self.sizes.astype(np.intp)
        starts = np.cumsum(lengths) - lengths
        for _ in range(resamples):
            resampled = rng.integers(self.count, size=self.count)
            length = lengths[resampled]
            shift = starts[resampled] - (np.cumsum(length) - length)
            yield order[np.repeat(shift, length) + np.arange(length.sum())]


def mcnemar(change: FloatArray) -> float:
    """Return the p-value of the exact two-sided McNemar test from the signs of the differences per row, [N].

    Source: McNemar 1947, in the exact binomial form.
    """
    from scipy.special import bdtr

    better = int((change > 0).sum())
    worse = int((change < 0).sum())
    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def sign_flip(change: FloatArray, rng: np.random.Generator, resamples: int) -> float:
    """Return the two-sided p-value of a sign-flip permutation test.

    Args:
        change: difference per cluster, [G].
        rng: source of randomness.
        resamples: random flips; all flips are enumerated where there are no more than this.

    Returns:
        Share of flips whose sum is at least as far from 0 as the observed one.
    """
    moved = change[change != 0]
    if not len(moved):
        return 1.0
    # Floating-point sums in another order differ in their last bits; the tolerance counts them as ties.
    observed = abs(float(moved.sum())) - 1e-9 * float(np.abs(moved).sum())
    if 2 ** len(moved) <= resamples:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(signs @ moved) >= observed).mean())
    hits = 0
    for size in _blocks(resamples, len(moved)):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(size, len(moved)), dtype=np.int8)
        hits += int((np.abs(signs @ moved) >= observed).sum())
    return (1 + hits) / (1 + resamples)


def percentiles(resampled: FloatArray, clusters: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrap resamples [R], expanded for few clusters.

    Below MIN_GROUPS clusters the resamples cannot exceed the range of the clusters, and the quantiles of a low level
    may have only a few resamples beyond them. The interval then also covers the one of Student's t.

    Source: Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv 1411.5279, expanded percentiles.
    """
    t, tail = _tail(clusters)
    low, high = map(float, np.quantile(resampled, (tail, 1 - tail)))
    if clusters < MIN_GROUPS or tail * len(resampled) < _FEWEST_BEYOND:
        middle = float(resampled.mean())
        reach = t * _standard_error(resampled, clusters)
        low, high = min(low, middle - reach), max(high, middle + reach)
    return low, high


def difference_bounds(resampled: FloatArray, clusters: int, scale: float, *, most: float) -> tuple[float, float]:
    """Return the 95 % interval of a difference from its bootstrap resamples.

    If all resamples are 0, the percentile interval would claim certainty; it is replaced by the Wilson interval of a
    share of 0.

    Args:
        resampled: resampled differences, [R].
        clusters: number of clusters, G.
        scale: range of the metric, used where resamples give no interval.
        most: largest possible absolute difference.
    """
    if clusters < 2:
        return -scale, scale
    if not resampled.any():
        reach = scale * wilson(0.0, clusters)[1]
        return -reach, reach
    low, high = percentiles(resampled, clusters)
    return max(-most, low), min(most, high)


def bootstrap_p(resampled: FloatArray, clusters: int) -> float:
    """Return the level at which the interval of `percentiles` just reaches 0.

    Where that also covers the interval of Student's t, it is at least the p-value of this t, and of an exact test in
    which all clusters have the same sign.
    """
    from scipy.special import ndtri, stdtr

    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    share = min(0.5, (1 + beyond) / (1 + len(resampled)))
    p: float = 2 * float(stdtr(clusters - 1, ndtri(share) * math.sqrt((clusters - 1) / clusters)))
    error = _standard_error(resampled, clusters)
    if clusters >= MIN_GROUPS:
        if _tail(clusters)[1] * len(resampled) >= _FEWEST_BEYOND:
            return p
        if not beyond:  # no percentile interval reaches 0, whatever its level
            p = 0.0
    p = max(p, 2.0 ** (1 - clusters))
    return p if not error else max(p, 2 * float(stdtr(clusters - 1, -abs(float(resampled.mean())) / error)))


def _tail(clusters: int) -> tuple[float, float]:
    """Return the quantile of Student's t for the level, and the share of resamples beyond the expanded percentile."""
    from scipy.special import ndtr, stdtrit

    t = float(stdtrit(clusters - 1, 1 - level() / 2))
    return t, float(ndtr(-math.sqrt(clusters / (clusters - 1)) * t))


def _standard_error(resampled: FloatArray, clusters: int) -> float:
    """Return the bootstrap standard error, unbiased by sqrt(G / (G - 1)) (Hesterberg 2015)."""
    return float(resampled.std()) * math.sqrt(clusters / (clusters - 1))


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share `mean` of `n` independent rows. Source: Wilson 1927."""
    from scipy.special import ndtri

    z2 = float(ndtri(1 - level() / 2)) ** 2
    middle = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _blocks(total: int, width: int) -> list[int]:
    size = max(1, _BLOCK // width)
    return [min(size, total - start) for start in range(0, total, size)]
