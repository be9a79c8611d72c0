from __future__ import annotations

import pytest

from tunesmith.display import model_label, model_labels
from tunesmith.report.formatting import apart, bounds, clean, figure, p_value, price, share, signed, size


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


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((0.0004, 0.02), "+0.0004 to +0.020"),
        ((-0.02, -0.00012), "\N{MINUS SIGN}0.020 to \N{MINUS SIGN}0.0001"),
        ((-0.00046, 0.1), "\N{MINUS SIGN}0.0005 to +0.100"),
        ((0.0, 0.1), "0.000 to +0.100"),
        ((-1e-12, 0.1), "0.000 to +0.100"),
        ((-0.1, 0.2), "\N{MINUS SIGN}0.100 to +0.200"),
    ],
)
def test_an_interval_shows_on_which_side_of_zero_each_end_is(interval: tuple[float, float], text: str):
    assert bounds(interval, sign=True) == text


def test_a_win_rate_shows_on_which_side_of_one_half_its_interval_is():
    assert bounds((0.5003, 0.61), decides=0.5) == "0.5003 to 0.610"
    assert bounds((0.4, 0.4998), decides=0.5) == "0.400 to 0.4998"
    assert bounds((0.5, 0.61), decides=0.5) == "0.500 to 0.610"


def test_two_scores_are_written_so_that_they_differ():
    assert apart(0.9812, 0.9809) == ("0.9812", "0.9809")
    assert apart(0.98, 0.97) == ("0.980", "0.970")
    assert apart(0.5, 0.5) == ("0.500", "0.500")


def test_a_model_in_a_folder_is_named_without_its_path():
    assert model_label("./minilm/") == model_label("/home/me/minilm") == model_label("C:\\models\\minilm") == "minilm"
    assert model_label("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    assert model_labels(["./a/model", "./b/model", "base"]) == {
        "./a/model": "./a/model",
        "./b/model": "./b/model",
        "base": "base",
    }
