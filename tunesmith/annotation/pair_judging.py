"""People judge answers: which item a person gets next, on which side each answer stands, what a vote amounts to."""

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

WHAT = "judgements"
# A person gets a planted item each time they have judged so many.
GOLD_EVERY = 8
EVERYBODY = 1_000_000
LONGEST_ANSWER = 20_000
# What the page says of two answers by where they stand -> where they stand.
LEFT, RIGHT = "left", "right"


class JudgingProgress(BaseModel):
    """How far it is: items, those with a vote, votes that are there and that are wanted, votes by person, what a person
    put aside, agreement."""

    items: int
    judged: int
    votes: int
    wanted: int
    people: dict[str, int]
    mine: int
    skipped: int
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class PageChoice:
    """A choice of the page: left, right or a label of the item, an own text, and what is kept beside it."""

    choice: str
    text: str = ""
    took: Mapping[str, object] = field(default_factory=dict)


class PairSession:
    """Some items being judged by any number of people, in an order drawn once by `seed`."""

    def __init__(
        self, items: Sequence[Item], store: VoteStore, *, overlap: Overlap = NO_OVERLAP, seed: int = 0
    ) -> None:
        self.items = {item.key: item for item in items}
        self.store, self.overlap = store, overlap
        self._plain = sorted((i.key for i in items if not i.gold), key=lambda key: _chance(str(seed), key))
        self._gold = sorted((i.key for i in items if i.gold), key=lambda key: _chance(str(seed), key))
        self.assignment = Assignment(store, AssignmentRules(self.items, self._order, self._wanted))
        self.assignment.catch_up()

    def item(self, key: str) -> Item:
        """The item of this key. Raises DataError where it is none of these."""
        if key not in self.items:
            raise DataError("pair: not among these; load the page again")
        return self.items[key]

    def shown(self, key: str, rater: str) -> tuple[int, ...]:
        """Which answers stand from left to right: drawn anew for each item and person, and kept."""
        if len(self.item(key).answers) == 1:
            return (0,)
        return (1, 0) if _chance(rater, key) & 1 else (0, 1)

    def vote(self, who: Who, key: str, said: PageChoice) -> None:
        """Keep a vote; it is on disk when this returns. Raises DataError for what cannot be said of the item."""
        item, shown = self.item(key), self.shown(key, who.rater)
        label = said.choice
        if len(shown) == 2 and label in (LEFT, RIGHT):
            label = (FIRST, SECOND)[shown[(LEFT, RIGHT).index(label)]]
        elif label not in item.labels or label in (FIRST, SECOND):
            raise DataError(f"vote: {label!r} cannot be said of it; load the page again")
        body = {"label": label, "left": shown[0], **said.took}
        if label == OWN:
            body["text"] = _own(item, said.text)
        # Whoever wrote an answer looked long, and what they wrote is of use whoever voted meanwhile.
        self.assignment.vote(who, key, body, late=label == OWN)

    def progress(self, rater: str = "") -> JudgingProgress:
        """How far it is, for everybody and for this person; planted items count for nobody."""
        with self.assignment.lock:
            self.assignment.catch_up()
            votes = self.assignment.votes
            given = {key: votes.on(key) for key in self._plain}
            people = [name for raters in given.values() for name in raters]
            counts = {name: people.count(name) for name in dict.fromkeys(people)}
            return JudgingProgress(
                items=len(self._plain),
                judged=sum(bool(raters) for raters in given.values()),
                votes=sum(min(len(raters), self.overlap.wanted(key)) for key, raters in given.items()),
                wanted=sum(self.overlap.wanted(key) for key in self._plain),
                people=dict(sorted(counts.items(), key=lambda pair: -pair[1])),
                mine=counts.get(rater, 0),
                skipped=len(votes.skipped(rater).intersection(self._plain)),
                agreement=agreement([raters for raters in given.values() if len(raters) > 1]),
            )

    def _order(self, rater: str) -> Iterator[str]:
        """Keys in the order in which a person is to get them."""
        votes = self.assignment.votes
        done = votes.counts()[rater]
        if done % GOLD_EVERY == GOLD_EVERY - 1:
            yield from self._gold
        yield from [key for key in self._plain if votes.on(key) and self.overlap.wanted(key) > 1]
        yield from self._plain

    def _wanted(self, key: str) -> int:
        """How many people are to judge an item; a planted one everybody."""
        if self.items[key].gold:
            return EVERYBODY
        return self.overlap.wanted(key)


def _chance(*parts: str) -> int:
    """A number that looks drawn, and is the same for the same parts."""
    return int.from_bytes(hashlib.blake2b("\x1e".join(parts).encode(), digest_size=8).digest(), "big")


def _own(item: Item, text: str) -> str:
    """The answer that somebody wrote, if it is one."""
    text = text.encode("utf-8", "replace").decode().strip()  # half an emoji, of a paste that was cut, stands nowhere
    if not text:
        raise DataError("your answer: empty; write it, or choose one that is there")
    if len(text) > LONGEST_ANSWER:
        raise DataError(f"your answer: {len(text)} characters; at most {LONGEST_ANSWER}")
    if any(alike(text, answer) for answer in item.answers):
        raise DataError("your answer: the same as one that is there; choose that one")
    return text
