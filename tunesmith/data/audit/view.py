"""A row as the audit sees it: what is asked, what is answered, and what keeps it from being a row at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.calls import as_words, read_calls
from tunesmith.data.examples import DIALOGUES, chats, labelled, text_of
from tunesmith.data.kinds import label_items
from tunesmith.data.pairs import pairs, thumbs
from tunesmith.data.rows import Row, as_word
from tunesmith.data.turns import ROLES, joined, turns_in
from tunesmith.errors import DataError

# What is written where an answer is missing, and hardly ever is one: "none", "unknown" and "x" may be.
NO_ANSWER = frozenset(
    [
        "n/a",
        "null",
        "nan",
        "todo",
        "tbd",
        "tba",
        "fixme",
        "?",
        "??",
        "...",
        "-",
        "--",
        ".",
        "..",
        "xxx",
        "placeholder",
        "lorem",
    ]
)
ASKED = ("history", "prompt", "input")
LETTERS = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class View:
    """What is asked and answered; `labels` where the answer is a label; `fault` is a kind and `why` its reason."""

    question: str
    answer: str
    labels: tuple[str, ...] = ()
    fault: str = ""
    why: str = ""


def view(row: Row, columns: Mapping[str, str]) -> View:
    """The row by its format's columns: our word for a part -> the file's column."""
    if "label" in columns and "text" in columns:
        return _labelled(row, columns)
    if "chosen" in columns:
        return _preferred(row, columns)
    if "label" in columns:
        return _thumbed(row, columns)
    if any(part in columns for part in DIALOGUES):
        return _dialogue(row, columns)
    if "answer" in columns:
        return _pair(row, columns)
    return _plain(row, columns["text"])


def _plain(row: Row, column: str) -> View:
    text = _text(row.fields.get(column))
    if not text.strip():
        return View(text, "", (), "empty", "blank")
    try:
        text_of(row, column)
    except DataError as error:
        return View(text, "", (), "unreadable", _why(row, error))
    return View(text, "")


def _labelled(row: Row, columns: Mapping[str, str]) -> View:
    text, value = _text(row.fields.get(columns["text"])), row.fields.get(columns["label"])
    items = label_items(value)
    labels = tuple((as_word(item) or "").strip() for item in items)
    if not text.strip():
        return View(text, " ".join(labels), labels, "empty", "blank text")
    if any(item is None or (isinstance(item, str) and not item.strip()) for item in items):
        return View(text, "", (), "nothing_to_learn", "no label")
    try:
        labelled([row], text=columns["text"], label=columns["label"])
    except DataError as error:
        return View(text, " ".join(labels), labels, "unreadable", _why(row, error))
    return View(text, as_answer(labels), labels)


def as_answer(labels: Iterable[str]) -> str:
    """Labels as the one answer that they are together."""
    return " | ".join(sorted(set(labels)))


def _pair(row: Row, columns: Mapping[str, str]) -> View:
    parts = [_text(row.fields.get(columns[part])) for part in ("system", *ASKED) if part in columns]
    question = "\n".join(filter(None, parts))
    answer = _text(given := row.fields.get(columns["answer"]))
    if isinstance(given, int | float):
        return View(question, "", (), "unreadable", f"the answer is {given!r}, which is no text")
    if not _text(row.fields.get(columns["prompt"])).strip():
        return View(question, answer, (), "empty", "blank prompt")
    return _answered(question, answer) or _checked(row, columns, View(question, answer))


def _dialogue(row: Row, columns: Mapping[str, str]) -> View:
    value = row.fields.get(next(columns[part] for part in DIALOGUES if part in columns))
    turns = _turns(value)
    if not turns:
        return _checked(row, columns, View("", "")) if value else View("", "", (), "empty", "no turns")
    roles = [ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower(), "") for turn in turns]
    said = [_said(turn) for turn in turns]
    last = max((i for i, role in enumerate(roles) if role == "assistant"), default=len(turns))
    system = _text(row.fields.get(columns["system"])) if "system" in columns else ""
    question = "\n".join(filter(None, [system, *said[:last]]))
    answer = said[last] if last < len(turns) else ""
    seen = _checked(row, columns, View(question, answer), fault="wrong_roles")
    if seen.fault:
        return seen
    return _answered(question, answer) or seen


def _preferred(row: Row, columns: Mapping[str, str]) -> View:
    system, *parts = (_text(row.fields.get(columns[part])) if part in columns else "" for part in ("system", *ASKED))
    asked = "\n".join(filter(None, parts))
    chosen, rejected = (_text(row.fields.get(columns[part])) for part in ("chosen", "rejected"))
    # The same two answers are the same question, whichever was preferred.
    question = "\n".join(filter(None, [system, asked, *sorted((chosen, rejected))]))
    for part in ("chosen", "rejected"):
        if isinstance(given := row.fields.get(columns[part]), int | float):
            return View(question, chosen, (), "unreadable", f"{part} is {given!r}, which is no text")
    if not chosen.strip() or not rejected.strip():
        return View(question, chosen, (), "empty", "one of the two answers is blank")
    if "prompt" in columns and not asked.strip():
        return View(question, chosen, (), "empty", "blank prompt")
    if " ".join(chosen.split()) == " ".join(rejected.split()):
        return View(question, chosen, (), "nothing_to_learn", "both answers are the same")
    try:
        pairs([row], columns={part: column for part, column in columns.items() if column in row.fields})
    except DataError as error:
        return View(question, chosen, (), "unreadable", _why(row, error))
    return View(question, chosen)


def _thumbed(row: Row, columns: Mapping[str, str]) -> View:
    """An answer with a thumb: both of them are what is asked, as in a run, and the thumb is what is learned."""
    parts = {
        part: _text(row.fields.get(columns[part]))
        for part in ("system", *DIALOGUES, *ASKED, "answer")
        if part in columns
    }
    question = "\n".join(filter(None, parts.values()))
    if not all(text.strip() for part, text in parts.items() if part not in ("system", "input", "history")):
        return View(question, "", (), "empty", "blank prompt or answer")
    if row.fields.get(columns["label"]) in (None, ""):
        return View(question, "", (), "nothing_to_learn", "no thumb")
    try:
        (read,) = thumbs([row], columns={part: column for part, column in columns.items() if column in row.fields})
    except DataError as error:
        return View(question, "", (), "unreadable", _why(row, error))
    return View(question, "good" if read.good else "bad")


def _answered(question: str, answer: str) -> View | None:
    """The fault of an answer that teaches nothing; None for one that does."""
    if not answer.strip():
        return View(question, answer, (), "nothing_to_learn", "blank answer")
    if answer.strip().lower() in NO_ANSWER:
        return View(question, answer, (), "nothing_to_learn", f"the answer is {answer.strip()!r}")
    if len(answer) > 20 and answer.strip() == question.strip():
        return View(question, answer, (), "nothing_to_learn", "the answer repeats the question")
    return None


def _checked(row: Row, columns: Mapping[str, str], seen: View, *, fault: str = "unreadable") -> View:
    """The view, with the fault that would end a run if the parser finds one."""
    try:
        chats([row], columns={part: column for part, column in columns.items() if column in row.fields})
    except DataError as error:
        why = _why(row, error)
        kind = "nothing_to_learn" if "empty answer" in why or "no assistant turn with" in why else fault
        return View(seen.question, seen.answer, (), kind, why)
    return seen


def _why(row: Row, error: DataError) -> str:
    """What the parser says of a row, without its place."""
    return str(error).removeprefix(f"{row.where}: ")


def _text(value: object) -> str:
    """The text of a cell; turns as their contents, one after the other."""
    turns = _turns(value)
    if isinstance(value, str) and not turns:
        return value
    exchanges = [text for one in value if isinstance(one, list) for text in one] if isinstance(value, list) else []
    return "\n".join(filter(None, [*map(_said, turns), *map(_text, exchanges)]))


def _turns(value: object) -> list[Mapping[str, Any]]:
    """The turns of a cell; none where the parser cannot read them, which says why."""
    try:
        return [turn for turn in turns_in(value, "") if isinstance(turn, Mapping)]
    except DataError:
        return []


def _said(turn: Mapping[str, Any]) -> str:
    """What a turn says and calls: two answers that call something else are two answers."""
    content = joined(turn.get("content", turn.get("value")))
    try:
        calls = as_words(read_calls(turn, ""))
    except DataError:  # the parser says what is wrong with them
        calls = ""
    return "\n".join(filter(None, [content if isinstance(content, str) else "", calls]))
