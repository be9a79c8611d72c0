"""Judging sessions: the next item of each rater, the side of each answer, and the recording of votes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from tunesmith.annotation.agreement import Agreement, agreement
from tunesmith.annotation.assignment import NO_OVERLAP, Assignment, AssignmentRules, Overlap
from tunesmith.annotation.items import FIRST, OWN, SECOND, Item, alike
from tunesmith.annotation.vote_store import VoteStore, Who
from tunesmith.errors import DataError

WHAT = "judgements"  # the kind of the store
GOLD_EVERY = 8  # every eighth item of a rater is a control item
EVERYBODY = 1_000_000  # number of raters of a control item
MAX_ANSWER_CHARS = 20_000  # of an answer that a rater writes
# Choices of the page between two answers, by side.
LEFT, RIGHT = "left", "right"


class JudgingProgress(BaseModel):
    """The progress of a judging session; control items are not counted."""

    items: int
    judged: int  # items with a vote
    votes: int  # at most the wanted number per item
    wanted: int  # votes
    people: dict[str, int]  # votes by rater
    mine: int  # votes of the rater who asks
    skipped: int  # items that this rater skipped
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class PageChoice:
    """The choice of a rater on the page."""

    choice: str  # left, right, or a label of the item
    text: str = ""  # the rater's own answer
    took: Mapping[str, object] = field(default_factory=dict)  # how the vote was made, stored with it


class PairSession:
    """Items, control items included, that any number of raters judge, in an order that depends on the seed."""

    def __init__(
        self, items: Sequence[Item], store: VoteStore, *, overlap: Overlap = NO_OVERLAP, seed: int = 0
    ) -> None:
        self.items = {item.key: item for item in items}
        self.store = store
        self.overlap = overlap
        self._plain = sorted((i.key for i in items if not i.gold), key=lambda key: _hash(str(seed), key))
        self._gold = sorted((i.key for i in items if i.gold), key=lambda key: _hash(str(seed), key))
        rules = AssignmentRules(
            self.items, self._order, lambda key: EVERYBODY if self.items[key].gold else overlap.wanted(key)
        )
        self.assignment = Assignment(store, rules)
        self.assignment.catch_up()

    def item(self, key: str) -> Item:
        """Return the item with this key; raise DataError if there is none."""
        if key not in self.items:
            raise DataError("pair: not one of these pairs; reload the page")
        return self.items[key]

    def shown(self, key: str, rater: str) -> tuple[int, ...]:
        """Return the indices of the answers from left to right.

        Each rater and item has its own order, the same at every request.
        """
        if len(self.item(key).answers) == 1:
            return (0,)
        return (1, 0) if _hash(rater, key) & 1 else (0, 1)

    def vote(self, who: Who, key: str, choice: PageChoice) -> None:
        """Record a vote; it is on disk when this returns.

        Args:
            who: rater and browser tab.
            key: key of the item.
            choice: the choice on the page.

        Raises:
            DataError: the item is unknown, the choice does not apply to it, or the rater's own answer is invalid.
        """
        item = self.item(key)
        shown = self.shown(key, who.rater)
        label = choice.choice
        if len(shown) == 2 and label in (LEFT, RIGHT):
            label = (FIRST, SECOND)[shown[(LEFT, RIGHT).index(label)]]
        elif label not in item.labels or label in (FIRST, SECOND):
            raise DataError(f"vote: {label!r} is not a choice for this item; reload the page")
        body = {"label": label, "left": shown[0], **choice.took}
        if label == OWN:
            # A truncated paste may end in half a surrogate pair.
            text = choice.text.encode("utf-8", "replace").decode().strip()
            if not text:
                raise DataError("your answer: empty; write it, or choose one of the answers")
            if len(text) > MAX_ANSWER_CHARS:
                raise DataError(
                    f"your answer: expected at most {MAX_ANSWER_CHARS} characters, got {len(text)}; shorten it"
                )
            if any(alike(text, answer) for answer in item.answers):
                raise DataError("your answer: the same as one of the answers; choose that one")
            body["text"] = text
        # Writing an answer takes long. It is useful even if another rater has voted in the meantime.
        self.assignment.vote(who, key, body, late=label == OWN)

    def progress(self, rater: str = "") -> JudgingProgress:
        """Compute the progress, with the counts of the rater who asks."""
        with self.assignment.lock:
            self.assignment.catch_up()
            votes = self.assignment.votes
            labels = {key: votes.on(key) for key in self._plain}  # item -> rater -> label
            people = [name for raters in labels.values() for name in raters]
            counts = {name: people.count(name) for name in dict.fromkeys(people)}
            return JudgingProgress(
                items=len(self._plain),
                judged=sum(bool(raters) for raters in labels.values()),
                votes=sum(min(len(raters), self.overlap.wanted(key)) for key, raters in labels.items()),
                wanted=sum(self.overlap.wanted(key) for key in self._plain),
                people=dict(sorted(counts.items(), key=lambda pair: -pair[1])),
                mine=counts.get(rater, 0),
                skipped=len(votes.skipped(rater).intersection(self._plain)),
                agreement=agreement([raters for raters in labels.values() if len(raters) > 1]),
            )

    def _order(self, rater: str) -> Iterator[str]:
        """Yield keys in the order of assignment to a rater."""
        votes = self.assignment.votes
        if votes.counts()[rater] % GOLD_EVERY == GOLD_EVERY - 1:
            yield from self._gold
        yield from [key for key in self._plain if votes.on(key) and self.overlap.wanted(key) > 1]
        yield from self._plain


def _hash(*parts: str) -> int:
    """Return a 64-bit hash, used as a random number that is the same for the same parts."""
    return int.from_bytes(hashlib.blake2b("\x1e".join(parts).encode(), digest_size=8).digest(), "big")
