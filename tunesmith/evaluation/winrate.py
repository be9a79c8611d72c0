"""How often one of two answers is preferred, and how often it would be if neither were longer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.data.words import spaced
from tunesmith.evaluation.resampling import Clusters, mcnemar, percentiles, sign_flip
from tunesmith.evaluation.significance import interval

Floats = NDArray[np.float64]

DRAWS, FLIPS, STEPS = 500, 10_000, 25
# Keeps the fit finite where one side wins always.
RIDGE = 1e-2


class WinRate(BaseModel):
    """The share of pairs that the one side wins, a tie counting half; `controlled` with its length's help taken off."""

    model_config = ConfigDict(frozen=True)

    rate: float
    ci95: tuple[float, float]
    p_value: float
    controlled: float
    controlled_ci95: tuple[float, float]
    ties: int
    n: int
    words: tuple[float, float]  # mean length of the other side's and of this side's answers


def win_rate(
    outcomes: Sequence[float],
    texts: tuple[Sequence[str], Sequence[str]],
    *,
    groups: Sequence[str] | None = None,
) -> WinRate:
    """From 1 (won), 0.5 (tie) or 0 for each pair of (other, own) texts.

    The p-value is the exact sign test of wins against losses, or of groups a permutation of their signs. Controlled:
    the logistic regression of winning on the difference in length, tanh(difference / its spread), at no difference
    (AlpacaEval 2: Dubois et al. 2024, arXiv 2404.04475, without its term for the prompt); its interval is a bootstrap
    over pairs, or over groups.
    """
    won, (other, own) = np.asarray(outcomes, dtype=np.float64), texts
    lengths = [np.array([len(text) for text in side], dtype=np.float64) for side in (other, own)]
    longer = lengths[1] - lengths[0]
    spread = float(longer.std()) or 1.0
    help_of_length = np.tanh(longer / spread)
    wins, losses = int((won > 0.5).sum()), int((won < 0.5).sum())
    rng = np.random.default_rng(0)
    clusters, lead = Clusters.of(len(won), groups), won - 0.5
    drawn = clusters.drawn_rows(rng, DRAWS)
    controlled = np.array([_at_equal_length(won[rows], help_of_length[rows]) for rows in drawn])
    plain = interval(won, groups=groups)
    # Where all won, or lost, every draw is alike, and would claim certainty.
    low, high = percentiles(controlled, clusters.count) if np.ptp(won) and clusters.count > 1 else plain
    return WinRate(
        rate=float(won.mean()),
        ci95=plain,
        p_value=sign_flip(clusters.sums(lead), rng, FLIPS) if clusters.grouped else mcnemar(lead),
        controlled=_at_equal_length(won, help_of_length),
        controlled_ci95=(max(0.0, low), min(1.0, high)) if clusters.count > 1 else (0.0, 1.0),
        ties=len(won) - wins - losses,
        n=len(won),
        words=(_words(other), _words(own)),
    )


def _at_equal_length(won: Floats, help_of_length: Floats) -> float:
    """The fitted chance to win where the difference in length is none; Newton's method on two numbers."""
    features = np.stack([np.ones_like(won), help_of_length], axis=1)
    weights = np.zeros(2)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (won - chance) - RIDGE * weights
        bend = (features * (chance * (1 - chance))[:, None]).T @ features + RIDGE * np.eye(2)
        step = np.linalg.solve(bend, slope)
        weights += np.clip(step, -2, 2)
        if float(np.abs(step).max()) < 1e-8:
            break
    return float(1 / (1 + math.exp(-weights[0])))


def _words(texts: Sequence[str]) -> float:
    return sum(len(spaced(text).split()) for text in texts) / max(1, len(texts))
