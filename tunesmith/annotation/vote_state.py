"""State computed from the events of a store: current votes, skipped items, and the next undo."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from tunesmith.annotation.vote_store import Event

VOTE = "vote"
SKIP = "skip"
UNDO = "undo"
WORD = "word"

# Invisible, but required in text: they control letter forms (Persian, Indic scripts) and join emoji.
JOINERS = "\u200c\u200d"


def can_be_read(text: str) -> bool:
    """Return whether a text has visible characters and no control characters."""
    without_joiners = text.translate(dict.fromkeys(map(ord, JOINERS)))
    return bool(without_joiners.strip()) and without_joiners.isprintable()


class VoteState:
    """The votes after a sequence of events; `take` adds an event, and equal sequences give equal states.

    The last vote of a rater on an item counts; an undo restores the previous one.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.number = 0  # of the last event
        self.words: list[str] = []  # known labels, in order of first use
        self._cast: dict[str, dict[str, list[Event]]] = {}  # item -> rater -> votes without undone ones
        self._labels: dict[str, str | None] = {}  # item -> majority label, computed on demand
        self._skipped: defaultdict[str, set[str]] = defaultdict(set)  # rater -> items
        self._withdrawn: dict[tuple[str, str], str] = {}  # item and rater -> label of a vote undone and not replaced
        self._done: defaultdict[str, list[Event]] = defaultdict(list)  # rater -> votes and skips without undone ones
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Apply one event."""
        self.number = event.number
        if event.kind == VOTE:
            self._labels.pop(event.item, None)
            self._cast.setdefault(event.item, {}).setdefault(event.rater, []).append(event)
            self._skipped[event.rater].discard(event.item)
            self._withdrawn.pop((event.item, event.rater), None)
            for label in self.labels_in(event):
                self._add_label(label)
            self._done[event.rater].append(event)
        elif event.kind == SKIP:
            self._skipped[event.rater].add(event.item)
            self._done[event.rater].append(event)
        elif event.kind == WORD:
            self._add_label(str(event.body["label"]))
        elif event.kind == UNDO:
            self._undo(event)

    def on(self, item: str) -> dict[str, str]:
        """Return the current label of each rater on an item."""
        return {rater: str(votes[-1].body["label"]) for rater, votes in self._cast.get(item, {}).items()}

    def standing(self) -> list[Event]:
        """Return all current votes in the order in which they were cast."""
        current = [votes[-1] for raters in self._cast.values() for votes in raters.values()]
        return sorted(current, key=lambda vote: vote.number)

    def items(self) -> list[str]:
        """Return all items with a current vote, in the order of their first votes."""
        return list(self._cast)

    def label(self, item: str) -> str | None:
        """Return the majority label of an item; None for a tie or no vote."""
        if item not in self._labels:
            self._labels[item] = self.majority(list(self.on(item).values()))
        return self._labels[item]

    @staticmethod
    def majority(labels: Sequence[str]) -> str | None:
        """Return the label of most raters; None for a tie or no label."""
        ranked = Counter(labels).most_common(2)
        tied = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
        return ranked[0][0] if ranked and not tied else None

    @staticmethod
    def labels_in(vote: Event) -> Sequence[str]:
        """Return the labels that a vote uses."""
        return [str(vote.body["label"])]

    def withdrawn(self, item: str, rater: str) -> str | None:
        """Return the label that this rater has undone last on an item and not replaced; None without one."""
        return self._withdrawn.get((item, rater))

    def skipped(self, rater: str) -> set[str]:
        """Return the items that a rater has skipped and not voted on since."""
        return set(self._skipped[rater])

    def last(self, rater: str) -> Event | None:
        """Return the vote or skip that the next undo of this rater would revert."""
        return self._done[rater][-1] if self._done[rater] else None

    def counts(self) -> Counter[str]:
        """Return the number of items with a vote for each rater."""
        return Counter(rater for raters in self._cast.values() for rater in raters)

    def units(self) -> list[dict[str, str]]:
        """Return rater -> label for each item with several votes."""
        return [self.on(item) for item, raters in self._cast.items() if len(raters) > 1]

    def _add_label(self, label: str) -> None:
        if label not in self.words:
            self.words.append(label)

    def _undo(self, event: Event) -> None:
        number = event.body["of"]
        done = self._done[event.rater]
        undone = next((action for action in reversed(done) if action.number == number), None)
        if undone is None:
            return  # two tabs undid the same action
        done.remove(undone)
        if undone.kind == SKIP:
            self._skipped[event.rater].discard(undone.item)
            return
        self._withdrawn[undone.item, event.rater] = str(undone.body["label"])
        self._labels.pop(undone.item, None)
        votes = self._cast[undone.item][event.rater]
        votes.remove(undone)
        if not votes:
            del self._cast[undone.item][event.rater]
        if not self._cast[undone.item]:
            del self._cast[undone.item]
