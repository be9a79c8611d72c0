"""People label rows: who gets which row next, what they said, and what it amounts to.

A person who asks gets first the rows that somebody else labelled and that several people are to label, then the row
that is worth most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from tunesmith.annotation.active_learning import LabelQueue
from tunesmith.annotation.agreement import Agreement, agreement
from tunesmith.annotation.assignment import NO_OVERLAP, Assignment, AssignmentRules, Overlap
from tunesmith.annotation.label_rows import LabelItem, RowsFile, check_label, labelled_lines
from tunesmith.annotation.vote_state import WORD, VoteState
from tunesmith.annotation.vote_store import Entry, VoteStore, Who
from tunesmith.errors import DataError

WHAT = "labels"
NO_FACTS: Mapping[str, object] = {}


class LabelProgress(BaseModel):
    """How far it is: items, those with a label, those of which all votes are in and as many people say one label as
    another, votes by label and by person, what a person put aside, agreement."""

    items: int
    labelled: int
    tied: int
    labels: dict[str, int]
    people: dict[str, int]
    mine: int
    skipped: int
    agreement: Agreement


class LabelSession:
    """One file of rows being labelled by any number of people."""

    def __init__(self, rows: RowsFile, store: VoteStore, order: LabelQueue, *, overlap: Overlap = NO_OVERLAP) -> None:
        self.rows, self.store, self.overlap, self._order = rows, store, overlap, order
        self._items = {item.key: item for item in rows.items}
        self._place = {item.key: place for place, item in enumerate(rows.items)}
        self.assignment = Assignment(store, AssignmentRules(self._items, self._candidates, overlap.wanted, self._learn))
        self.assignment.catch_up()

    @property
    def votes(self) -> VoteState:
        """What the events amount to."""
        return self.assignment.votes

    def item(self, key: str) -> LabelItem:
        """The row of this key. Raises DataError where it is none of these."""
        if key not in self._items:
            raise DataError("row: not among these rows; load the page again")
        return self._items[key]

    def vote(self, who: Who, key: str, label: str, *, took: Mapping[str, object] = NO_FACTS) -> None:
        """Keep a vote, and beside it how long it took; it is on disk when this returns. A new label is known from then.

        Raises DataError for a row that is not here or a label that no row could hold.
        """
        label, item = check_label(label), self.item(key)
        with self.assignment.lock:
            new = [] if label in self.votes.words else [Entry(who.rater, WORD, "", {"label": label})]
            self.assignment.vote(who, item.key, {"label": label, **took}, *new)

    def labels(self) -> list[str]:
        """Every label that can be given, in the order in which they were first known."""
        with self.assignment.lock:
            return list(self.votes.words)

    def progress(self, rater: str = "") -> LabelProgress:
        """How far it is, for everybody and for this person."""
        with self.assignment.lock:
            self.assignment.catch_up()
            here = [key for key in self.votes.items() if key in self._items]
            said = {key: self.votes.label(key) for key in here}
            given = Counter(label for label in said.values() if label is not None)
            even = [key for key, label in said.items() if label is None]
            people = self.votes.counts()
            return LabelProgress(
                items=len(self._items),
                labelled=given.total(),
                tied=sum(len(self.votes.on(key)) >= self.overlap.wanted(key) for key in even),
                labels={label: given[label] for label in self.votes.words},
                people=dict(people.most_common()),
                mine=people[rater],
                skipped=len(self.votes.skipped(rater)),
                agreement=agreement(self.votes.units()),
            )

    def lines(self) -> list[str]:
        """The labelled rows as JSON lines."""
        with self.assignment.lock:
            self.assignment.catch_up()
            return labelled_lines(self.rows, self.votes)[0]

    def _candidates(self, rater: str) -> Iterator[str]:
        """Keys in the order in which a person is to get them."""
        yield from [key for key in self.votes.items() if self.overlap.wanted(key) > 1]
        for place in self._order.ranking():
            yield self.rows.items[place].key
        # What was taken back after the ranking was made stands in no ranking yet.
        yield from [item.key for item in self.rows.items if not self.votes.on(item.key)]

    def _learn(self) -> None:
        """Rank anew by the labels that are known now."""
        found = ((self._place[key], self.votes.label(key)) for key in self.votes.items() if key in self._place)
        self._order.learn({place: label for place, label in found if label is not None})
