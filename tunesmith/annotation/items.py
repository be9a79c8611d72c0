"""Items that raters judge: one or two answers to a prompt, and the models or people who wrote them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.annotation.vote_store import Entry, Event
from tunesmith.data.tokenization.messages import Message

# Kinds of events: an item to judge, and an answer that was generated in advance.
ITEM = "item"
ANSWER = "answer"
# Labels of a vote. FIRST and SECOND refer to the order of answers in the item, not on the page; GOOD and BAD rate a
# single answer. OWN is an answer that the rater wrote.
FIRST = "first"
SECOND = "second"
TIE = "tie"
BAD = "bad"
GOOD = "good"
OWN = "own"
OF_TWO = (FIRST, SECOND, TIE, BAD, OWN)
OF_ONE = (GOOD, BAD, OWN)


@dataclass(frozen=True, slots=True)
class Item:
    """One or two answers to a prompt, with their authors."""

    key: str
    messages: tuple[Message, ...]  # the prompt
    answers: tuple[str, ...]
    by: tuple[str, ...]  # model or person that wrote each answer
    gold: str = ""  # the right label of a control item, else empty
    cut: tuple[bool, ...] = ()  # whether each answer was cut off by the token limit; empty if unknown

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels that a vote on the item may have."""
        return OF_TWO if len(self.answers) == 2 else OF_ONE

    @property
    def entry(self) -> Entry:
        """Return the item as an event for a vote store."""
        body = {"turns": _turns(self.messages), "answers": list(self.answers), "by": list(self.by), "gold": self.gold}
        cut = {"cut": list(self.cut)} if any(self.cut) else {}
        return Entry("", ITEM, self.key, {**body, **cut})


@dataclass(frozen=True, slots=True)
class AnswerSide:
    """One answer to each prompt, and the name of their author."""

    name: str
    answers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Items to judge, and how many prompts have none."""

    items: list[Item]
    same: int  # prompts with two equal answers
    empty: int  # prompts with an empty answer


def make_item(
    messages: Sequence[Message],
    answers: Sequence[str],
    by: Sequence[str],
    *,
    gold: str = "",
    cut: Sequence[bool] = (),
) -> Item:
    """Make an item; the same answers of the same authors in either order are the same item.

    Answers are ordered by a hash, so that no author is always first: chance-corrected agreement would otherwise be
    low where one model usually wins.

    Args:
        messages: the prompt.
        answers: one or two answers.
        by: author of each answer.
        gold: the right label of a control item, FIRST and SECOND referring to the order given here.
        cut: whether each answer was cut off by the token limit.
    """
    turns = _turns(messages)
    order = sorted(range(len(answers)), key=lambda i: _digest([turns, answers[i], by[i]]))
    answers = tuple(answers[i] for i in order)
    by = tuple(by[i] for i in order)
    if gold in (FIRST, SECOND):
        gold = (FIRST, SECOND)[order.index((FIRST, SECOND).index(gold))]
    cut = tuple(cut[i] for i in order) if any(cut) else ()
    return Item(_digest([turns, answers, by]), tuple(messages), answers, by, gold, cut)


def read_items(events: Sequence[Event]) -> dict[str, Item]:
    """Return all items of a store by key."""
    cut = cut_off(events)
    items = {}
    for event in events:
        if event.kind != ITEM:
            continue
        body = event.body
        messages = tuple(Message(role, content) for role, content in body["turns"])
        flags = tuple(body.get("cut", ()))
        item = Item(event.item, messages, tuple(body["answers"]), tuple(body["by"]), body["gold"], flags)
        if cut:
            key = prompt_key(messages)
            both = zip(flags or (False,) * len(item.answers), item.answers, strict=True)
            item = replace(item, cut=tuple(flag or (key, text) in cut for flag, text in both))
        items[item.key] = item
    return items


def cut_off(events: Iterable[Event]) -> set[tuple[str, str]]:
    """Return (prompt key, text) of every answer that was cut off by the token limit; older stores do not record it."""
    answers = (event for event in events if event.kind == ANSWER)
    return {(event.item, str(event.body["text"])) for event in answers if not event.body.get("finished", True)}


def prompt_key(messages: Sequence[Message]) -> str:
    """Return a hash that identifies a prompt by its turns, ignoring whitespace."""
    turns = [[message.role, " ".join(message.said.split())] for message in messages]
    return _digest(turns)


def alike(first: str, second: str) -> bool:
    """Return whether two answers are equal ignoring whitespace, so that a preference is impossible."""
    return first.split() == second.split()


def sample(prompts: Sequence[Sequence[Message]], sides: Sequence[AnswerSide]) -> Sampled:
    """Make an item for each prompt whose answers, one of each side, are neither empty nor equal."""
    items = []
    same = 0
    empty = 0
    for i, messages in enumerate(prompts):
        answers = [side.answers[i] for side in sides]
        if not all(answer.strip() for answer in answers):
            empty += 1
        elif len(answers) == 2 and alike(*answers):
            same += 1
        else:
            items.append(make_item(messages, answers, [side.name for side in sides]))
    return Sampled(items, same, empty)


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.said] for message in messages]


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
