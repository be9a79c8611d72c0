"""Draws over clusters of rows, and the tests and intervals read off them.

N rows, G clusters, R resamples. Rows without a group are clusters of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

ALPHA = 0.05
FEWEST = 6  # clusters, all moved alike, that an exact two-sided test needs: 2 / 2**6 < ALPHA < 2 / 2**5
_BLOCK = 2_000_000  # random numbers held at a time


class Placed(Protocol):
    """A row that knows where it stands, and whose rows it belongs to."""

    @property
    def where(self) -> str:
        """Its place in its file."""
        ...

    @property
    def group(self) -> str:
        """The source that it shares with others; empty for none."""
        ...


def groups_of(rows: Sequence[Placed]) -> list[str] | None:
    """The rows' groups, a row without one alone in its own; None when none has one."""
    if not any(row.group for row in rows):
        return None
    return [row.group or f"\n{row.where}" for row in rows]  # no group is called like a row's place


@dataclass(frozen=True, slots=True)
class Clusters:
    """Which rows belong together: the cluster of each row [N] and the rows of each cluster [G]."""

    codes: Indices
    sizes: Floats

    @classmethod
    def of(cls, n: int, groups: Sequence[str] | None) -> Clusters:
        """The clusters of `n` rows; each row its own where there are no groups."""
        if groups is None:
            return cls(np.arange(n), np.ones(n))
        if len(groups) != n:
            raise ValueError(f"{len(groups)} groups for {n} rows")
        number: dict[str, int] = {}
        codes = np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.intp)
        return cls(codes, np.bincount(codes).astype(np.float64))

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return len(self.sizes)

    @property
    def grouped(self) -> bool:
        """Whether any two rows belong together."""
        return len(self.sizes) < len(self.codes)

    def sums(self, values: Floats) -> Floats:
        """[N] -> [G]: the sum of each cluster."""
        return np.bincount(self.codes, weights=values, minlength=self.count).astype(np.float64)

    def drawn_means(self, values: Floats, rng: np.random.Generator, resamples: int) -> Floats:
        """[N] -> [R]: the mean over the rows of G clusters drawn with repeats."""
        return self.drawn_rates([values], np.ones(len(self.codes)), rng, resamples)[:, 0]

    def drawn_rates(self, over: Sequence[Floats], under: Floats, rng: np.random.Generator, resamples: int) -> Floats:
        """S times [N], and [N] -> [R, S]: sum over sum in G clusters drawn with repeats, the same ones for all S."""
        below, above, blocks = self.sums(under), [self.sums(values) for values in over], []
        for size in _blocks(resamples, self.count):
            drawn = rng.integers(self.count, size=(size, self.count))
            divisor = np.maximum(below[drawn].sum(axis=1), 1e-12)
            blocks.append(np.stack([sums[drawn].sum(axis=1) / divisor for sums in above], axis=1))
        return np.concatenate(blocks)

    def drawn_rows(self, rng: np.random.Generator, resamples: int) -> Iterator[Indices]:
        """R times the row numbers of G clusters drawn with repeats."""
        order, lengths = np.argsort(self.codes, kind="stable"), self.sizes.astype(np.intp)
        starts = np.cumsum(lengths) - lengths
        for _ in range(resamples):
            drawn = rng.integers(self.count, size=self.count)
            length = lengths[drawn]
            shift = starts[drawn] - (np.cumsum(length) - length)
            yield order[np.repeat(shift, length) + np.arange(length.sum())]


def mcnemar(change: Floats) -> float:
    """The exact two-sided p of as many rows going one way, were both ways equally likely."""
    from scipy.special import bdtr

    better, worse = int((change > 0).sum()), int((change < 0).sum())
    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def sign_flip(change: Floats, rng: np.random.Generator, resamples: int) -> float:
    """[G] -> the share of sign flips whose sum is at least as far from 0; all flips where they are few."""
    moved = change[change != 0]
    if not len(moved):
        return 1.0
    # Sums of the same numbers in another order differ in their last bits: they are ties all the same.
    observed = abs(float(moved.sum())) - 1e-9 * float(np.abs(moved).sum())
    if 2 ** len(moved) <= resamples:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1)
        return float((np.abs(signs @ moved) >= observed).mean())
    hits = 0
    for size in _blocks(resamples, len(moved)):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(size, len(moved)), dtype=np.int8)
        hits += int((np.abs(signs @ moved) >= observed).sum())
    return (1 + hits) / (1 + resamples)


def percentiles(drawn: Floats, clusters: int) -> tuple[float, float]:
    """The middle 95 % of the resamples, widened for few clusters as Student's t is (Hesterberg 2015).

    Below FEWEST no resample lies beyond the smallest and the largest cluster, so Student's own interval counts as well.
    """
    from scipy.special import ndtr, stdtrit

    t = float(stdtrit(clusters - 1, 1 - ALPHA / 2))
    tail = float(ndtr(-math.sqrt(clusters / (clusters - 1)) * t))
    low, high = map(float, np.quantile(drawn, (tail, 1 - tail)))
    if clusters < FEWEST:
        middle, reach = float(drawn.mean()), t * _error(drawn, clusters)
        low, high = min(low, middle - reach), max(high, middle + reach)
    return low, high


def difference_bounds(drawn: Floats, clusters: int, scale: float, *, most: float) -> tuple[float, float]:
    """The interval of a difference that was drawn, no wider than `most`, which differences can be.

    Where none was ever drawn, it would claim certainty: it is as wide as that of a share of 0.
    """
    if clusters < 2:
        return -scale, scale
    if not drawn.any():
        reach = scale * wilson(0.0, clusters)[1]
        return -reach, reach
    low, high = percentiles(drawn, clusters)
    return max(-most, low), min(most, high)


def bootstrap_p(drawn: Floats, clusters: int) -> float:
    """The level at which the interval of `percentiles` would just reach 0; of few clusters no less than an exact
    test of them all gone one way has."""
    from scipy.special import ndtri, stdtr

    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    share = min(0.5, (1 + beyond) / (1 + len(drawn)))
    p: float = 2 * float(stdtr(clusters - 1, ndtri(share) * math.sqrt((clusters - 1) / clusters)))
    error = _error(drawn, clusters)
    if clusters >= FEWEST:
        return p
    p = max(p, 2.0 / 2**clusters)
    return p if not error else max(p, 2 * float(stdtr(clusters - 1, -abs(float(drawn.mean())) / error)))


def _error(drawn: Floats, clusters: int) -> float:
    """The standard error of what was drawn, made up for the clusters' mean being theirs (Hesterberg 2015)."""
    return float(drawn.std()) * math.sqrt(clusters / (clusters - 1))


def wilson(mean: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in `n` independent rows (Wilson 1927)."""
    from scipy.special import ndtri

    z2 = float(ndtri(1 - ALPHA / 2)) ** 2
    middle = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _blocks(total: int, width: int) -> list[int]:
    size = max(1, _BLOCK // width)
    return [min(size, total - start) for start in range(0, total, size)]
