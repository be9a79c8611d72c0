"""What people judge: an answer or two to a prompt, who gave them, and which of all answers are worth judging."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.examples import Message
from tunesmith.feedback.store import Entry, Event

# Kinds of events: something to judge, and an answer that was made ahead.
ITEM, ANSWER = "item", "answer"
# What a vote can say. Of two answers FIRST and SECOND are those of the item, wherever they stood on the page; of one
# answer GOOD or BAD. OWN is an answer that the person wrote.
FIRST, SECOND, TIE, BAD, GOOD, OWN = "first", "second", "tie", "bad", "good", "own"
OF_TWO, OF_ONE = (FIRST, SECOND, TIE, BAD, OWN), (GOOD, BAD, OWN)


@dataclass(frozen=True, slots=True)
class Item:
    """One or two answers to a prompt and who gave each; of a planted one, `gold` is the label that is right.

    `cut` says of each answer whether it was cut off before it ended; empty where nobody knows.
    """

    key: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    by: tuple[str, ...]
    gold: str = ""
    cut: tuple[bool, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What a vote on it can say."""
        return OF_TWO if len(self.answers) == 2 else OF_ONE

    @property
    def entry(self) -> Entry:
        """The item as an event of a store."""
        turns = [[message.role, message.said] for message in self.messages]
        body = {"turns": turns, "answers": list(self.answers), "by": list(self.by), "gold": self.gold}
        cut = {"cut": list(self.cut)} if any(self.cut) else {}
        return Entry("", ITEM, self.key, {**body, **cut})


@dataclass(frozen=True, slots=True)
class Side:
    """One answer to each of some prompts, and the name of whoever gave them."""

    name: str
    answers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What is worth judging, and how many prompts are left out because both answers are the same or one is empty."""

    items: list[Item]
    same: int
    empty: int


def make_item(
    messages: Sequence[Message],
    answers: Sequence[str],
    by: Sequence[str],
    *,
    gold: str = "",
    cut: Sequence[bool] = (),
) -> Item:
    """An item; the same answers of the same people in either order are the same item.

    The order is as good as drawn, so that nobody's answers come first: else agreement beyond chance would look small
    where one model usually wins.
    """
    turns = [[message.role, message.said] for message in messages]
    order = sorted(range(len(answers)), key=lambda i: _digest([turns, answers[i], by[i]]))
    answers, by = tuple(answers[i] for i in order), tuple(by[i] for i in order)
    if gold in (FIRST, SECOND):
        gold = (FIRST, SECOND)[order.index((FIRST, SECOND).index(gold))]
    cut = tuple(cut[i] for i in order) if any(cut) else ()
    return Item(_digest([turns, answers, by]), tuple(messages), answers, by, gold, cut)


def read_items(events: Sequence[Event]) -> dict[str, Item]:
    """Key -> every item that was put into a store."""
    cut = cut_off(events)
    return {event.item: _item(event.item, event.body, cut) for event in events if event.kind == ITEM}


def cut_off(events: Iterable[Event]) -> set[tuple[str, str]]:
    """Key of the prompt and text of every answer that was cut off; older stores do not say."""
    made = (event for event in events if event.kind == ANSWER)
    return {(event.item, str(event.body["text"])) for event in made if not event.body.get("finished", True)}


def prompt_key(messages: Sequence[Message]) -> str:
    """What tells a prompt from others: its turns, blanks between words aside."""
    turns = [[message.role, " ".join(message.said.split())] for message in messages]
    return _digest(turns)


def alike(one: str, other: str) -> bool:
    """Whether two answers are the same, blanks aside: nobody could prefer one."""
    return one.split() == other.split()


def sample(prompts: Sequence[Sequence[Message]], sides: Sequence[Side]) -> Sampled:
    """For each prompt its answers as an item, where there is something to judge."""
    items, same, empty = [], 0, 0
    for i, messages in enumerate(prompts):
        answers = [side.answers[i] for side in sides]
        if not all(answer.strip() for answer in answers):
            empty += 1
        elif len(answers) == 2 and alike(*answers):
            same += 1
        else:
            items.append(make_item(messages, answers, [side.name for side in sides]))
    return Sampled(items, same, empty)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()


def _item(key: str, body: Mapping[str, Any], cut: Collection[tuple[str, str]]) -> Item:
    messages = tuple(Message(role, content) for role, content in body["turns"])
    told = tuple(body.get("cut", ()))
    item = Item(key, messages, tuple(body["answers"]), tuple(body["by"]), body["gold"], told)
    if not cut:
        return item
    prompt = prompt_key(messages)
    known = told or (False,) * len(item.answers)
    return replace(item, cut=tuple(one or (prompt, text) in cut for one, text in zip(known, item.answers, strict=True)))
