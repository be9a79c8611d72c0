"""Is the tuned model really better on these rows, and could these rows have told?

The unit of chance is the cluster: rows of one source document rise and fall together, and a test that takes
them for independent finds differences that are not there. N rows, G clusters; delta = tuned - base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError
from tunesmith.evaluation.metrics import RowStatistic, macro_f1_pair
from tunesmith.evaluation.resampling import (
    ALPHA,
    FEWEST,
    Clusters,
    bootstrap_p,
    difference_bounds,
    mcnemar,
    percentiles,
    sign_flip,
    wilson,
)

Floats = NDArray[np.float64]

POWER = 0.80
# For the interval of one score alone; a comparison, which a verdict hangs on, takes more.
DRAWS = 2_000
ROUNDS = 8
SMALL_SHARE = 0.02  # a difference below 2 % of the scale counts as none
# Losses and what is made of them; more of anything else is better.
_LOSSES = frozenset({"perplexity", "nats_per_token", "bits_per_byte", "masked_loss"})


def lower_is_better(metric: str) -> bool:
    """Whether a smaller score is the better one."""
    return metric in _LOSSES


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Base against tuned on the same rows, and what may be said about it.

    `verdict`: "better" or "worse" (p < 0.05); "no effect" (these rows would have shown a difference of 2 % of
    the scale); "inconclusive" (too few rows to tell; about
    `rows_needed` would do). `smallest_detectable` is the difference that such rows show in 80 % of tries.
    Higher is taken for better: negate losses before comparing them.
    """

    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    n: int
    clusters: int
    test: str
    smallest_detectable: float
    verdict: str
    rows_needed: int | None = None

    @property
    def sentence(self) -> str:
        """The whole comparison as one line for people."""
        low, high = self.ci95
        where = f"{self.n} rows" + (f" in {self.clusters} groups" if self.clusters < self.n else "")
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        line = (
            f"{self.verdict}: tuned {self.tuned:.4g}, base {self.base:.4g}, difference {self.delta:+.3g} "
            f"(95 % {low:+.3g} to {high:+.3g}, {p}, {where})"
        )
        if self.rows_needed is None:
            return line
        if self.clusters < FEWEST:
            reach = f"fewer than {FEWEST} groups decide nothing"
        else:
            reach = f"so few rows show differences from {self.smallest_detectable:.2g} up"
        return f"{line}; {reach}, about {self.rows_needed:,} would show one of {100 * SMALL_SHARE:g} % of the scale"


