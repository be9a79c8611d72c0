"""Win rate of one model over another, raw and length-controlled. N pairs of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.data.text.words import spaced
from tunesmith.metrics.resampling import Clusters, mcnemar, percentiles, sign_flip
from tunesmith.metrics.significance import interval

FloatArray = NDArray[np.float64]

DRAWS = 500  # bootstrap resamples of the controlled rate
FLIPS = 10_000  # random sign flips of the permutation test
STEPS = 25  # at most, of Newton's method
RIDGE = 1e-2  # keeps the fit finite where one side always wins


class WinRate(BaseModel):
    """The share of pairs that one side wins, ties counting half."""

    model_config = ConfigDict(frozen=True)

    rate: float
    ci95: tuple[float, float]
    p_value: float
    controlled: float  # the rate predicted for answers of equal length
    controlled_ci95: tuple[float, float]
    ties: int
    n: int
    words: tuple[float, float]  # mean words per answer of the other side and of this side


def win_rate(
    outcomes: Sequence[float],
    texts: tuple[Sequence[str], Sequence[str]],
    *,
    groups: Sequence[str] | None = None,
) -> WinRate:
    """Compute the win rate with interval and p-value, and the length-controlled win rate.

    The p-value is the exact sign test of wins against losses; with groups, a sign-flip permutation over groups. The
    controlled rate is a logistic regression of the outcome on tanh(length difference / its standard deviation),
    evaluated at difference 0, with a bootstrap interval over pairs or groups.

    Args:
        outcomes: 1 (won), 0.5 (tie) or 0 (lost) per pair, [N].
        texts: answers of the other side and of this side, N each.
        groups: group of each pair, or None.

    Source: Dubois et al. 2024, arXiv 2404.04475 (AlpacaEval 2), without its term for the prompt.
    """
    won = np.asarray(outcomes, dtype=np.float64)
    other, own = texts
    lengths = [np.array([len(text) for text in side], dtype=np.float64) for side in (other, own)]
    longer = lengths[1] - lengths[0]  # characters
    deviation = float(longer.std()) or 1.0
    length_feature = np.tanh(longer / deviation)
    wins = int((won > 0.5).sum())
    losses = int((won < 0.5).sum())
    rng = np.random.default_rng(0)
    clusters = Clusters.of(len(won), groups)
    lead = won - 0.5
    resamples = clusters.drawn_rows(rng, DRAWS)
    controlled = np.array([_at_equal_length(won[rows], length_feature[rows]) for rows in resamples])
    plain = interval(won, groups=groups)
    # If one side won every pair, all resamples are equal and the bootstrap would claim certainty.
    low, high = percentiles(controlled, clusters.count) if np.ptp(won) and clusters.count > 1 else plain
    return WinRate(
        rate=float(won.mean()),
        ci95=plain,
        p_value=sign_flip(clusters.sums(lead), rng, FLIPS) if clusters.grouped else mcnemar(lead),
        controlled=_at_equal_length(won, length_feature),
        controlled_ci95=(max(0.0, low), min(1.0, high)) if clusters.count > 1 else (0.0, 1.0),
        ties=len(won) - wins - losses,
        n=len(won),
        words=(_mean_words(other), _mean_words(own)),
    )


def _at_equal_length(won: FloatArray, length_feature: FloatArray) -> float:
    """Return the fitted win probability at length difference 0; two parameters, Newton's method."""
    features = np.stack([np.ones_like(won), length_feature], axis=1)
    weights = np.zeros(2)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (won - chance) - RIDGE * weights
        hessian = (features * (chance * (1 - chance))[:, None]).T @ features + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights += np.clip(step, -2, 2)
        if float(np.abs(step).max()) < 1e-8:
            break
    return float(1 / (1 + math.exp(-weights[0])))


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(spaced(text).split()) for text in texts) / max(1, len(texts))
