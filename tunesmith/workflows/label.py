"""People label rows: who gets which row next, what they said, and what it amounts to.

The store is the truth and everything here is made from it again after a crash. A person who asks gets first the rows
that somebody else labelled and that several people are to label, then the row that is worth most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import RLock

from pydantic import BaseModel

from tunesmith.errors import DataError
from tunesmith.feedback.agreement import Agreement, agreement
from tunesmith.feedback.order import Order
from tunesmith.feedback.store import Entry, Store, Who
from tunesmith.feedback.votes import SKIP, UNDO, VOTE, WORD, Votes
from tunesmith.workflows.label_rows import Item, Rows, check_label, labelled_lines

WHAT = "labels"
# A row that is looked at this long without a vote may go to somebody else.
LEASE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much several people label: this share of the rows, each by so many of them."""

    share: float = 0.0
    raters: int = 2

    def wanted(self, key: str) -> int:
        """How many people are to label this item; the same items every time."""
        return self.raters if int(key[:8], 16) < self.share * 2**32 else 1


class Progress(BaseModel):
    """How far it is: items, items with a label, votes by label and by person, what a person put aside, agreement."""

    items: int
    labelled: int
    labels: dict[str, int]
    people: dict[str, int]
    mine: int
    skipped: int
    agreement: Agreement


class Labelling:
    """One file of rows being labelled by any number of people."""

    def __init__(self, rows: Rows, store: Store, order: Order, *, overlap: Overlap = Overlap()) -> None:
        self.rows, self.store, self.overlap = rows, store, overlap
        self._order, self._lock, self.votes = order, RLock(), Votes()
        self._items = {item.key: item for item in rows.items}
        self._place = {item.key: place for place, item in enumerate(rows.items)}
        self._catch_up()

    def next(self, who: Who, *, skipped: bool = False) -> Item | None:
        """The row this tab is to label, leased to it; with `skipped` one of those its person put aside.

        A tab that asks again before it has answered gets the same row. None when there is nothing left.
        """
        with self._lock:
            self._catch_up()
            leases = self.store.leases()
            held = next((key for key, holders in leases.items() if who in holders), "")
            aside = self.votes.skipped(who.rater)
            for key in filter(None, (held, *self._candidates(who.rater))):
                places = self._places(key, who.rater)
                others = [one for one in leases.get(key, ()) if one.tab != who.tab]
                if places <= len(others) or (key in aside) != skipped or key not in self._items:
                    continue
                if self.store.lease(key, who, places=places, seconds=LEASE_SECONDS):
                    return self._items[key]
            self.store.release(who)
            return None

    def vote(self, who: Who, key: str, label: str, *, seconds: float | None = None) -> None:
        """Keep a vote; it is on disk when this returns. A new label is one of the labels from then on.

        Raises DataError for a row that is not here or a label that no row could hold.
        """
        label, item = check_label(label), self._item(key)
        body = {"label": label} if seconds is None else {"label": label, "seconds": round(seconds, 2)}
        with self._lock:
            new = [] if label in self.votes.words else [Entry(who.rater, WORD, "", {"label": label})]
            self.store.append(*new, Entry(who.rater, VOTE, item.key, body))
            self.store.release(who)
            self._catch_up()

    def skip(self, who: Who, key: str) -> None:
        """Put a row aside for this person. Raises DataError for a row that is not here."""
        with self._lock:
            self.store.append(Entry(who.rater, SKIP, self._item(key).key))
            self.store.release(who)
            self._catch_up()

    def undo(self, who: Who) -> Item | None:
        """Take back what this person did last, and hand its row to the tab again; None when there is nothing."""
        with self._lock:
            self._catch_up()
            last = self.votes.last(who.rater)
            if last is None:
                return None
            self.store.append(Entry(who.rater, UNDO, last.item, {"of": last.number}))
            self._catch_up()
            self.store.lease(last.item, who, places=self.overlap.raters, seconds=LEASE_SECONDS)
            return self._items.get(last.item)

    def release(self, who: Who) -> None:
        """Let go of the row that a tab which was closed had."""
        self.store.release(who)

    def labels(self) -> list[str]:
        """Every label that can be given, in the order in which they were first known."""
        with self._lock:
            return list(self.votes.words)

    def can_undo(self, rater: str) -> bool:
        """Whether this person did anything that is not taken back."""
        with self._lock:
            return self.votes.last(rater) is not None

    def progress(self, rater: str = "") -> Progress:
        """How far it is, for everybody and for this person."""
        with self._lock:
            self._catch_up()
            here = [key for key in self.votes.items() if key in self._items]
            given = [label for key in here if (label := self.votes.label(key)) is not None]
            people = self.votes.counts()
            return Progress(
                items=len(self._items),
                labelled=len(here),
                labels={label: given.count(label) for label in self.votes.words},
                people=dict(people.most_common()),
                mine=people[rater],
                skipped=len(self.votes.skipped(rater)),
                agreement=agreement(self.votes.units()),
            )

    def lines(self) -> list[str]:
        """The labelled rows as JSON lines."""
        with self._lock:
            self._catch_up()
            return labelled_lines(self.rows, self.votes)[0]

    def _item(self, key: str) -> Item:
        if key not in self._items:
            raise DataError("row: not among these rows; load the page again")
        return self._items[key]

    def _candidates(self, rater: str) -> Iterator[str]:
        """Keys in the order in which a person is to get them."""
        yield from [key for key in self.votes.items() if self.overlap.wanted(key) > 1]
        for place in self._order.ranking():
            yield self.rows.items[place].key
        # What was taken back after the ranking was made stands in no ranking yet.
        yield from [item.key for item in self.rows.items if not self.votes.on(item.key)]

    def _places(self, key: str, rater: str) -> int:
        """How many more people may label an item, this one among them; 0 if it is not for this person."""
        given = self.votes.on(key)
        return 0 if rater in given else self.overlap.wanted(key) - len(given)

    def _catch_up(self) -> None:
        """Take what this or another process has written since."""
        before = self.votes.number
        for event in self.store.since(before):
            self.votes.take(event)
        if self.votes.number != before:
            found = ((self._place[key], self.votes.label(key)) for key in self.votes.items() if key in self._place)
            self._order.learn({place: label for place, label in found if label is not None})