def compare_paired(
    base: ArrayLike,
    tuned: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> PairedComparison:
    """The mean per-row score of tuned against that of base, row by row.

    0/1 scores of independent rows: exact McNemar. All else: sign-flip permutation of the clusters' summed
    differences, which assumes only that without an effect base and tuned may swap names cluster by cluster.
    The interval is a percentile bootstrap over clusters, stretched to 0 where the test does not reject: it
    never claims a difference alone. The scale is 1 for 0/1 scores, else the span of the scores seen.
    """
    before, after = _finite(base), _finite(tuned)
    if len(before) != len(after):
        raise ValueError(f"{len(before)} scores of base against {len(after)} of tuned")
    clusters, rng = Clusters.of(len(before), groups), np.random.default_rng(seed)
    both, change = np.concatenate([before, after]), clusters.sums(after - before)
    binary = _is_binary(both)
    exact = binary and not clusters.grouped
    scale = 1.0 if binary else float(np.ptp(both)) or 1.0
    most = 1.0 if both.min() >= 0 and both.max() <= 1 else math.inf
    found = PairedComparison(
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
    # The deviation of the sum where signs are flipped at random; what all rows have of a sure effect is no noise.
    noise = clusters.sums(after - before - found.delta) if found.p_value < ALPHA else change
    deviation = math.sqrt(float(noise @ noise)) / len(before)
    return judged(found, deviation, scale=scale, fewest_rows=FEWEST if binary or not change.any() else 0)


def corpus_compare(
    statistic: RowStatistic,
    moved: Sequence[bool],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> PairedComparison:
    """A score of the whole set (macro-F1) of tuned against base, by paired bootstrap over clusters.

    `statistic` gets row numbers, drawn with repeats, and answers (base, tuned) on those rows; `moved` [N] says in
    which the two differ. p comes from the share of resamples beyond 0, widened as the interval is, and is no less than
    an exact test of the clusters that moved can be, had all gone one way. The scale is 1 if every score seen is at
    most 1, else 100.
    """
    n = len(moved)
    if not n:
        raise DataError("scores: there are no rows to compare; give the test set at least one row")
    clusters = Clusters.of(n, groups)
    base, tuned = statistic(np.arange(n))
    draws = clusters.drawn_rows(np.random.default_rng(seed), resamples)
    pairs = np.array([statistic(rows) for rows in draws])  # [R, 2]
    drawn, changed = pairs[:, 1] - pairs[:, 0], int((clusters.sums(np.asarray(moved, dtype=np.float64)) > 0).sum())
    scale = 1.0 if max(abs(base), abs(tuned), float(np.abs(pairs).max())) <= 1 else 100.0
    found = PairedComparison(
        base=base,
        tuned=tuned,
        delta=tuned - base,
        ci95=difference_bounds(drawn, clusters.count, scale, most=scale),
        p_value=1.0 if changed < 2 else max(bootstrap_p(drawn, clusters.count), 2.0 ** (1 - changed)),
        n=n,
        clusters=clusters.count,
        test="paired bootstrap" + " by group" * clusters.grouped,
        smallest_detectable=scale,
        verdict="no effect",
    )
    return judged(found, float(drawn.std()), scale=scale, fewest_rows=FEWEST)


def around(score: float, drawn: Floats) -> Floats:
    """Drawn scores moved so that they scatter around the score: rare labels, often those that are missed, are in no row
    of many draws, which lifts macro F1."""
    moved: Floats = np.clip(drawn + score - drawn.mean(), 0.0, 1.0)
    return moved


def corpus_interval(
    statistic: RowStatistic, n: int, *, groups: Sequence[str] | None = None, scale: float = 1.0, centred: bool = False
) -> tuple[float, float]:
    """The 95 % interval of the first score of `statistic` alone, between 0 and `scale`, by a bootstrap over clusters;
    `centred` by `around`."""
    clusters = Clusters.of(n, groups)
    found = statistic(np.arange(n))[0] / scale
    draws = clusters.drawn_rows(np.random.default_rng(0), DRAWS)
    drawn = np.array([statistic(rows)[0] for rows in draws]) / scale
    if clusters.count < 2 or not np.ptp(drawn):  # what was drawn would claim certainty
        low, high = wilson(found, clusters.count)
    else:
        low, high = percentiles(around(found, drawn) if centred else drawn, clusters.count)
    return scale * max(0.0, low), scale * min(1.0, high)


def compare_macro_f1(
    gold: Sequence[str],
    base: Sequence[str],
    tuned: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
) -> PairedComparison:
    """Macro-F1 of tuned against base, by `corpus_compare`."""
    moved = [before != after for before, after in zip(base, tuned, strict=True)]
    return corpus_compare(macro_f1_pair(gold, base, tuned), moved, groups=groups)


def interval(
    values: ArrayLike, *, groups: Sequence[str] | None = None, seed: int = 0, scale: float = 1.0
) -> tuple[float, float]:
    """The 95 % interval of a mean: Wilson for 0/1 scores of independent rows, else a bootstrap over clusters.

    Scores that are all alike, or of one cluster, get Wilson's interval with clusters counted as rows: a bootstrap of
    them would claim certainty. `scale` is the highest score there is; scores up to it are not thought
    to go beyond.
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
    drawn = clusters.drawn_means(scores, np.random.default_rng(seed), 10_000)
    low, high = percentiles(drawn, clusters.count)
    return (max(0.0, low), min(scale, high)) if inside else (low, high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values adjusted for having looked at several (Holm 1979), named and ordered as they came."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _finite(values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores of shape {scores.shape}; one number per row is needed")
    if not len(scores):
        raise DataError("scores: there are no rows to compare; give the test set at least one row")
    lost = int((~np.isfinite(scores)).sum())
    if lost:
        raise DataError(f"scores: {lost} of {len(scores)} are not finite; look for a model that diverged")
    return scores


def _is_binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _quantiles(clusters: float) -> float:
    """Deviations of a difference that is found 80 times in 100."""
    from scipy.special import stdtrit

    degrees = max(1.0, clusters - 1)
    return float(stdtrit(degrees, 1 - ALPHA / 2) + stdtrit(degrees, POWER))


def _times(clusters: int, deviation: float) -> float:
    """How many times the clusters would show the difference that `deviation` is in units of; more of them have
    narrower quantiles too."""
    times = 1.0
    for _ in range(ROUNDS):
        times = max(1.0, (_quantiles(times * clusters) * deviation) ** 2)
    return times


def judged(found: PairedComparison, deviation: float, *, scale: float, fewest_rows: int = 0) -> PairedComparison:
    """The comparison with its verdict, from the deviation that `delta` has where there is no effect.

    At least `fewest_rows` scores must differ, however few differ here: else a model that changed one row of
    50 would seem to be measured to a hair.
    """
    small, reach = SMALL_SHARE * scale, _quantiles(found.clusters) * deviation
    smallest = scale if found.clusters < FEWEST else min(scale, max(reach, scale * fewest_rows / found.n))
    if found.p_value < ALPHA:
        return replace(found, smallest_detectable=smallest, verdict="better" if found.delta > 0 else "worse")
    low, high = found.ci95
    sure = smallest <= small
    rows = 0.0 if sure else max(fewest_rows / SMALL_SHARE, found.n * _times(found.clusters, deviation / small))
    return replace(
        found,
        ci95=(min(low, 0.0), max(high, 0.0)),
        smallest_detectable=smallest,
        verdict="no effect" if sure else "inconclusive",
        rows_needed=None if sure else math.ceil(max(rows, found.n * FEWEST / found.clusters)),
    )
