"""Metrics of spans by hand, and the baselines on rows whose spans can be known."""

from __future__ import annotations

import pytest

from tunesmith.data.examples.types import Span
from tunesmith.metrics.span_baselines import crf_tagger, dictionary_tagger
from tunesmith.metrics.spans import arms, compare, counts, outcomes, score, value

GOLD = [[Span(0, 4, "A"), Span(6, 9, "B")], [Span(2, 5, "A")], []]
GIVEN = [[Span(0, 4, "A"), Span(5, 9, "B")], [Span(2, 5, "B")], [Span(1, 2, "A")]]
MARKED = [(f"ask {name} at {i}", [Span(4, 4 + len(name), "NAME")]) for i, name in enumerate(["Ann", "Bo", "Cleo"] * 5)]


def test_metrics_of_spans_are_those_counted_by_hand():
    table = counts(GOLD, GIVEN)
    assert table.tolist() == [[1, 2, 2, 2], [0, 1, 1, 0], [0, 1, 0, 0]]
    assert value("entity_f1", table) == pytest.approx(2 / 7)
    assert value("entity_precision", table) == pytest.approx(1 / 4)
    assert value("entity_recall", table) == pytest.approx(1 / 3)
    assert value("overlap_f1", table) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert value("entity_f1", counts([[]], [[]])) == 1
    three = [[Span(0, 2, "A"), Span(3, 5, "A"), Span(6, 8, "A")]]
    assert value("overlap_f1", counts(three, [[Span(0, 8, "A")]])) == pytest.approx(2 * 1 / 4)  # one of three
    assert counts(three, [[Span(1, 4, "A"), Span(4, 8, "A"), Span(9, 12, "A")]])[0, 3] == 2
    found = {"exact": 1, "other_bounds": 1, "other_label": 1, "missed": 0, "spurious": 1}
    assert outcomes(GOLD, GIVEN) == found
    assert outcomes(GOLD, GIVEN, "B")["other_bounds"] == 1


def test_the_same_spans_differ_by_nothing_and_better_ones_are_better_by_document():
    gold = [[Span(0, 4, "A")] for _ in range(30)]
    none: list[list[Span]] = [[] for _ in gold]
    assert compare("entity_f1", gold, gold, gold, groups=None).p_value == 1
    better = compare("entity_f1", gold, none, gold, groups=[str(i // 3) for i in range(30)])
    assert (better.verdict, better.delta, better.clusters) == ("better", 1.0, 10)
    low, high = score("entity_f1", gold, gold, name="a", groups=None).ci95 or (0, 0)
    assert low < high == pytest.approx(1)
    assert [arm.p_adjusted is not None for arm in arms("entity_f1", gold, {"none": none}, gold, groups=None)] == [True]


def test_a_dictionary_marks_what_it_has_seen_and_a_random_field_what_stands_in_the_same_place():
    texts = ["ask Bo at 9", "ask Dirk at 9", "Boat", ""]
    assert dictionary_tagger(MARKED, texts) == [[Span(4, 6, "NAME")], [], [], []]
    assert crf_tagger([("", [])], texts) == crf_tagger([], texts) == [[], [], [], []]
    assert crf_tagger(MARKED, texts)[:2] == [[Span(4, 6, "NAME")], [Span(4, 8, "NAME")]]
    rare = [*MARKED, *[(f"Bo {i}", list[Span]()) for i in range(6)]]  # mostly no span
    assert dictionary_tagger(rare, texts)[0] == []


def test_a_dictionary_counts_an_entry_where_it_is_looked_up_and_knows_whole_words_only():
    def all_in(text: str, *parts: str) -> tuple[str, list[Span]]:
        return text, [Span(text.index(part), text.index(part) + len(part), "A") for part in parts]

    inside = [all_in("the GNU GPL", "GNU GPL")] * 5 + [all_in("a GPL", "GPL")] * 3
    assert dictionary_tagger(inside, ["the GPL is"]) == [[Span(4, 7, "A")]]
    ends = [*inside, all_in("a GNU", "GNU")]
    assert dictionary_tagger(ends, ["a GNU", "GNU GPL"]) == [[Span(2, 5, "A")], [Span(0, 7, "A")]]
    freed = [all_in("GNU GPL", "GPL")] * 5 + [all_in("GNU GPL", "GNU GPL")] * 2  # the longer one is mostly none
    assert dictionary_tagger(freed, ["GNU GPL"]) == [[Span(4, 7, "A")]]
    assert dictionary_tagger([all_in("on v2 now", "2")], ["2 dogs, 2 cats, v2"]) == [[Span(16, 18, "A")]]
