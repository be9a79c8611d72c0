"""Learning curves: the law is found again, the interval holds, and what cannot be known is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.pipelines.learning_curve.fit_curve import Curve, CurveCell, fit, read_curve, sizes_of
from tunesmith.pipelines.learning_curve.learning_curve import BEST

SIZES = (100, 200, 400, 800, 1600)


def cells(curve: Curve, noise: float = 0.0, seed: int = 0) -> list[CurveCell]:
    """Three seeds at each size; the noise shrinks with the square root of the rows, 100 rows having all of it."""
    chance = np.random.default_rng(seed)
    return [
        CurveCell(rows, seed, curve.at(rows) + noise * chance.standard_normal() * math.sqrt(100 / rows))
        for rows in SIZES
        for seed in range(3)
    ]


def test_a_curve_is_what_one_works_out_by_hand():
    curve = Curve(0.95, 2.0, 0.5)  # 2 / sqrt(100) = 0.2, 2 / sqrt(1600) = 0.05
    assert curve.at(100) == pytest.approx(0.75)
    assert curve.at(1600) == pytest.approx(0.90)


@pytest.mark.parametrize("curve", [Curve(0.95, 2.0, 0.5), Curve(0.8, 30.0, 1.0), Curve(1.0, 1.0, 0.3)])
def test_a_law_without_noise_is_found_again(curve: Curve):
    found = fit(cells(curve), best=1.0)
    assert (found.ceiling, found.power) == (
        pytest.approx(curve.ceiling, abs=1e-3),
        pytest.approx(curve.power, rel=0.01),
    )
    assert found.at(6400) == pytest.approx(curve.at(6400), abs=1e-3)


def test_a_ceiling_above_the_best_score_there_is_becomes_the_best():
    found = fit(cells(Curve(1.2, 2.0, 0.3)), best=1.0)
    assert found.ceiling == 1.0


def test_a_reward_may_rise_above_any_share():
    assert BEST["reward"] == math.inf
    found = fit(cells(Curve(7.0, 20.0, 0.5)), best=BEST["reward"])
    assert found.ceiling == pytest.approx(7.0, abs=0.01)


def test_large_sizes_weigh_more_than_small_ones():
    bent = [*cells(Curve(0.9, 2.0, 0.5))]
    off = [CurveCell(c.rows, c.seed, c.score + (0.05 if c.rows == 100 else 0.0)) for c in bent]
    found = fit(off, best=1.0)
    assert abs(found.at(1600) - 0.85) < 0.2 * abs(found.at(100) - 0.70)


@pytest.mark.long
def test_the_interval_holds_what_comes_in_most_of_many_curves():
    truth, held, beyond = Curve(0.95, 2.0, 0.5), 0, 0
    for seed in range(20):
        reading = read_curve(cells(truth, 0.02, seed), best=1.0)
        held += reading.held.inside
        guess = reading.guess(3200)
        beyond += guess.low <= truth.at(3200) <= guess.high
    assert held >= 16
    assert beyond >= 16


def test_the_largest_size_is_foretold_from_the_smaller_ones_alone():
    reading = read_curve(cells(Curve(0.95, 2.0, 0.5), 0.005), best=1.0)
    assert reading.held.rows == 1600
    assert reading.held.inside
    assert reading.held.high - reading.held.low < 0.04
    assert reading.problems == ()


def test_a_size_that_breaks_the_law_is_seen_and_named():
    law = cells(Curve(0.95, 2.0, 0.5), 0.002)
    broken = [CurveCell(c.rows, c.seed, c.score - 0.1 * (c.rows == 1600)) for c in law]
    assert "the smaller sizes did not predict the score at 1,600 rows" in read_curve(broken, best=1.0).problems


def test_scores_that_do_not_rise_are_no_curve():
    flat = read_curve(cells(Curve(0.8, 0.0, 0.5), 0.02), best=1.0)
    assert flat.problems[0] == "scores do not rise from 100 to 1,600 rows by more than the seed noise"


def test_a_line_over_log_rows_has_no_ceiling_to_speak_of():
    line = [CurveCell(rows, seed, 0.1 * math.log2(rows / 100) + 0.3) for rows in SIZES for seed in range(3)]
    reading = read_curve([CurveCell(c.rows, c.seed, c.score + 0.001 * c.seed) for c in line], best=math.inf)
    assert "its fitted power is at a bound" in " ".join(reading.problems)


def test_rows_for_a_score_are_those_of_the_law_and_none_beyond_the_bound():
    reading = read_curve(cells(Curve(0.95, 2.0, 0.5)), best=1.0)
    assert reading.rows_for(0.92, 100, 6400) == pytest.approx((2 / 0.03) ** 2, rel=0.02)  # 4,444
    assert reading.rows_for(0.94, 100, 6400) is None  # (2 / 0.01) ** 2 = 40,000
    assert reading.rows_for(0.96, 100, 6400) is None
    assert reading.rows_for(0.70, 100, 6400) == 100  # (2 / 0.25) ** 2 = 64, and nothing below 100 was measured


def test_sizes_are_geometric_and_end_at_all_rows():
    assert sizes_of(1600) == [100, 200, 400, 800, 1600]
    assert sizes_of(2081)[-1] == 2081
    small = sizes_of(100)
    assert (small[0], small[-1], len(small)) == (24, 100, 5)
    assert sizes_of(400, smallest=100) == [100, 141, 200, 283, 400]
    assert sizes_of(20) == [20]
