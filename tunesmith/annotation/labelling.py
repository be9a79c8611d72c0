"""Labelling sessions: the next row of each rater, their votes, and the progress.

A rater first gets shared rows that another rater has labelled, then the row that active learning selects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from tunesmith.annotation.active_learning import LabelQueue
from tunesmith.annotation.agreement import Agreement, agreement
from tunesmith.annotation.assignment import NO_OVERLAP, Assignment, AssignmentRules, Overlap
from tunesmith.annotation.label_rows import LabelItem, RowsFile, check_label, labelled_lines
from tunesmith.annotation.span_votes import SpanAgreement, SpanVotes, read, span_agreement, written
from tunesmith.annotation.vote_state import WORD, VoteState
from tunesmith.annotation.vote_store import Entry, VoteStore, Who
from tunesmith.data.examples.spans import checked
from tunesmith.data.examples.types import Span
from tunesmith.errors import DataError

WHAT = "labels"  # the kind of the store
NO_FACTS: Mapping[str, object] = {}


class LabelProgress(BaseModel):
    """The progress of a labelling session."""

    items: int
    labelled: int  # items with a label
    tied: int  # items with all votes and no majority
    labels: dict[str, int]  # items by label
    people: dict[str, int]  # votes by rater
    mine: int  # votes of the rater who asks
    skipped: int  # items that this rater skipped
    agreement: Agreement | SpanAgreement


class LabelSession:
    """A file of rows that any number of raters label, in the order of active learning."""

    def __init__(self, rows: RowsFile, store: VoteStore, order: LabelQueue, *, overlap: Overlap = NO_OVERLAP) -> None:
        self.rows = rows
        self.store = store
        self.overlap = overlap
        self._order = order
        self._items = {item.key: item for item in rows.items}
        self._index = {item.key: index for index, item in enumerate(rows.items)}
        rules = AssignmentRules(self._items, self._candidates, overlap.wanted, self._learn)
        self.assignment = Assignment(store, rules, self.empty())
        self.assignment.catch_up()

    @classmethod
    def empty(cls) -> VoteState:
        """Return the state without votes."""
        return VoteState()

    @property
    def votes(self) -> VoteState:
        """Return the current votes."""
        return self.assignment.votes

    def item(self, key: str) -> LabelItem:
        """Return the row with this key; raise DataError if there is none."""
        if key not in self._items:
            raise DataError("row: not one of these rows; reload the page")
        return self._items[key]

    def vote(self, who: Who, key: str, label: str, *, took: Mapping[str, object] = NO_FACTS) -> None:
        """Record a vote; it is on disk when this returns. A new label is added to the known labels.

        Args:
            who: rater and browser tab.
            key: key of the row.
            label: the label.
            took: how the vote was made, such as the time in seconds; stored with the vote.

        Raises:
            DataError: the row is unknown or the label is invalid.
        """
        label = check_label(label)
        item = self.item(key)
        with self.assignment.lock:
            new = [] if label in self.votes.words else [Entry(who.rater, WORD, "", {"label": label})]
            self.assignment.vote(who, item.key, {"label": label, **took}, *new)

    def labels(self) -> list[str]:
        """Return all known labels, in order of first use."""
        with self.assignment.lock:
            return list(self.votes.words)

    def progress(self, rater: str = "") -> LabelProgress:
        """Compute the progress, with the counts of the rater who asks."""
        with self.assignment.lock:
            self.assignment.catch_up()
            voted = [key for key in self.votes.items() if key in self._items]
            majority = {key: self.votes.label(key) for key in voted}
            counts = self.counted([label for label in majority.values() if label is not None])
            undecided = [key for key, label in majority.items() if label is None]
            given = [self.votes.on(key) for key in voted]
            people = Counter(name for raters in given for name in raters)
            return LabelProgress(
                items=len(self._items),
                labelled=len(majority) - len(undecided),
                tied=sum(len(self.votes.on(key)) >= self.overlap.wanted(key) for key in undecided),
                labels={label: counts[label] for label in self.votes.words},
                people=dict(people.most_common()),
                mine=people[rater],
                skipped=len(self.votes.skipped(rater) & self._items.keys()),
                agreement=self.agreement([raters for raters in given if len(raters) > 1]),
            )

    def counted(self, labels: Sequence[str]) -> Counter[str]:
        """Count the labels of the labelled rows."""
        return Counter(labels)

    def agreement(self, units: Sequence[Mapping[str, str]]) -> Agreement | SpanAgreement:
        """Measure the agreement on maps of rater to label."""
        return agreement(units)

    def lines(self) -> list[str]:
        """Return the labelled rows as JSON lines."""
        with self.assignment.lock:
            self.assignment.catch_up()
            return labelled_lines(self.rows, self.votes)[0]

    def _candidates(self, rater: str) -> Iterator[str]:
        """Yield keys in the order of assignment to a rater."""
        yield from [key for key in self.votes.items() if self.overlap.wanted(key) > 1]
        for index in self._order.ranking():
            yield self.rows.items[index].key
        # Rows whose votes were undone after the ranking was computed are missing from it.
        yield from [item.key for item in self.rows.items if not self.votes.on(item.key)]

    def _learn(self) -> None:
        """Rank the rows again with the current labels."""
        labels = ((self._index[key], self.votes.label(key)) for key in self.votes.items() if key in self._index)
        self._order.learn({index: self.learned(label) for index, label in labels if label is not None})

    def learned(self, label: str) -> str:
        """Return the class of a label for active learning."""
        return label


class SpanSession(LabelSession):
    """A file of texts whose spans any number of raters mark.

    Active learning takes the labels that occur in a text as its class.
    """

    @classmethod
    def empty(cls) -> VoteState:
        """Return the state without votes."""
        return SpanVotes()

    def vote(self, who: Who, key: str, label: str, *, took: Mapping[str, object] = NO_FACTS) -> None:
        """Raise DataError: a text has spans, not a label."""
        raise DataError("label: the spans of these texts are marked; reload the page")

    def mark(self, who: Who, key: str, spans: Sequence[Span], *, took: Mapping[str, object] = NO_FACTS) -> None:
        """Record all spans that a rater marked in a text; they are on disk when this returns.

        Args:
            who: rater and browser tab.
            key: key of the row.
            spans: in any order; none is a vote, too.
            took: how the vote was made, such as the time in seconds; stored with the vote.

        Raises:
            DataError: the row is unknown, or a span is outside the text, blank, or overlaps another.
        """
        item = self.item(key)
        named = [span._replace(label=check_label(span.label, spans=True)) for span in spans]
        vote = written(checked(named, item.text, item.where))
        self.assignment.vote(who, item.key, {"label": vote, **took})

    def withdrawn(self, rater: str, key: str) -> list[Span]:
        """Return the spans that this rater saved in a text and has withdrawn by an undo."""
        with self.assignment.lock:
            vote = self.votes.withdrawn(key, rater)
        return [] if vote is None else read(vote)

    def counted(self, labels: Sequence[str]) -> Counter[str]:
        """Count the spans of the labelled rows by label."""
        return Counter(span.label for label in labels for span in read(label))

    def agreement(self, units: Sequence[Mapping[str, str]]) -> Agreement | SpanAgreement:
        """Measure the agreement by span."""
        return span_agreement(units)

    def learned(self, label: str) -> str:
        """Return the labels that occur in a text, as one word."""
        return json.dumps(sorted({span.label for span in read(label)}))
