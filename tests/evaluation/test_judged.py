"""How often a score agrees with people, by numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.evaluation.judged import difference_probe, length_bias, standing, wins


def test_a_pair_is_won_where_the_chosen_answer_is_ahead_and_a_tie_is_no_win():
    assert wins([(2.0, 1.0), (1.0, 2.0), (3.0, 3.0)]).tolist() == [1.0, 0.0, 0.0]
    assert wins([(2.0, 1.0), (1.0, 2.0), (3.0, 3.0)], tie=0.5).tolist() == [1.0, 0.0, 0.5]


def test_a_good_answer_stands_above_the_share_of_bad_ones_below_it():
    # good: 3, 1, 2; bad: 2, 0 -> above both, above one, above one and level with the other
    found = standing([3.0, 2.0, 1.0, 0.0, 2.0], [True, False, True, False, True])
    assert found.tolist() == [1.0, 0.5, 0.75]
    assert found.mean() == pytest.approx(0.75)  # the AUC


def test_a_score_that_is_length_goes_with_length_all_the_way():
    lengths = [(10.0, 4.0), (3.0, 9.0), (5.0, 4.0)]
    assert length_bias([(1.0, 0.4), (0.3, 0.9), (0.5, 0.4)], lengths) == pytest.approx(1.0)
    assert length_bias([(-1.0, -0.4), (-0.3, -0.9), (-0.5, -0.4)], lengths) == pytest.approx(-1.0)
    assert length_bias([(1.0, 0.0)] * 3, lengths) == 0.0


def test_the_probe_finds_the_direction_in_which_the_chosen_answers_lie():
    chance = np.random.default_rng(0)
    states = chance.normal(size=(60, 2, 5))
    states[:, 0, 3] = states[:, 1, 3] + chance.uniform(0.5, 1.5, size=60)
    direction = difference_probe(states, groups=[f"g{i % 12}" for i in range(60)])
    assert np.argmax(np.abs(direction * (states[:, 0] - states[:, 1]).std(axis=0))) == 3
    assert wins(chance.normal(size=(0, 2))).tolist() == []
    assert wins(states @ direction).mean() == 1.0


def test_a_state_that_never_differs_counts_for_nothing():
    states = np.zeros((10, 2, 2))
    states[:, 0, 0] = 1.0
    assert difference_probe(states)[1] == 0.0
