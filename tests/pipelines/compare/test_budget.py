"""A budget is dealt out between asking and learning, and says what fewer rows cost."""

from __future__ import annotations

import pytest

from tunesmith.pipelines.compare.budget import FEWEST_TEST, half_width, sizes


def test_time_for_all_rows_takes_all_rows():
    found = sizes(100_000, ["prompt", "tuned"], row=0.1, epochs=1, test_rows=200, train_rows=1000)
    assert (found.test, found.train) == (200, 1000)


def test_two_fifths_of_the_time_are_for_asking_where_something_is_learned():
    # prompt 1.5 + tuned 2.5 rows of 0.5 s are 2 s a test row: 400 s of 1,000 ask 200 rows, the rest learns 600 / 0.75.
    found = sizes(1000, ["prompt", "tuned"], row=0.5, epochs=1, test_rows=500, train_rows=5000)
    assert (found.test, found.train) == (200, 800)
    assert "200 of 500 test rows: a share of one half has a 95 % interval of +-7 points (all rows: +-4)" in found.note


def test_a_run_on_a_tenth_of_the_rows_is_learned_too():
    # tuned-10% asks 2.5 rows of 0.5 s a test row: 400 s of 1,000 ask 320 rows; 600 s learn at 0.5 * 1.5 / 10 s a row.
    found = sizes(1000, ["tuned-10%"], row=0.5, epochs=1, test_rows=500, train_rows=10_000)
    assert found.test == 320
    assert found.train == pytest.approx(8000, abs=1)


def test_no_test_is_smaller_than_one_that_can_say_something():
    found = sizes(1, ["prompt"], row=1.0, epochs=1, test_rows=500, train_rows=100)
    assert (found.test, found.seconds) == (FEWEST_TEST, 60.0)  # 40 rows of 1.5 s are more than there is


def test_half_of_an_interval_shrinks_with_the_root_of_the_rows():
    assert half_width(100) == pytest.approx(0.098)
    assert half_width(400) == pytest.approx(0.049)
