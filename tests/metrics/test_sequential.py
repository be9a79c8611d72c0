"""Tests that may be read after every row, against their definition and over many seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.metrics.sequential import BETS, add_to_capital, confidence_sequence, log_evidence

ROWS, SEEDS = 1000, 400


def running_counts(share: float, seed: int) -> np.ndarray:
    """Counts of 0 and 1 after each of many rows of a coin, [seeds, rows, 2]."""
    ones = (np.random.default_rng(seed).random((SEEDS, ROWS)) < share).cumsum(axis=1)
    return np.stack([np.arange(1, ROWS + 1) - ones, ones], axis=-1)


def test_the_evidence_is_the_mean_capital_of_the_bets():
    values = np.random.default_rng(0).integers(0, 5, 30)
    capital = np.ones(len(BETS))
    for value in values / 4:
        capital *= 1 + BETS / 0.6 * (value - 0.6)
    counts = np.bincount(values, minlength=5)
    assert log_evidence(counts, 0.6) == pytest.approx(math.log(capital.mean()))
    assert log_evidence([counts, counts], 0.6).shape == (2,)
    assert log_evidence(np.zeros(5), 0.6) == 0


@pytest.mark.parametrize("mean", [0.8, 0.95, 0.99])
def test_a_mean_at_the_limit_is_hardly_ever_held_to_be_above_it_at_any_time(mean: float):
    evidence = log_evidence(running_counts(mean, 1), mean)
    # Binomial with 400 seeds: 5 % allowed, three standard errors above are 8.3 %.
    assert (evidence.max(axis=1) >= math.log(20)).mean() < 0.083


def test_a_mean_well_above_the_limit_is_found():
    evidence = log_evidence(running_counts(0.99, 2), 0.95)
    assert (evidence.max(axis=1) >= math.log(20)).mean() > 0.95


def test_the_interval_holds_the_mean_at_all_times_together():
    missed = 0
    for counts in running_counts(0.9, 3)[:60]:
        bounds = [confidence_sequence(counts[i]) for i in (9, 99, 999)]
        missed += not all(low <= 0.9 <= high for low, high in bounds)
    assert missed <= 7  # 5 % of 60 and three standard errors
    assert confidence_sequence(np.zeros(101)) == (0.0, 1.0)


def test_a_fall_is_noticed_and_none_is_not():
    chance = np.random.default_rng(4)

    def rows_until_alarm(share: float, most: int) -> int:
        capital = np.zeros(len(BETS))
        for i in range(most):
            capital = add_to_capital(capital, float(chance.random() < share), 0.95)
            if capital.mean() >= 500:
                return i + 1
        return most

    assert np.mean([rows_until_alarm(0.7, 500) for _ in range(30)]) < 40
    assert np.mean([rows_until_alarm(0.97, 1000) for _ in range(30)]) > 900
