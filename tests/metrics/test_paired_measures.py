"""Measures that not every row has, compared by a paired bootstrap over groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.metrics.paired_measures import paired_gain, paired_mean, paired_statistic
from tunesmith.metrics.significance import compare_paired

NAN = math.nan


def test_a_mean_is_that_of_the_paired_test():
    base, tuned = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0], [1.0] * 8
    found, known = paired_mean(base, tuned, groups=None), compare_paired(base, tuned)
    assert (found.base, found.tuned, found.delta) == (known.base, known.tuned, known.delta)
    assert (found.ci95, found.p_value) == (known.ci95, known.p_value)
    assert found.base_ci95 is not None
    assert found.base_ci95[0] < 3 / 8 < found.base_ci95[1]


def test_a_statistic_is_taken_over_the_rows_that_have_the_measure():
    base = [10.0, NAN, 30.0, 50.0, NAN, 20.0, 40.0, 60.0]
    tuned = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, NAN, 12.0]
    found = paired_statistic(base, tuned, np.median, groups=None, most=100.0)
    assert (found.base, found.tuned, found.delta) == (35.0, 8.0, -27.0)
    assert (found.n_base, found.n_tuned) == (6, 7)
    assert found.ci95 is not None
    assert found.ci95[0] <= -27 <= found.ci95[1] < 0
    assert found.p_value is not None
    assert found.p_value < 0.05


def test_a_model_without_the_measure_has_none_and_no_difference():
    found = paired_statistic([NAN] * 8, [1.0] * 8, np.mean, groups=None, most=1.0)
    assert (found.base, found.base_ci95, found.delta, found.ci95, found.p_value) == (None,) * 5
    assert found.tuned == 1.0
    assert found.tuned_ci95 is not None
    assert found.tuned_ci95[0] < 1  # 8 of 8 is not certainty


def test_equal_models_do_not_differ():
    values = [float(i) for i in range(12)]
    found = paired_statistic(values, values, np.median, groups=None, most=100.0)
    assert found.delta == 0
    assert found.p_value == 1.0
    assert found.ci95 is not None
    assert found.ci95[0] < 0 < found.ci95[1]


def test_rows_of_one_group_count_once():
    base = [0.0, 0.0] * 8
    tuned = [float(i) for i in range(16)]
    alone = paired_statistic(base, tuned, np.mean, groups=None, most=100.0)
    grouped = paired_statistic(base, tuned, np.mean, groups=[f"g{i // 8}" for i in range(16)], most=100.0)
    assert alone.ci95 is not None
    assert grouped.ci95 is not None
    assert grouped.ci95[1] - grouped.ci95[0] > alone.ci95[1] - alone.ci95[0]
    assert (alone.p_value or 1) < 0.05 < (grouped.p_value or 0)


def test_a_gain_has_the_interval_of_a_difference():
    off, on = [[0.0] * 8, [0.0] * 8], [[0.0] * 8, [1.0] * 8]
    found = paired_gain(off, on, groups=None)
    assert (found.base, found.tuned, found.delta) == (0.0, 1.0, 1.0)
    assert found.base_ci95 is not None
    assert found.base_ci95[0] < 0 < found.base_ci95[1]
    assert found.p_value == pytest.approx(2 / 2**8)
