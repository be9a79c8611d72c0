"""Items and votes for tests, and people who judge by a rule."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tunesmith.annotation.items import FIRST, SECOND, Item, make_item
from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import Event
from tunesmith.data.tokenization.messages import Message


def item(n: int, *answers: str, by: Sequence[str] = ("base", "tuned"), gold: str = "") -> Item:
    answers = answers or (f"first {n}", f"second {n}")
    return make_item([Message("user", f"Prompt {n}")], answers, by[: len(answers)], gold=gold)


def label_for(on: Item, answer: str) -> str:
    """The label that prefers this answer."""
    return (FIRST, SECOND)[on.answers.index(answer)]


def right(on: Item) -> str:
    """The label of a planted item, else the one that prefers what "base" said."""
    return on.gold or (FIRST, SECOND)[on.by.index("base")]


def keyed(items: Sequence[Item]) -> dict[str, Item]:
    return {one.key: one for one in items}


class Ballot:
    """Votes as they are cast, one after another."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def cast(self, rater: str, on: Item, label: str, **body: object) -> None:
        number = len(self.events) + 1
        self.events.append(Event(number, float(number), rater, "vote", on.key, {"label": label, **body}))

    @property
    def votes(self) -> VoteState:
        return VoteState(self.events)


def simulate(ballot: Ballot, rater: str, items: Sequence[Item], *, care: float, seed: str) -> None:
    """A person who says what is right with this chance, on whichever side it stands, else the other."""
    chance = random.Random(f"{seed}/{rater}")
    for one in items:
        left = chance.randrange(2)
        wrong = SECOND if right(one) == FIRST else FIRST
        ballot.cast(rater, one, right(one) if chance.random() < care else wrong, left=left, seconds=5.0)
