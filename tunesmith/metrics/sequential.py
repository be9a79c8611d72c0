"""Tests that may be read after every row: evidence about the mean of values in [0, 1], and a detector of its fall.

Each test bets on the next value. Under the hypothesis no bet gains on average, so by Ville's inequality the capital
ever reaches 1/p with a probability of at most p, however often it is looked at.

Values are counted in a table of V equal steps from 0 to 1: `counts` [..., V], with one value per step.

Source: Waudby-Smith and Ramdas 2023, "Estimating means of bounded random variables by betting", arXiv 2010.09686. The
capital is the mean over fixed bets, so it depends on the counts only. (`confseq`, the library of the authors, has no
wheels and needs a C++ compiler.)
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Shares of the greatest bet with which no value can cost the whole capital. Small ones gain on means close to the
# hypothesis, large ones on distant means.
BETS = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
STEPS = 1000  # means that `confidence_sequence` distinguishes


def log_evidence(counts: ArrayLike, mean: float) -> FloatArray:
    """Return the log of the capital won against "the mean is at most `mean`", nats, [...].

    Args:
        counts: rows by value, [..., V].
        mean: limit of the hypothesis, between 0 and 1.
    """
    table = np.asarray(counts, dtype=np.float64)
    gains = np.log1p(np.outer(np.linspace(0, 1, table.shape[-1]) - mean, BETS / mean))  # [V, bets]
    return np.asarray(np.logaddexp.reduce(table @ gains, axis=-1) - math.log(len(BETS)))


def confidence_sequence(counts: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return an interval of the mean that holds at all times together with probability `level`.

    Args:
        counts: rows by value, [V].
        level: probability.
    """
    table = np.asarray(counts, dtype=np.float64)
    needed = math.log(2 / (1 - level))
    return _refuted(table, needed), round(1 - _refuted(table[::-1], needed), 4)


def _refuted(counts: FloatArray, needed: float) -> float:
    """Return the greatest mean that is refuted as too low, 0 if none is; the evidence falls with the mean."""
    steps = range(1, STEPS)
    return bisect_left(steps, True, key=lambda step: bool(log_evidence(counts, step / STEPS) < needed)) / STEPS


def add_to_capital(capital: ArrayLike, value: float, limit: float) -> FloatArray:
    """Add a `value` in [0, 1] to a detector of a mean below `limit`; return its new `capital` [bets], at first zeros.

    While the mean is at the limit or above, the mean capital reaches a number n after n values or more on average.

    Source: Shin, Ramdas and Rinaldo 2024, "E-detectors", arXiv 2203.03532: the mean of CUSUM statistics over the bets.
    """
    gains = 1 + BETS * (limit - value) / (1 - limit)
    return np.asarray(np.maximum(capital, 1) * gains)
