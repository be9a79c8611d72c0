"""Who gets which item next, what they put aside, and what an undo takes back: the same on every page of votes.

The store is the truth, and everything here is made from it again after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from threading import RLock

from tunesmith.errors import DataError
from tunesmith.feedback.store import Entry, VoteStore, Who
from tunesmith.feedback.votes import SKIP, UNDO, VOTE, Votes

# An item that is looked at this long without a vote may go to somebody else.
LEASE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much several people judge: this share of the items, each by so many of them."""

    share: float = 0.0
    raters: int = 2

    def wanted(self, key: str) -> int:
        """How many people are to judge this item; the same items every time."""
        return self.raters if int(key[:8], 16) < self.share * 2**32 else 1

    def check(self) -> None:
        """Nothing for settings that can be followed. Raises DataError."""
        if not 0 <= self.share <= 1:
            raise DataError(f"--overlap: {self.share} is no share of the items; give 0 to 1")
        if self.raters < 2:
            raise DataError(f"--raters: {self.raters} leaves nothing to compare; give 2 or more")


ALONE = Overlap()


@dataclass(frozen=True, slots=True)
class Rules:
    """Which items there are, in which order a person is to get them, and how many people each is for."""

    items: Collection[str]
    order: Callable[[str], Iterable[str]]  # rater -> keys, the best first
    wanted: Callable[[str], int]
    changed: Callable[[], None] = lambda: None  # called when there are votes that were not known before


class Turns:
    """One store of votes on some items, for any number of people and tabs; `lock` guards what is made from it."""

    def __init__(self, store: VoteStore, rules: Rules) -> None:
        self.store, self.votes, self.lock = store, Votes(), RLock()
        self._rules = rules

    def next(self, who: Who, *, skipped: bool = False) -> str | None:
        """The item this tab is to judge, leased to it; with `skipped` one of those its person put aside.

        A tab that asks again before it has answered gets the same item. None when there is nothing left.
        """
        with self.lock:
            self.catch_up()
            leases = self.store.leases()
            held = next((key for key, holders in leases.items() if who in holders), "")
            aside = self.votes.skipped(who.rater)
            for key in filter(None, (held, *self._rules.order(who.rater))):
                others = [one for one in leases.get(key, ()) if one.tab != who.tab]
                if self._places(key, who.rater) <= len(others) or (key in aside) != skipped:
                    continue
                if self._leased(key, who):
                    return key
            self.store.release(who)
            return None

    def vote(self, who: Who, key: str, body: dict[str, object], *before: Entry, late: bool = False) -> None:
        """Keep a vote, and what goes with it; all is on disk when this returns. `late` keeps one too many as well.

        The same again, as from a page that did not hear of the first, adds nothing.

        Raises DataError where as many people as are to judge the item did so while this tab looked at it too long.
        """
        with self.lock:
            self.catch_up()
            given = self.votes.on(key)
            mine = who in self.store.leases().get(key, ())  # an undo gave it back, whoever judged meanwhile
            if not (late or mine or who.rater in given) and len(given) >= self._rules.wanted(key):
                raise DataError("vote: others have judged this one meanwhile; go on with the next")
            if not self._is_last(who.rater, key, body):
                self.store.append(*before, Entry(who.rater, VOTE, key, body))
            self.store.release(who)
            self.catch_up()

    def skip(self, who: Who, key: str) -> None:
        """Put an item aside for this person."""
        with self.lock:
            self.store.append(Entry(who.rater, SKIP, key))
            self.store.release(who)
            self.catch_up()

    def undo(self, who: Who) -> str | None:
        """Take back what this person did last, and hand its item to the tab again; None when there is nothing."""
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

    def release(self, who: Who) -> None:
        """Let go of the item that a tab which was closed had."""
        self.store.release(who)

    def can_undo(self, rater: str) -> bool:
        """Whether what this person did last is there to be taken back."""
        with self.lock:
            last = self.votes.last(rater)
            return last is not None and last.item in self._rules.items

    def catch_up(self) -> None:
        """Take what this or another process has written since."""
        with self.lock:
            before = self.votes.number
            for event in self.store.since(before):
                self.votes.take(event)
            if self.votes.number != before:
                self._rules.changed()

    def _is_last(self, rater: str, key: str, body: Mapping[str, object]) -> bool:
        """Whether what this person did last is this vote; how long they looked does not matter."""
        last = self.votes.last(rater)
        if last is None or (last.kind, last.item) != (VOTE, key):
            return False
        return {**last.body, "seconds": 0} == {**body, "seconds": 0}

    def _leased(self, key: str, who: Who) -> bool:
        """Whether the tab has the item now, and as many people as are to judge it have not done so meanwhile."""
        while (places := self._places(key, who.rater)) and self.store.lease(
            key, who, places=places, seconds=LEASE_SECONDS
        ):
            self.catch_up()  # another process may have voted, and let go of it, just before
            if self._places(key, who.rater) == places:
                return True
        return False

    def _places(self, key: str, rater: str) -> int:
        """How many more people may judge an item, this one among them; 0 if it is not for this person."""
        given = self.votes.on(key)
        return 0 if rater in given or key not in self._rules.items else self._rules.wanted(key) - len(given)
