"""Agreement beyond chance, against numbers worked out by hand and those of the literature."""

from __future__ import annotations

import time

import pytest

from tunesmith.annotation.agreement import agreement, krippendorff_alpha

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, twelve units, gaps.
FOUR = (
    "1 1 . 1|2 2 3 2|3 3 3 3|3 3 3 3|2 2 2 2|1 2 3 4|4 4 4 4|1 1 2 1|2 2 2 2|. 5 5 5|. . 1 1|. 3 . .",
    0.743421052631579,
)


def test_alpha_is_that_of_the_paper():
    units = [[mark for mark in unit.split() if mark != "."] for unit in FOUR[0].split("|")]
    assert krippendorff_alpha(units) == pytest.approx(FOUR[1])


def test_alpha_of_three_observers_worked_out_by_hand():
    units = [["1", "1"], ["1", "2", "1"], ["2", "2", "2"], ["1", "1"]]
    # Equal: 2/1 + 2/2 + 6/2 + 2/1 = 8 of 10; by chance (6*5 + 4*3) / (10*9) = 42/90.
    assert krippendorff_alpha(units) == pytest.approx((8 / 10 - 42 / 90) / (1 - 42 / 90))


def test_people_who_always_agree_have_one_and_those_who_never_do_less_than_zero():
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert (krippendorff_alpha([["a", "b"], ["b", "a"]]) or 0) < 0


@pytest.mark.parametrize("units", [[], [["a"]], [["a", "a"], ["a", "a"]]])
def test_without_two_votes_or_two_labels_there_is_no_alpha(units: list[list[str]]):
    assert krippendorff_alpha(units) is None


def test_each_two_people_have_their_kappa_on_what_both_judged():
    units = [
        {"Ana": "a", "Bo": "a"},
        {"Ana": "a", "Bo": "b"},
        {"Ana": "b", "Bo": "b"},
        {"Ana": "b", "Bo": "b", "Cy": "b"},
    ]
    found = agreement(units, each_two=True)
    assert found.items == 4
    assert found.same == pytest.approx(5 / 6)
    by_raters = {pair.raters: pair for pair in found.pairs}
    # Ana: 2 a, 2 b; Bo: 1 a, 3 b. By chance (2*1 + 2*3) / 16 = 1/2; found 3/4: (3/4 - 1/2) / (1/2).
    assert by_raters["Ana", "Bo"].kappa == pytest.approx(0.5)
    assert set(by_raters) == {("Ana", "Bo")}  # Cy judged one alone


def test_two_people_who_say_one_thing_have_no_kappa():
    (pair,) = agreement([{"Ana": "a", "Bo": "a"}] * 2, each_two=True).pairs
    assert (pair.items, pair.same, pair.kappa) == (2, 1.0, None)


def test_one_person_alone_has_no_agreement():
    found = agreement([{"Ana": "a"}, {"Ana": "b"}])
    assert (found.items, found.same, found.alpha, found.pairs) == (0, None, None, [])


def test_thousands_who_judged_one_item_each_take_no_time():
    units = [{f"somebody {n}": "good" if n % 3 else "bad" for n in range(start, start + 400)} for start in (0, 400)]
    began = time.process_time()
    found = agreement(
        [*units, {"Ana": "good", "somebody 0": "good"}, {"Ana": "bad", "somebody 0": "bad"}], each_two=True
    )
    assert [pair.raters for pair in found.pairs] == [("Ana", "somebody 0")]
    assert time.process_time() - began < 2
