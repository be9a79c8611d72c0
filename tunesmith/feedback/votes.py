"""What the events of a store amount to: the votes that stand, who skipped what, and what an undo would take back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from tunesmith.feedback.store import Event

VOTE, SKIP, UNDO, WORD = "vote", "skip", "undo", "word"

# Between letters they decide how those are written (Persian, Indic), between pictures they join an emoji.
JOINERS = "\u200c\u200d"


def can_be_read(text: str) -> bool:
    """Whether there is something to see in a text, and no control character."""
    seen = text.translate(dict.fromkeys(map(ord, JOINERS)))
    return bool(seen.strip()) and seen.isprintable()


class Votes:
    """The state after some events; `take` moves it on, and the same events always give the same state.

    Of several votes of one person on one item the last stands; taken back, the one before stands again.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.number = 0  # of the last event taken
        self.words: list[str] = []  # labels that can be given, in the order in which they were first known
        self._cast: dict[str, dict[str, list[Event]]] = {}  # item -> rater -> votes not taken back
        self._labels: dict[str, str | None] = {}  # item -> what stands, as far as it was asked for
        self._skipped: defaultdict[str, set[str]] = defaultdict(set)  # rater -> items
        self._done: defaultdict[str, list[Event]] = defaultdict(list)  # rater -> what can be taken back
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Move on by one event."""
        self.number = event.number
        if event.kind == VOTE:
            self._labels.pop(event.item, None)
            self._cast.setdefault(event.item, {}).setdefault(event.rater, []).append(event)
            self._skipped[event.rater].discard(event.item)
            self._known(event.body["label"])
            self._done[event.rater].append(event)
        elif event.kind == SKIP:
            self._skipped[event.rater].add(event.item)
            self._done[event.rater].append(event)
        elif event.kind == WORD:
            self._known(event.body["label"])
        elif event.kind == UNDO:
            self._take_back(event)

    def on(self, item: str) -> dict[str, str]:
        """Rater -> the label that stands."""
        return {rater: str(votes[-1].body["label"]) for rater, votes in self._cast.get(item, {}).items()}

    def standing(self) -> list[Event]:
        """Every vote that stands, in the order in which they were cast."""
        found = [votes[-1] for raters in self._cast.values() for votes in raters.values()]
        return sorted(found, key=lambda vote: vote.number)

    def items(self) -> list[str]:
        """Every item with a vote that stands, in the order of the first votes."""
        return list(self._cast)

    def label(self, item: str) -> str | None:
        """The label that most people gave; None for a tie or no vote."""
        if item not in self._labels:
            ranked = Counter(self.on(item).values()).most_common(2)
            tied = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
            self._labels[item] = ranked[0][0] if ranked and not tied else None
        return self._labels[item]

    def skipped(self, rater: str) -> set[str]:
        """Items that a person has put aside and not voted on since."""
        return set(self._skipped[rater])

    def last(self, rater: str) -> Event | None:
        """What an undo of this person would take back."""
        return self._done[rater][-1] if self._done[rater] else None

    def counts(self) -> Counter[str]:
        """Rater -> items they have a vote on."""
        return Counter(rater for raters in self._cast.values() for rater in raters)

    def units(self) -> list[dict[str, str]]:
        """For each item that several people voted on: rater -> label."""
        return [self.on(item) for item, raters in self._cast.items() if len(raters) > 1]

    def _known(self, label: Any) -> None:
        if str(label) not in self.words:
            self.words.append(str(label))

    def _take_back(self, event: Event) -> None:
        number = event.body["of"]
        done = self._done[event.rater]
        gone = next((one for one in reversed(done) if one.number == number), None)
        if gone is None:
            return  # two tabs took the same thing back
        done.remove(gone)
        if gone.kind == SKIP:
            self._skipped[event.rater].discard(gone.item)
            return
        self._labels.pop(gone.item, None)
        votes = self._cast[gone.item][event.rater]
        votes.remove(gone)
        if not votes:
            del self._cast[gone.item][event.rater]
        if not self._cast[gone.item]:
            del self._cast[gone.item]
