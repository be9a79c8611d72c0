"""Calibration of the stated probabilities: error measures, temperature scaling, and confidence thresholds.

N rows, K classes. `correct` [N] holds 0/1, `labels` [N] the index of the right class.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError

FloatArray = NDArray[np.float64]
Ints = NDArray[np.int64]

TEMPERATURES = (0.01, 100.0)
SPREAD = 0.5  # standard deviation of the prior on log(temperature)
_SMALLEST = 1e-12  # a right class with probability 0 costs 27.6 nats, not infinity


def softmax(logits: ArrayLike, *, temperature: float = 1.0) -> FloatArray:
    """Return probabilities [N, K] of logits [N, K] divided by the temperature."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error over bins with equally many rows.

    Rows of equal confidence share a bin, so the order of the rows does not matter. With few rows the value is
    above 0 even for a perfect model: compare it only between models on the same rows.

    Args:
        confidence: stated probability of each answer, [N].
        correct: 1 where the answer is right, else 0, [N].
        bins: number of bins.

    Returns:
        Mean absolute difference between confidence and accuracy; 0 is perfect.

    Source: Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", with equal-mass bins.
    """
    stated, right = _pairs(confidence, correct)
    bin_of_row = np.searchsorted(np.sort(stated), stated, side="left") * bins // len(stated)  # [N]
    return float(np.abs(np.bincount(bin_of_row, weights=stated - right)).sum() / len(stated))


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean squared distance of probabilities [N, K] from one-hot labels: 0 is perfect, 2 the worst.

    Source: Brier 1950, "Verification of Forecasts Expressed in Terms of Probability".
    """
    predicted, truth = _table(probabilities, labels)
    one_hot = np.zeros_like(predicted)
    one_hot[np.arange(len(truth)), truth] = 1
    return float(((predicted - one_hot) ** 2).sum(axis=1).mean())


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean negative log-probability of the right class, in nats per row."""
    predicted, truth = _table(probabilities, labels)
    return float(-np.log(np.maximum(predicted[np.arange(len(truth)), truth], _SMALLEST)).mean())


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Fit the temperature that minimizes the NLL of validation rows.

    A prior keeps it near 1 with the weight of a few dozen rows: on so small a set all rows may be right, and the
    likelihood alone would make every answer certain. Accuracy does not change, since the order of classes is kept.

    Args:
        logits: [N, K].
        labels: index of the right class, [N].

    Returns:
        The divisor of the logits; above 1 the model was overconfident.

    Source: Guo et al. 2017, arXiv 1706.04599. The prior is ours.
    """
    from scipy.optimize import minimize_scalar

    values, truth = _table(logits, labels)

    def loss(log_temperature: float) -> float:
        scaled = values / math.exp(log_temperature)
        top = scaled.max(axis=1)
        chosen = scaled[np.arange(len(truth)), truth]
        total_nll = (np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top - chosen).sum()
        return float(total_nll + (log_temperature / SPREAD) ** 2 / 2)

    low, high = TEMPERATURES
    result = minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded")
    return math.exp(float(result.x))


def coverage_curve(confidence: ArrayLike, correct: ArrayLike, *, points: int = 0) -> list[tuple[float, float]]:
    """Return (coverage, accuracy of the accepted answers) for every threshold, highest confidence first.

    There is one point per distinct confidence: no threshold separates rows of equal confidence.

    Args:
        confidence: stated probability of each answer, [N].
        correct: 1 where the answer is right, else 0, [N].
        points: largest number of points, evenly chosen; 0 for all.
    """
    coverage, accuracy, _ = _selective(confidence, correct)
    curve = list(zip(coverage.tolist(), accuracy.tolist(), strict=True))
    chosen = np.linspace(0, len(curve) - 1, min(points or len(curve), len(curve))).round().astype(int)
    return [curve[i] for i in chosen]


def threshold_for(
    confidence: ArrayLike, correct: ArrayLike, target_accuracy: float, *, fewest: int = 1
) -> float | None:
    """Return the lowest confidence threshold at which `fewest` or more answers reach the target accuracy, or None.

    Choose it on validation rows and report it on test rows: the best of many thresholds is biased upwards.
    """
    coverage, accuracy, thresholds = _selective(confidence, correct)
    enough = coverage * len(_pairs(confidence, correct)[0]) >= fewest - 0.5
    reached = np.flatnonzero(enough & (accuracy >= target_accuracy - 1e-12))
    return float(thresholds[reached[-1]]) if len(reached) else None


def _selective(confidence: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return coverage, accuracy and confidence at each distinct confidence, highest first."""
    stated, right = _pairs(confidence, correct)
    order = np.argsort(-stated, kind="stable")
    ranked = stated[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    accepted = ends + 1.0
    return accepted / len(stated), np.cumsum(right[order])[ends] / accepted, ranked[ends]


def _pairs(confidence: ArrayLike, correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    stated = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if stated.shape != right.shape or stated.ndim != 1:
        raise ValueError(f"expected equal shapes [N], got confidence {stated.shape} and correct {right.shape}")
    _check_not_empty(len(stated))
    return stated, right


def _table(values: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, Ints]:
    table = np.asarray(values, dtype=np.float64)
    truth = np.asarray(labels, dtype=np.int64)
    if table.ndim != 2 or truth.shape != table.shape[:1]:
        raise ValueError(f"expected shapes [N, K] and [N], got values {table.shape} and labels {truth.shape}")
    _check_not_empty(len(truth))
    return table, truth


def _check_not_empty(rows: int) -> None:
    if not rows:
        raise DataError("calibration: no rows; give the validation set at least one")
