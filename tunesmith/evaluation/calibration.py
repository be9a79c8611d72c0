"""Is the confidence worth anything: calibration errors, a temperature that mends it, and when to stay silent.

N rows, K classes. `correct` holds 0/1, `gold` the number of the right class.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TEMPERATURES = (0.01, 100.0)
SPREAD = 0.5  # of the temperature's logarithm, before any row was seen
_SMALLEST = 1e-12  # a right class given probability 0 costs 27.6 nats, not infinity


def softmax(logits: ArrayLike, *, temperature: float = 1.0) -> Floats:
    """[N, K] logits -> [N, K] probabilities."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """The mean distance between confidence and accuracy over bins of equally many rows (0 is perfect).

    Rows of equal confidence share a bin, so the order of the rows does not matter. With few rows the value is
    above 0 even for a perfect model: compare it only between models on the same rows.
    """
    sure, right = _pairs(confidence, correct)
    place = np.searchsorted(np.sort(sure), sure, side="left") * bins // len(sure)  # [N]
    return float(np.abs(np.bincount(place, weights=sure - right)).sum() / len(sure))


def brier(probabilities: ArrayLike, gold: ArrayLike) -> float:
    """The mean squared distance of the K probabilities from the truth: 0 is perfect, 2 the worst."""
    shares, truth = _table(probabilities, gold)
    wanted = np.zeros_like(shares)
    wanted[np.arange(len(truth)), truth] = 1
    return float(((shares - wanted) ** 2).sum(axis=1).mean())


def nll(probabilities: ArrayLike, gold: ArrayLike) -> float:
    """The mean negative log-probability of the right class, in nats."""
    shares, truth = _table(probabilities, gold)
    return float(-np.log(np.maximum(shares[np.arange(len(truth)), truth], _SMALLEST)).mean())


def fit_temperature(logits: ArrayLike, gold: ArrayLike) -> float:
    """The number to divide logits by for the least NLL on these (validation) rows; above 1 = overconfident.

    Guo et al. 2017, arXiv 1706.04599. The order of the classes, and with it accuracy, stays as it was. That it lies
    near 1 is believed beforehand, as much as a few dozen rows weigh: such rows are soon all right, and alone would
    make every answer certain.
    """
    from scipy.optimize import minimize_scalar

    values, truth = _table(logits, gold)

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        top = scaled.max(axis=1)
        chosen = scaled[np.arange(len(truth)), truth]
        likely = (np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top - chosen).sum()
        return float(likely + (log_temperature / SPREAD) ** 2 / 2)

    low, high = TEMPERATURES
    found = minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded")
    return math.exp(float(found.x))


def coverage_curve(confidence: ArrayLike, correct: ArrayLike) -> list[tuple[float, float]]:
    """(share answered, accuracy of those answers), from the surest rows to all of them.

    One point per distinct confidence: no threshold can part rows that are equally sure.
    """
    coverage, accuracy, _ = _selective(confidence, correct)
    return list(zip(coverage.tolist(), accuracy.tolist(), strict=True))


def threshold_for(confidence: ArrayLike, correct: ArrayLike, target_accuracy: float) -> float | None:
    """The lowest confidence to answer from, so that the answers reach the target; None if none does.

    To be picked on validation rows and judged on test rows: it is the luckiest of many thresholds.
    """
    _, accuracy, thresholds = _selective(confidence, correct)
    reached = np.flatnonzero(accuracy >= target_accuracy - 1e-12)
    return float(thresholds[reached[-1]]) if len(reached) else None


def _selective(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Coverage, accuracy and confidence at each distinct confidence, highest first."""
    sure, right = _pairs(confidence, correct)
    order = np.argsort(-sure, kind="stable")
    ranked = sure[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    answered = ends + 1.0
    return answered / len(sure), np.cumsum(right[order])[ends] / answered, ranked[ends]


def _pairs(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Floats]:
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape or sure.ndim != 1:
        raise ValueError(f"confidence of shape {sure.shape} against correct of shape {right.shape}")
    _some(len(sure))
    return sure, right


def _table(values: ArrayLike, gold: ArrayLike) -> tuple[Floats, Ints]:
    table, truth = np.asarray(values, dtype=np.float64), np.asarray(gold, dtype=np.int64)
    if table.ndim != 2 or truth.shape != table.shape[:1]:
        raise ValueError(f"values of shape {table.shape} against gold of shape {truth.shape}")
    _some(len(truth))
    return table, truth


def _some(rows: int) -> None:
    if not rows:
        raise DataError("calibration: there are no rows; give the validation set at least one")
