"""Votes as rows of the preference objective, and such rows as votes: nothing stands between the two.

A pair is {"prompt", "chosen", "rejected"}, a thumb {"prompt", "completion", "label"}; the prompt is a text, or a list
of turns where it is more than one, and a text that would be read as turns is a turn in a list. `raters`, `chosen_by`,
`rejected_by` and `by` say whose votes and answers they are, `chosen_cut`, `rejected_cut` and `cut` that an answer was
cut off before it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.examples import Message, Pair, Thumb
from tunesmith.data.formats import Format, detect
from tunesmith.data.pairs import holds_turns, pairs, thumbs
from tunesmith.data.rows import Row, as_word, columns_of, file_of
from tunesmith.errors import DataError
from tunesmith.feedback.items import BAD, FIRST, GOOD, OWN, SECOND, Item, alike, make_item
from tunesmith.feedback.store import Event
from tunesmith.feedback.votes import Votes

PAIRS, THUMBS = "pairs", "thumbs"
LONGEST_NAME = 200


# The rows that the votes on one item make.
RowsOf = Callable[[Item, Sequence[Event]], Iterator[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class VoteRows:
    """Rows of one format, and how many judged items gave none: a tie, or as many for one answer as for another."""

    rows: list[dict[str, Any]]
    undecided: int


@dataclass(frozen=True, slots=True)
class Brought:
    """What one person said about an item in a file; `rater` is empty where the row names nobody."""

    item: Item
    label: str
    rater: str
    where: str
    text: str = ""  # of an own answer


def pair_rows(items: Mapping[str, Item], votes: Votes) -> VoteRows:
    """What most people preferred, a row per item; an answer that somebody wrote is chosen over both that they saw."""
    return _rows(items, votes, _pairs_of)


def thumb_rows(items: Mapping[str, Item], votes: Votes) -> VoteRows:
    """Answers one by one: the better of two is good and the other bad, both are bad where people said so."""
    return _rows(items, votes, _thumbs_of)


def read_votes(rows: Sequence[Row], *, rater: str, gold: bool = False) -> list[Brought]:
    """Rows of either format as votes, one for each person whom a row names; `rater` where it names nobody.

    Raises DataError for rows without a part, and for a pair of equal answers.
    """
    found = _format(rows)
    if found.name == "preference":
        read = [_pair(row, pair, gold) for row, pair in zip(rows, pairs(rows, columns=found.columns), strict=True)]
    elif found.name == "thumbs":
        read = [_thumb(row, thumb, gold) for row, thumb in zip(rows, thumbs(rows, columns=found.columns), strict=True)]
    else:
        cure = "give prompt, chosen, rejected, or prompt, completion, label (true or false)"
        raise DataError(f"{file_of(rows)}: rows of the format {found.name}, in which nothing was judged; {cure}")
    cast = [
        _cast(row, item, label, name)
        for (item, label), row in zip(read, rows, strict=True)
        for name in _raters(row, rater)
    ]
    return _own_together(cast)


def _format(rows: Sequence[Row]) -> Format:
    """What the rows are; where the columns of a pair are there, a row that lacks one is told, however few there are."""
    there = columns_of(rows)
    parts = [part for part in ("prompt", "input", "chosen", "rejected", "system") if part in there]
    pair = {"prompt", "chosen", "rejected"} <= set(parts)
    return Format("preference", "preference", {part: part for part in parts}) if pair else detect(rows)


def prompt_of(messages: Sequence[Message]) -> str | list[dict[str, str]]:
    """The prompt as a row holds it."""
    if len(messages) == 1 and messages[0].role == "user" and not holds_turns(messages[0].content):
        return messages[0].content
    return [{"role": message.role, "content": message.said} for message in messages]


def answer_of(text: str) -> str | list[dict[str, str]]:
    """An answer as a row holds it: models also write what would be read as turns, and it is to come back as it was."""
    return [{"role": "assistant", "content": text}] if holds_turns(text) else text


def _rows(items: Mapping[str, Item], votes: Votes, of: RowsOf) -> VoteRows:
    cast: dict[str, list[Event]] = {}
    for vote in votes.standing():
        if vote.item in items and not items[vote.item].gold:
            cast.setdefault(vote.item, []).append(vote)
    rows, undecided = list[dict[str, Any]](), 0
    for key, given in cast.items():
        found = list(of(items[key], given))
        rows += found
        undecided += not found
    return VoteRows(rows, undecided)


def _decision(given: Sequence[Event]) -> tuple[str, list[str]]:
    """What most people said about the answers they saw, and who said so; empty for a draw."""
    labels = {vote.rater: str(vote.body["label"]) for vote in given if vote.body["label"] != OWN}
    ranked = Counter(labels.values()).most_common(2)
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return "", []
    return ranked[0][0], [rater for rater, label in labels.items() if label == ranked[0][0]]


def _pairs_of(item: Item, given: Sequence[Event]) -> Iterator[dict[str, Any]]:
    prompt = prompt_of(item.messages)
    label, raters = _decision(given)
    if label in (FIRST, SECOND):
        won = (FIRST, SECOND).index(label)
        chosen, rejected = answer_of(item.answers[won]), answer_of(item.answers[1 - won])
        by = {"chosen_by": item.by[won], "rejected_by": item.by[1 - won]}
        cut = _cut(item, chosen_cut=won, rejected_cut=1 - won)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "raters": raters, **by, **cut}
    for vote, text in _written(given):
        for place, answer in enumerate(item.answers):
            if not alike(text, answer):
                by = {"chosen_by": vote.rater, "rejected_by": item.by[place]}
                cut = _cut(item, rejected_cut=place)
                sides = {"chosen": answer_of(text), "rejected": answer_of(answer)}
                yield {"prompt": prompt, **sides, "raters": [vote.rater], **by, **cut}


def _thumbs_of(item: Item, given: Sequence[Event]) -> Iterator[dict[str, Any]]:
    prompt, (label, raters) = prompt_of(item.messages), _decision(given)
    written = list(_written(given))
    if len(written) == len(given):  # an answer that somebody else voted for is not bad because one person wrote another
        label, raters = BAD, [vote.rater for vote, _ in written]
    verdicts = {FIRST: (True, False), SECOND: (False, True), BAD: (False, False), GOOD: (True, True)}.get(label, ())
    for place, (answer, good) in enumerate(zip(item.answers, verdicts, strict=False)):
        row = {"prompt": prompt, "completion": answer_of(answer), "label": good, "raters": raters}
        yield {**row, "by": item.by[place], **_cut(item, cut=place)}
    for vote, text in written:
        row = {"prompt": prompt, "completion": answer_of(text), "label": True}
        yield {**row, "raters": [vote.rater], "by": vote.rater}


def _cut(item: Item, **places: int) -> dict[str, bool]:
    """True under the name of each answer that was cut off, and nothing of the others."""
    return {name: True for name, place in places.items() if item.cut and item.cut[place]}


def _written(given: Sequence[Event]) -> Iterator[tuple[Event, str]]:
    return ((vote, str(vote.body["text"])) for vote in given if vote.body["label"] == OWN)


def _pair(row: Row, pair: Pair, gold: bool) -> tuple[Item, str]:
    by = [_name(row.fields.get(name) or "", row) for name in ("chosen_by", "rejected_by")]
    item = make_item(pair.prompt, (pair.chosen, pair.rejected), by, gold=FIRST if gold else "", cut=pair.cut)
    return item, FIRST if item.answers[0] == pair.chosen else SECOND


def _thumb(row: Row, thumb: Thumb, gold: bool) -> tuple[Item, str]:
    label = GOOD if thumb.good else BAD
    by = [_name(row.fields.get("by") or "", row)]
    return make_item(thumb.prompt, [thumb.answer], by, gold=label if gold else "", cut=[thumb.cut]), label


def _raters(row: Row, usual: str) -> list[str]:
    """Everybody whom a row names."""
    several, one = row.fields.get("raters"), row.fields.get("rater")
    names = [*(several if isinstance(several, list) else [several]), one]
    return list(dict.fromkeys(_name(name, row) for name in names if name)) or [usual]


def _name(value: object, row: Row) -> str:
    """A name as text; half an emoji in it stands nowhere. Raises DataError for what names nobody."""
    word = None if isinstance(value, bool) else as_word(value)
    if word is None or len(word) > LONGEST_NAME:
        raise DataError(f"{row.where}: {str(value)[:40]!r} is no name of a rater or a model; write a text")
    return word.encode("utf-8", "replace").decode()


def _cast(row: Row, item: Item, label: str, name: str) -> Brought:
    """One person's vote; an answer that the person wrote is said of the other answer alone."""
    if label not in (FIRST, SECOND) or item.gold or not name or row.fields.get("chosen_by") != name:
        return Brought(item, label, name, row.where)
    own = (FIRST, SECOND).index(label)
    cut = [item.cut[1 - own]] if item.cut else []
    seen = make_item(item.messages, [item.answers[1 - own]], [item.by[1 - own]], cut=cut)
    return Brought(seen, OWN, name, row.where, item.answers[own])


def _own_together(cast: Sequence[Brought]) -> list[Brought]:
    """The votes with an own answer in two rows, against each of two answers, as the one vote that it was."""
    found = list[Brought]()
    for one in cast:
        before = found[-1] if found else one
        same = (one.rater, one.text, one.item.messages) == (before.rater, before.text, before.item.messages)
        if found and one.label == before.label == OWN and same and len(before.item.answers) == 1:
            answers, by = (*before.item.answers, *one.item.answers), (*before.item.by, *one.item.by)
            cut = [any(each.item.cut) for each in (before, one)]
            found[-1] = replace(before, item=make_item(one.item.messages, answers, by, cut=cut))
        else:
            found.append(one)
    return found
