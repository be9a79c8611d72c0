from __future__ import annotations

import pytest

from tunesmith.report.formatting import clean, figure, p_value, price, share, signed, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.91234, "0.912"), (None, "–"), (float("nan"), "–"), (-0.05, "\N{MINUS SIGN}0.050"), (34.567, "34.6")],
)
def test_a_score_has_three_places_and_a_large_one_fewer(value: float | None, text: str):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0004, "0.000"), (-0.0, "0.000"), (0.0004, "0.000"), (0.0006, "+0.001")]
)
def test_a_difference_that_rounds_to_nothing_has_no_sign(value: float, text: str):
    assert signed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100"), (0.9996, "99.96"), (0.99999999, "99.999"), (0.9994, "99.9"), (0.0002, "0.02"), (0.0, "0.0")],
)
def test_nearly_all_is_not_all_and_a_small_part_not_none(value: float, text: str):
    assert share(value) == f"{text}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(("value", "text"), [(0.00123, "0.0012"), (3.456, "3.5"), (123.4, "123"), (12345.6, "12,346")])
def test_a_price_is_a_plain_number(value: float, text: str):
    assert price(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0004, "p < 0.001"), (0.0312, "p = 0.031"), (1.0, "p = 1.000")])
def test_a_tiny_p_value_is_not_written_as_nought(value: float, text: str):
    assert p_value(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (541_900_000, "542 MB"), (78_300_000_000, "78.3 GB"), (2e12, "2.0 TB")]
)
def test_a_size_has_a_unit_that_reads_well(count: float, text: str):
    assert size(count) == text


def test_line_ends_tabs_and_all_scripts_stay():
    assert clean("a\n\tb ä 漢 🙂") == "a\n\tb ä 漢 🙂"


def test_half_a_character_can_be_printed():
    assert clean("a\ud800b").encode() == b"a?b"
