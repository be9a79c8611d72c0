import math

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.metrics import calibration


def test_ece_is_the_mean_gap_of_equally_full_bins():
    # bin 0.6 is right half the time, bin 0.9 always: gaps 0.1 and 0.1
    assert calibration.ece([0.9, 0.6, 0.9, 0.6], [1, 1, 1, 0], bins=2) == pytest.approx(0.1)


def test_ece_does_not_depend_on_the_order_of_tied_rows():
    sure, right = np.full(40, 0.75), np.repeat([1, 0], [30, 10])
    assert calibration.ece(sure, right) == calibration.ece(sure, right[::-1]) == pytest.approx(0)


def test_ece_keeps_the_surest_rows_apart_from_the_less_sure():
    # 0.6 and right in 80 of 100, 0.9 and right in 70: the gaps do not cancel
    sure, right = np.repeat([0.6, 0.9], 100), np.repeat([1, 0, 1, 0], [80, 20, 70, 30])
    assert calibration.ece(sure, right) == pytest.approx(0.2)


def test_brier_sums_the_squares_of_all_classes():
    # (0.2**2 + 0.2**2 + 0.7**2 + 0.7**2) / 2
    assert calibration.brier([[0.8, 0.2], [0.3, 0.7]], [0, 0]) == pytest.approx(0.53)


def test_nll_is_in_nats_and_finite_where_the_right_class_had_no_chance():
    assert calibration.nll([[0.8, 0.2], [0.5, 0.5]], [0, 1]) == pytest.approx(-math.log(0.8 * 0.5) / 2)
    assert calibration.nll([[1.0, 0.0]], [1]) == pytest.approx(12 * math.log(10))


def test_temperature_makes_the_confidence_as_large_as_the_accuracy():
    # a logit gap of 4 and right three times in four: the gap must become ln 3
    logits = np.array([[4.0, 0.0]] * 4000)
    temperature = calibration.fit_temperature(logits, [0, 0, 0, 1] * 1000)
    assert temperature == pytest.approx(4 / math.log(3), rel=2e-2)
    assert calibration.softmax(logits, temperature=temperature)[0].tolist() == pytest.approx([0.75, 0.25], abs=3e-3)


def test_a_few_rows_that_are_all_right_do_not_make_every_answer_certain():
    logits = np.array([[2.0, 0.0]] * 20)  # sure by 0.88, and rightly so
    assert 0.5 < calibration.fit_temperature(logits, [0] * 20) < 1
    assert calibration.fit_temperature(logits, [0] * 20) > calibration.fit_temperature(
        np.tile(logits, (50, 1)), [0] * 1000
    )


def test_softmax_of_large_logits_stays_finite():
    assert calibration.softmax([[1000.0, 0.0]]).tolist() == [[1.0, 0.0]]


def test_coverage_grows_by_whole_groups_of_equally_sure_rows():
    curve = calibration.coverage_curve([0.8, 0.9, 0.5, 0.8], [1, 1, 0, 0])
    assert curve == [(0.25, 1.0), (0.75, pytest.approx(2 / 3)), (1.0, 0.5)]


def test_threshold_answers_as_many_rows_as_the_target_allows():
    sure, right = [0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]
    assert calibration.threshold_for(sure, right, 0.6) == 0.7
    assert calibration.threshold_for(sure, right, 1.0) == 0.9
    assert calibration.threshold_for(sure, [0, 1, 0, 0], 0.9) is None


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        calibration.ece([], [])
