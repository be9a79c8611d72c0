"""Votes as rows of the preference objective, and such rows as votes; the conversion is lossless.

A pair is {"prompt", "chosen", "rejected"}, an unpaired preference {"prompt", "completion", "label"}. The prompt is a
text, or a list of turns if there are several; a text that would be parsed as turns is a single turn in a list.
`raters`, `chosen_by`, `rejected_by` and `by` name raters and authors; `chosen_cut`, `rejected_cut` and `cut` mark
answers that were cut off by the token limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.annotation.items import BAD, FIRST, GOOD, OWN, SECOND, Item, alike, make_item
from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import Event
from tunesmith.data.examples.preferences import holds_turns, pairs, unpaired_preferences
from tunesmith.data.readers.row import Row, as_word, columns_of, file_of
from tunesmith.data.schema.formats import Format, detect
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError

PAIRS = "pairs"
THUMBS = "thumbs"
LONGEST_NAME = 200  # characters

# Converts the votes on one item to rows.
RowsOf = Callable[[Item, Sequence[Event]], Iterator[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class VoteRows:
    """Rows of one format made from votes."""

    rows: list[dict[str, Any]]
    undecided: int  # judged items without a row: ties, or equally many votes for both answers


@dataclass(frozen=True, slots=True)
class ImportedVote:
    """A vote read from a file."""

    item: Item
    label: str
    rater: str  # empty where the row names no rater
    where: str  # `file:line` of the row
    text: str = ""  # the answer that the rater wrote, for the label OWN


def pair_rows(items: Mapping[str, Item], votes: VoteState) -> VoteRows:
    """Make one preference pair per item, control items excepted, from the majority of votes.

    An answer that a rater wrote gives further pairs, in which it is chosen over each answer of the item.
    """
    return _rows(items, votes, _pairs_of)


def thumb_rows(items: Mapping[str, Item], votes: VoteState) -> VoteRows:
    """Make unpaired preferences from the majority of votes: the preferred answer is good, the other one bad.

    Both answers are bad if the majority voted so. Control items make no rows.
    """
    return _rows(items, votes, _thumbs_of)


def read_votes(rows: Sequence[Row], *, rater: str, gold: bool = False) -> list[ImportedVote]:
    """Read rows of either format as votes, one for each rater that a row names.

    Args:
        rows: preference pairs or unpaired preferences.
        rater: name used where a row names no rater.
        gold: the rows are control items with the right label.

    Raises:
        DataError: the rows have another format, a row lacks a field, or a pair has equal answers.
    """
    # With the columns of a pair, incomplete rows are errors even where `detect` would choose another format.
    present = columns_of(rows)
    fields = ("prompt", "input", "chosen", "rejected", "system")
    columns: dict[str, str] = {name: name for name in fields if name in present}
    is_pair = {"prompt", "chosen", "rejected"} <= set(columns)
    detected = Format("preference", "preference", columns) if is_pair else detect(rows)
    judged: list[tuple[Item, str]] = []
    if detected.name == "preference":
        for row, pair in zip(rows, pairs(rows, columns=detected.columns), strict=True):
            by = [_author(row, name) for name in ("chosen_by", "rejected_by")]
            item = make_item(pair.prompt, (pair.chosen, pair.rejected), by, gold=FIRST if gold else "", cut=pair.cut)
            judged.append((item, FIRST if item.answers[0] == pair.chosen else SECOND))
    elif detected.name == "thumbs":
        for row, thumb in zip(rows, unpaired_preferences(rows, columns=detected.columns), strict=True):
            label = GOOD if thumb.good else BAD
            by = [_author(row, "by")]
            item = make_item(thumb.prompt, [thumb.answer], by, gold=label if gold else "", cut=[thumb.cut])
            judged.append((item, label))
    else:
        fix = "give prompt, chosen, rejected, or prompt, completion, label (true or false)"
        raise DataError(f"{file_of(rows)}: format {detected.name} contains no judgements; {fix}")
    cast = []
    for (item, label), row in zip(judged, rows, strict=True):
        several = row.fields.get("raters")
        values = [*(several if isinstance(several, list) else [several]), row.fields.get("rater")]
        names = dict.fromkeys(_name(value, row) for value in values if _is_named(value))
        cast += [_cast(row, item, label, name) for name in names or [rater]]
    return _merge_own_answers(cast)


def prompt_of(messages: Sequence[Message]) -> str | list[dict[str, str]]:
    """Convert a prompt to the value of the column `prompt`."""
    if len(messages) == 1 and messages[0].role == "user" and not holds_turns(messages[0].content):
        return messages[0].content
    return [{"role": message.role, "content": message.said} for message in messages]


def answer_of(text: str) -> str | list[dict[str, str]]:
    """Convert an answer to a column value; a text that would be parsed as turns becomes a turn in a list."""
    return [{"role": "assistant", "content": text}] if holds_turns(text) else text


def _rows(items: Mapping[str, Item], votes: VoteState, of: RowsOf) -> VoteRows:
    cast: dict[str, list[Event]] = {}
    for vote in votes.standing():
        if vote.item in items and not items[vote.item].gold:
            cast.setdefault(vote.item, []).append(vote)
    rows: list[dict[str, Any]] = []
    undecided = 0
    for key, given in cast.items():
        item_rows = list(of(items[key], given))
        rows += item_rows
        undecided += not item_rows
    return VoteRows(rows, undecided)


def _decision(given: Sequence[Event]) -> tuple[str, list[str]]:
    """Return the label of most raters and these raters; empty for a tie. OWN votes do not count."""
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
        for index, answer in enumerate(item.answers):
            if not alike(text, answer):
                by = {"chosen_by": vote.rater, "rejected_by": item.by[index]}
                cut = _cut(item, rejected_cut=index)
                sides = {"chosen": answer_of(text), "rejected": answer_of(answer)}
                yield {"prompt": prompt, **sides, "raters": [vote.rater], **by, **cut}


def _thumbs_of(item: Item, given: Sequence[Event]) -> Iterator[dict[str, Any]]:
    prompt, (label, raters) = prompt_of(item.messages), _decision(given)
    written = list(_written(given))
    # Only if all raters wrote an answer: otherwise a single own answer would make an answer that others prefer bad.
    if len(written) == len(given):
        label, raters = BAD, [vote.rater for vote, _ in written]
    verdicts = {FIRST: (True, False), SECOND: (False, True), BAD: (False, False), GOOD: (True, True)}.get(label, ())
    for index, (answer, good) in enumerate(zip(item.answers, verdicts, strict=False)):
        row = {"prompt": prompt, "completion": answer_of(answer), "label": good, "raters": raters}
        yield {**row, "by": item.by[index], **_cut(item, cut=index)}
    for vote, text in written:
        row = {"prompt": prompt, "completion": answer_of(text), "label": True}
        yield {**row, "raters": [vote.rater], "by": vote.rater}


def _cut(item: Item, **columns: int) -> dict[str, bool]:
    """Return {column: True} for each column whose answer (by index) was cut off."""
    return {name: True for name, index in columns.items() if item.cut and item.cut[index]}


def _written(given: Sequence[Event]) -> Iterator[tuple[Event, str]]:
    return ((vote, str(vote.body["text"])) for vote in given if vote.body["label"] == OWN)


def _is_named(value: object) -> bool:
    """Return whether a cell names a rater or model; 0 is a name, as the first number of a data set."""
    return bool(value) or (value == 0 and value is not False)


def _author(row: Row, column: str) -> str:
    """Return the name in a column, empty if there is none."""
    value = row.fields.get(column)
    return _name(value, row) if _is_named(value) else ""


def _name(value: object, row: Row) -> str:
    word = None if isinstance(value, bool) else as_word(value)
    if word is None or len(word) > LONGEST_NAME:
        limit = f"a text of at most {LONGEST_NAME} characters"
        raise DataError(f"{row.where}: invalid name of a rater or model {str(value)[:40]!r}; write {limit}")
    return word.encode("utf-8", "replace").decode()  # a lone surrogate (half an emoji) cannot be stored


def _cast(row: Row, item: Item, label: str, name: str) -> ImportedVote:
    """Return one rater's vote; if the rater wrote the chosen answer, it is an OWN vote on the other answer."""
    if label not in (FIRST, SECOND) or item.gold or not name or _author(row, "chosen_by") != name:
        return ImportedVote(item, label, name, row.where)
    own = (FIRST, SECOND).index(label)
    cut = [item.cut[1 - own]] if item.cut else []
    other = make_item(item.messages, [item.answers[1 - own]], [item.by[1 - own]], cut=cut)
    return ImportedVote(other, OWN, name, row.where, item.answers[own])


def _merge_own_answers(cast: Sequence[ImportedVote]) -> list[ImportedVote]:
    """Merge consecutive OWN votes with the same text, exported as one row per answer, into one vote on both answers."""
    merged: list[ImportedVote] = []
    for vote in cast:
        last = merged[-1] if merged else vote
        same = (vote.rater, vote.text, vote.item.messages) == (last.rater, last.text, last.item.messages)
        if merged and vote.label == last.label == OWN and same and len(last.item.answers) == 1:
            answers = (*last.item.answers, *vote.item.answers)
            by = (*last.item.by, *vote.item.by)
            cut = [any(each.item.cut) for each in (last, vote)]
            merged[-1] = replace(last, item=make_item(vote.item.messages, answers, by, cut=cut))
        else:
            merged.append(vote)
    return merged
