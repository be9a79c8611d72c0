"""Spans of several raters: which are written, and how far raters agree."""

from __future__ import annotations

import pytest

from tunesmith.annotation.span_votes import SpanVotes, read, span_agreement, written
from tunesmith.data.examples.types import Span

BASH, BASH_5, FIVE = Span(0, 4, "PACKAGE"), Span(0, 6, "PACKAGE"), Span(5, 6, "VERSION")
SHELL = Span(0, 4, "SHELL")


def decided(*votes: list[Span]) -> list[Span] | None:
    label = SpanVotes.majority([written(vote) for vote in votes])
    return None if label is None else read(label)


@pytest.mark.parametrize(
    ("votes", "spans"),
    [
        ([[BASH, FIVE]], [BASH, FIVE]),
        ([[]], []),  # no spans is an answer
        ([[BASH], [BASH]], [BASH]),
        ([[BASH], []], None),  # half of the raters marked something
        ([[BASH], [SHELL]], None),  # another label
        ([[BASH], [BASH_5], []], None),  # two of three see something, with different ends
        ([[BASH], [], []], []),  # one of three
        ([[BASH], [BASH], [BASH_5]], [BASH]),  # the third rater's span meets the one of the majority
        ([[BASH, FIVE], [BASH], [BASH_5]], None),  # BASH is decided, but two of three see something at the 5
        ([[BASH, FIVE], [BASH, FIVE], [BASH_5]], [BASH, FIVE]),
        ([[BASH, FIVE], [BASH]], None),  # one span is decided, the other is not: the text is left out
    ],
)
def test_a_span_is_written_if_most_raters_marked_exactly_it(votes: list[list[Span]], spans: list[Span] | None):
    assert decided(*votes) == spans


def test_agreement_counts_exact_and_overlapping_spans_apart():
    # First text: 1 of 2 and 2 spans exact, both overlap. Second: no span exact, one pair overlaps.
    units = [
        {"Ana": written([BASH, FIVE]), "Bo": written([BASH, Span(4, 6, "VERSION")])},
        {"Ana": written([BASH]), "Bo": written([BASH_5])},
        {"Ana": written([BASH])},
    ]
    found = span_agreement(units)
    assert found.items == 2
    assert found.exact_f1 == pytest.approx(2 * 1 / 6)
    assert found.overlap_f1 == pytest.approx(2 * 3 / 6)
    assert span_agreement(units[2:]).exact_f1 is None
