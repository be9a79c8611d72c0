"""How often a score agrees with people, by numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.metrics.preference_metrics import auc_pair, difference_probe, length_bias, wins
from tunesmith.metrics.significance import corpus_compare, corpus_interval


def test_a_pair_is_won_where_the_chosen_answer_is_ahead_and_a_tie_is_no_win():
    assert wins([(2.0, 1.0), (1.0, 2.0), (3.0, 3.0)]).tolist() == [1.0, 0.0, 0.0]
    assert wins([(2.0, 1.0), (1.0, 2.0), (3.0, 3.0)], tie=0.5).tolist() == [1.0, 0.0, 0.5]


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


@pytest.mark.parametrize(("good", "bad"), [(100, 20), (40, 10)])
def test_thumbs_of_equal_models_are_rarely_called_a_difference(good: int, bad: int):
    liked, hits = [True] * good + [False] * bad, 0
    for seed in range(40):
        base, tuned = np.random.default_rng(seed).normal(size=(2, good + bad)) + np.array(liked)
        hits += (
            corpus_compare(auc_pair(base, tuned, liked), list(base != tuned), seed=seed, resamples=400).p_value < 0.05
        )
    assert hits <= 5  # each good answer's share taken for a row of its own made it a third of them


def test_the_auc_of_all_rows_is_that_of_the_good_among_the_bad_and_has_its_interval():
    scores, liked = [3.0, 2.0, 1.0, 0.0, 2.0], [True, False, True, False, True]
    statistic = auc_pair(scores, [-score for score in scores], liked)
    assert statistic(np.arange(5)) == (0.75, 0.25)
    assert statistic(np.array([0, 0, 2])) == (0.5, 0.5)  # no bad one among them
    low, high = corpus_interval(statistic, 5)
    assert 0 <= low < 0.75 < high <= 1
