"""Measures of two models on the same rows that need not exist in every row, such as the length of thoughts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.metrics.resampling import Clusters, bootstrap_p, difference_bounds, percentiles
from tunesmith.metrics.significance import DRAWS, compare_paired, interval

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]


class PairedMeasure(BaseModel):
    """One measure of base and tuned model with 95 % intervals; None for a model in which no row has it."""

    model_config = ConfigDict(frozen=True)

    base: float | None
    base_ci95: Interval | None
    tuned: float | None
    tuned_ci95: Interval | None
    delta: float | None  # tuned - base
    ci95: Interval | None  # of delta
    p_value: float | None
    n_base: int  # rows in which the base model has the measure
    n_tuned: int


def paired_mean(
    base: ArrayLike, tuned: ArrayLike, *, groups: Sequence[str] | None, scale: float = 1.0
) -> PairedMeasure:
    """Compare the means of a measure that every row has, by the paired test of `compare_paired`.

    Args:
        base: value of the base model per row, [N].
        tuned: value of the tuned model per row, [N].
        groups: group of each row, or None.
        scale: highest possible value.
    """
    comparison = compare_paired(base, tuned, groups=groups)
    return PairedMeasure(
        base=comparison.base,
        base_ci95=interval(base, groups=groups, scale=scale),
        tuned=comparison.tuned,
        tuned_ci95=interval(tuned, groups=groups, scale=scale),
        delta=comparison.delta,
        ci95=comparison.ci95,
        p_value=comparison.p_value,
        n_base=comparison.n,
        n_tuned=comparison.n,
    )


def paired_gain(
    before: Sequence[ArrayLike], after: Sequence[ArrayLike], *, groups: Sequence[str] | None
) -> PairedMeasure:
    """Compare what a change brings to base and tuned model, such as thoughts before the answer.

    Args:
        before: value per row without the change, of base and tuned model, [2, N].
        after: value per row with it, [2, N].
        groups: group of each row, or None.
    """
    gains = [compare_paired(b, a, groups=groups) for b, a in zip(before, after, strict=True)]
    differences = [np.subtract(a, b) for b, a in zip(before, after, strict=True)]
    compared = paired_mean(differences[0], differences[1], groups=groups)
    return compared.model_copy(update={"base_ci95": gains[0].ci95, "tuned_ci95": gains[1].ci95})


def paired_statistic(
    base: Sequence[float],
    tuned: Sequence[float],
    statistic: Callable[[FloatArray], float],
    *,
    groups: Sequence[str] | None,
    most: float,
) -> PairedMeasure:
    """Compare a statistic, such as a median, over the rows that have the measure.

    Interval and p-value of the difference are those of a paired bootstrap over clusters. A resample in which a model
    has no row with the measure is left out.

    Args:
        base: value of the base model per row, [N]; NaN in a row without the measure.
        tuned: value of the tuned model per row, [N].
        statistic: maps values, at least one, to one number.
        groups: group of each row, or None.
        most: largest possible value; the smallest is 0.
    """
    models = [np.asarray(values, dtype=np.float64) for values in (base, tuned)]
    clusters = Clusters.of(len(models[0]), groups)
    resampled = np.array(
        [
            [_over_present(statistic, values[rows]) for values in models]
            for rows in clusters.drawn_rows(np.random.default_rng(0), DRAWS)
        ]
    )  # [R, 2]
    scores = [_over_present(statistic, values) for values in models]
    bounds = [_bounds(resampled[:, i], models[i], clusters, groups, most=most) for i in range(2)]
    delta, ci95, p_value = scores[1] - scores[0], None, None
    if np.isfinite(delta):
        differences = resampled[:, 1] - resampled[:, 0]
        differences = differences[np.isfinite(differences)]
        low, high = difference_bounds(differences, clusters.count, most, most=most)
        p_value = bootstrap_p(differences, clusters.count) if clusters.count > 1 else 1.0
        ci95 = (min(low, delta), max(high, delta))
    counts = [int(np.isfinite(values).sum()) for values in models]
    return PairedMeasure(
        base=_known(scores[0]),
        base_ci95=bounds[0],
        tuned=_known(scores[1]),
        tuned_ci95=bounds[1],
        delta=_known(delta),
        ci95=ci95,
        p_value=p_value,
        n_base=counts[0],
        n_tuned=counts[1],
    )


def _over_present(statistic: Callable[[FloatArray], float], values: FloatArray) -> float:
    present = values[np.isfinite(values)]
    return float(statistic(present)) if len(present) else float("nan")


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _bounds(
    resampled: FloatArray, values: FloatArray, clusters: Clusters, groups: Sequence[str] | None, *, most: float
) -> Interval | None:
    """Return the interval of one model; None if no row has the measure."""
    present = np.isfinite(values)
    if not present.any():
        return None
    resampled = resampled[np.isfinite(resampled)]
    if np.isin(values[present], (0.0, 1.0)).all() or clusters.count < 2 or not np.ptp(resampled):
        # Shares; and constant values, for which the bootstrap would claim certainty.
        own = None if groups is None else [group for group, has in zip(groups, present, strict=True) if has]
        return interval(values[present], groups=own, scale=most)
    low, high = percentiles(resampled, clusters.count)
    return max(0.0, low), min(most, high)
