"""Votes on the spans of a text: their form in the store, the spans of most raters, and the agreement by span.

A vote is the set of all spans that a rater marked in a text, written as canonical JSON, so that equal sets are equal
votes. Spans are decided one by one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from pydantic import BaseModel

from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import Event
from tunesmith.data.examples.types import Span
from tunesmith.metrics.spans import counts, overlap, value

WHAT = "spans"  # the kind of the store


class SpanAgreement(BaseModel):
    """Agreement of raters on the texts that several marked; pairs of raters count alike."""

    items: int
    exact_f1: float | None  # spans with the same first and last character and the same label; None without such texts
    overlap_f1: float | None  # spans of the same label that share a character


def written(spans: Sequence[Span]) -> str:
    """Return spans, in order, as a vote."""
    return json.dumps([list(span) for span in spans], ensure_ascii=False, separators=(",", ":"))


def read(vote: str) -> list[Span]:
    """Return the spans of a vote."""
    return [Span(start, end, label) for start, end, label in json.loads(vote)]


class SpanVotes(VoteState):
    """The votes on spans after a sequence of events."""

    @staticmethod
    def majority(labels: Sequence[str]) -> str | None:
        """Return the spans that more than half of the raters marked exactly so.

        Two such spans have a rater in common, so they never overlap. The result is None without a vote, and where at
        least half of the raters marked something but no span of a majority is there: it is unknown what to write.
        """
        votes = [read(label) for label in labels]
        if not votes:
            return None
        marked = Counter(span for spans in votes for span in spans)
        chosen = sorted(span for span, count in marked.items() if 2 * count > len(votes))
        for span in marked.keys() - set(chosen):
            there = sum(any(overlap(span, other) for other in spans) for spans in votes)
            if 2 * there >= len(votes) and not any(overlap(span, other) for other in chosen):
                return None
        return written(chosen)

    @staticmethod
    def labels_in(vote: Event) -> Sequence[str]:
        """Return the labels of the spans of a vote."""
        return [span.label for span in read(str(vote.body["label"]))]


def span_agreement(units: Sequence[Mapping[str, str]]) -> SpanAgreement:
    """Compute the F1 of one rater's spans against another's, over all pairs of raters of each text.

    F1 is the same whichever of the two is taken as the reference. Spans have no agreement by chance to correct for,
    as the number of places where a span could be is not known.

    Args:
        units: rater -> vote for each text; texts with a single vote are ignored.
    """
    pairs = [pair for unit in units for pair in combinations([read(vote) for vote in unit.values()], 2)]
    table = counts([one for one, _ in pairs], [other for _, other in pairs])
    exact, overlap = (value(metric, table) if pairs else None for metric in ("entity_f1", "overlap_f1"))
    return SpanAgreement(items=sum(len(unit) > 1 for unit in units), exact_f1=exact, overlap_f1=overlap)
