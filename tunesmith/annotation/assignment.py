"""Assignment of items to raters, with skip and undo, shared by all annotation pages.

The store is the only persistent state; everything here is rebuilt from it after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from threading import RLock

from tunesmith.annotation.vote_state import SKIP, UNDO, VOTE, VoteState
from tunesmith.annotation.vote_store import Entry, VoteStore, Who
from tunesmith.errors import DataError

# An item shown this long without a vote may be assigned to another rater.
LEASE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """Share of the items that several raters judge, to measure agreement."""

    share: float = 0.0  # 0 to 1
    raters: int = 2  # raters per shared item

    def wanted(self, key: str) -> int:
        """Return the number of raters for this item; it depends on the key alone."""
        return self.raters if int(key[:8], 16) < self.share * 2**32 else 1

    def check(self) -> None:
        """Raise DataError for a value that is out of range."""
        if not 0 <= self.share <= 1:
            raise DataError(f"--overlap: expected a share of the items in [0, 1], got {self.share}; change it")
        if self.raters < 2:
            raise DataError(f"--raters: expected at least 2 raters per shared item, got {self.raters}; raise it")


NO_OVERLAP = Overlap()


@dataclass(frozen=True, slots=True)
class AssignmentRules:
    """Items of a page, their order, and the number of raters per item."""

    items: Collection[str]  # keys
    order: Callable[[str], Iterable[str]]  # rater -> keys in the order of assignment
    wanted: Callable[[str], int]  # key -> number of raters
    changed: Callable[[], None] = lambda: None  # called after new votes


class Assignment:
    """Assigns the items of one store to raters and tabs by the rules, and records their votes."""

    def __init__(self, store: VoteStore, rules: AssignmentRules, votes: VoteState | None = None) -> None:
        self.store = store
        self.votes = VoteState() if votes is None else votes  # without events
        self.lock = RLock()  # guards `votes` and whatever callers derive from it
        self._rules = rules

    def next(self, who: Who, *, skipped: bool = False) -> str | None:
        """Lease the next item to this tab and return its key; None when no item is left.

        A tab that has not voted on its item gets the same item again. With `skipped`, one that the rater has skipped.
        """
        with self.lock:
            self.catch_up()
            leases = self.store.leases()
            held = next((key for key, holders in leases.items() if who in holders), "")
            aside = self.votes.skipped(who.rater)
            for key in filter(None, (held, *self._rules.order(who.rater))):
                others = [holder for holder in leases.get(key, ()) if holder.tab != who.tab]
                if self._open_places(key, who.rater) <= len(others) or (key in aside) != skipped:
                    continue
                if self._leased(key, who):
                    return key
            self.store.release(who)
            return None

    def vote(self, who: Who, key: str, body: dict[str, object], *before: Entry, late: bool = False) -> None:
        """Store a vote and release the item. A repeated identical vote, as after a lost response, is ignored.

        Args:
            who: the rater and their tab.
            key: the item.
            body: content of the vote.
            before: events to store in the same transaction, before the vote.
            late: accept the vote even if the item has enough votes.

        Raises:
            DataError: the lease expired and the item has enough votes of other raters.
        """
        with self.lock:
            self.catch_up()
            given = self.votes.on(key)
            leased = who in self.store.leases().get(key, ())  # true after an undo, even with enough other votes
            if not (late or leased or who.rater in given) and len(given) >= self._rules.wanted(key):
                raise DataError("vote: this item already has enough votes of other raters; continue with the next one")
            if not self._is_last(who.rater, key, body):
                self.store.append(*before, Entry(who.rater, VOTE, key, body))
            self.store.release(who)
            self.catch_up()

    def skip(self, who: Who, key: str) -> None:
        """Skip an item for this rater and release it."""
        with self.lock:
            self.store.append(Entry(who.rater, SKIP, key))
            self.store.release(who)
            self.catch_up()

    def undo(self, who: Who) -> str | None:
        """Undo the last vote or skip of this rater and lease its item to the tab again; None without one."""
        with self.lock:
            self.catch_up()
            last = self.votes.last(who.rater)
            if last is None or last.item not in self._rules.items:
                return None
            self.store.append(Entry(who.rater, UNDO, last.item, {"of": last.number}))
            self.catch_up()
            places = max(2, self._rules.wanted(last.item))
            self.store.lease(last.item, who, places=places, seconds=LEASE_SECONDS)
            return last.item

    def renew(self, who: Who, key: str) -> bool:
        """Reserve an item for the tab that works on it for another ten minutes.

        An expired lease is taken again, unless another rater has the item now or the tab another item.
        """
        with self.lock:
            if self.store.renew(key, who, seconds=LEASE_SECONDS):
                return True
            self.catch_up()
            holds_other = any(who in holders for holders in self.store.leases().values())
            return not holds_other and self._leased(key, who)

    def release(self, who: Who) -> None:
        """Release the item of a closed tab."""
        self.store.release(who)

    def can_undo(self, rater: str) -> bool:
        """Return whether this rater has a vote or skip to undo."""
        with self.lock:
            last = self.votes.last(rater)
            return last is not None and last.item in self._rules.items

    def catch_up(self) -> None:
        """Read the events that this or another process has written since the last call."""
        with self.lock:
            before = self.votes.number
            for event in self.store.since(before):
                self.votes.take(event)
            if self.votes.number != before:
                self._rules.changed()

    def _is_last(self, rater: str, key: str, body: Mapping[str, object]) -> bool:
        """Return whether the last action of this rater is the same vote, ignoring its duration."""
        last = self.votes.last(rater)
        if last is None or (last.kind, last.item) != (VOTE, key):
            return False
        return {**last.body, "seconds": 0} == {**body, "seconds": 0}

    def _leased(self, key: str, who: Who) -> bool:
        """Lease the item, and check that no other process has voted on it meanwhile."""
        while (places := self._open_places(key, who.rater)) and self.store.lease(
            key, who, places=places, seconds=LEASE_SECONDS
        ):
            self.catch_up()  # another process may have voted and released the item just before
            if self._open_places(key, who.rater) == places:
                return True
        return False

    def _open_places(self, key: str, rater: str) -> int:
        """Return the number of votes still needed; 0 if this rater has voted on the item."""
        given = self.votes.on(key)
        return 0 if rater in given or key not in self._rules.items else self._rules.wanted(key) - len(given)
