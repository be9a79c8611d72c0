"""A row as the audit sees it: prompt, answer, and why it is invalid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data.audit.checks.tool_checks import tool_findings
from tunesmith.data.examples.parsers import DIALOGUES, chats, labelled, queries, rated, text_of
from tunesmith.data.examples.preferences import pairs, unpaired_preferences
from tunesmith.data.examples.prompts import rl_prompts
from tunesmith.data.examples.spans import inline, readable, spans_in, tagged, trim
from tunesmith.data.examples.types import Query, Span, TaggedText
from tunesmith.data.examples.usable import blank_role, unusable
from tunesmith.data.readers.row import Row, as_word
from tunesmith.data.schema.accepted import UNANSWERABLE, accepted_answers, is_answer_list
from tunesmith.data.schema.cells import PLUS, cell, flag_of, has_column, label_cell
from tunesmith.data.schema.values import label_items
from tunesmith.data.schema.winner import side as better_side
from tunesmith.data.tokenization.messages import ROLES, Message, joined, separated, turns_in
from tunesmith.data.tokenization.tool_calls import as_words, read_calls
from tunesmith.errors import DataError

# Placeholders for a missing answer. "none", "unknown" and "x" are not listed, because they can be answers.
NO_ANSWER = frozenset([
    "n/a", "null", "nan", "todo", "tbd", "tba", "fixme", "?", "??", "...", "-", "--", ".", "..", "xxx",
    "placeholder", "lorem",
])  # fmt: skip
ANSWERS = ("label", "target", "answer", "chosen", "rejected")  # roles of what is learned
ASKED = ("history", "context", "prompt", "input")
LETTERS = re.compile(r"\w")
CUT_WORD = re.compile(r"[^\W\d_][^\W\d_]")


@dataclass(frozen=True, slots=True)
class View:
    """Prompt and answer of a row."""

    question: str  # text of the prompt
    answer: str  # text of the answer
    labels: tuple[str, ...] = ()  # the labels, if the answer is one
    problem: str = ""  # kind of the finding; empty for a valid row
    why: str = ""  # reason of the finding
    calls: Mapping[str, str] = field(default_factory=dict)  # findings about tool calls, kind -> note
    types: tuple[str, ...] = ()  # of the labels, as they are in the file
    spans: tuple[Span, ...] = ()
    compared: str = ""  # what is compared with the answers to equal prompts; empty: the answer


def view(row: Row, columns: Mapping[str, str], separator: str = "") -> View:
    """Return the view of a row.

    Args:
        row: the row.
        columns: role -> column of its format.
        separator: what separates several labels in a text; empty for none.
    """
    seen = _seen(row, columns, separator)
    if not (skipped := unusable(row, columns)):
        return seen
    learned = blank_role(row, columns) in ("", *ANSWERS)
    return replace(seen, problem="nothing_to_learn" if learned else "empty", why=skipped)


def _seen(row: Row, columns: Mapping[str, str], separator: str) -> View:
    if "label" in columns and "text" in columns:
        return _labelled(row, columns, separator)
    if "target" in columns and "text" in columns:
        return _rated(row, columns)
    if "spans" in columns or "words" in columns:
        return _spanned(row, columns)
    if "query" in columns:
        return _searched(row, columns)
    if "chosen" in columns:
        return _preferred(row, columns)
    if "label" in columns:
        return _thumbed(row, columns)
    if any(part in columns for part in DIALOGUES):
        return _dialogue(row, columns)
    if "answer" in columns:
        return _pair(row, columns)
    if "prompt" in columns:
        return _prompt(row, columns)
    return _plain(row, columns["text"])


def _plain(row: Row, column: str) -> View:
    text = _text(cell(row, column))
    why = _parse_error(row, lambda: text_of(row, column))
    return View(text, "", (), "unreadable", why) if why else View(text, "")


def _prompt(row: Row, columns: Mapping[str, str]) -> View:
    text = _text(cell(row, columns["prompt"]))
    why = _parse_error(row, lambda: rl_prompts([row], columns=columns))
    return View(text, "", (), "unreadable", why) if why else View(text, "")


def _rated(row: Row, columns: Mapping[str, str]) -> View:
    seen = _plain(row, columns["text"])
    if seen.problem:
        return seen
    why = _parse_error(row, lambda: rated([row], text=columns["text"], target=columns["target"]))
    return View(seen.question, "", (), "unreadable", why) if why else seen


def _spanned(row: Row, columns: Mapping[str, str]) -> View:
    if "text" in columns and (seen := _plain(row, columns["text"])).problem:
        return seen
    found: list[TaggedText] = []
    if why := _parse_error(row, lambda: found.extend(tagged([row], columns=columns))):
        return View(_text(cell(row, columns.get("text", ""))), "", (), "unreadable", why)
    text, spans = found[0].text, found[0].spans
    cut = [span for span in spans if any(CUT_WORD.match(text, place - 1) for place in span[:2] if place)]
    written = spans_in(row, columns["spans"], text, of=columns["text"]) if "spans" in columns else list(spans)
    loose = [span for span in written if trim(span, text) != span]
    notes = {"cut_word": readable(cut, text), "span_spaces": readable(loose, text)}
    calls = {kind: note for kind, note in notes.items() if note}
    return View(text, readable(spans, text), compared=inline(spans, text), calls=calls, spans=spans)


def _searched(row: Row, columns: Mapping[str, str]) -> View:
    if "label" in columns:
        return _labelled(row, {"text": columns["query"], "label": columns["label"]})
    if (seen := _plain(row, columns["query"])).problem:
        return seen
    if "relevance" in columns:
        return _graded(row, columns)
    found: list[Query] = []
    if why := _parse_error(row, lambda: found.extend(queries([row], columns=columns))):
        return View(seen.question, "", (), "unreadable", why)
    return View(seen.question, found[0].passage)


def _graded(row: Row, columns: Mapping[str, str]) -> View:
    """Return the view of a query and a passage, whose answer is whether the passage answers the query."""
    seen = _labelled(row, {"text": PLUS.join((columns["query"], columns["passage"])), "label": columns["relevance"]})
    if seen.problem or flag_of(cell(row, columns["relevance"])) is not None:
        return seen
    return replace(seen, problem="unreadable", why=f"column {columns['relevance']!r} must be 1 or 0")


def _labelled(row: Row, columns: Mapping[str, str], separator: str = "") -> View:
    text = _text(cell(row, columns["text"]))
    items = label_items(label_cell(row, columns["label"]), separator)
    labels = tuple((as_word(item) or "").strip() for item in items)
    if why := _parse_error(row, lambda: labelled([row], text=columns["text"], label=columns["label"])):
        return View(text, " ".join(labels), labels, "unreadable", why)
    return View(text, as_answer(labels), labels, types=tuple(type(item).__name__ for item in items))


def as_answer(labels: Iterable[str]) -> str:
    """Join labels to one answer."""
    return " | ".join(sorted(set(labels)))


def _pair(row: Row, columns: Mapping[str, str]) -> View:
    parts = [_text(cell(row, columns[part])) for part in ("system", *ASKED) if part in columns]
    question = "\n".join(filter(None, parts))
    given = cell(row, columns["answer"])
    if "choices" in columns:
        return _checked(row, columns, View(question, as_word(given) or ""))
    if is_answer_list(given, columns["answer"]):
        given = next(iter(accepted_answers(row, columns["answer"])), UNANSWERABLE)
    answer = _without_thoughts(_text(given))
    if isinstance(given, int | float):
        return View(question, "", (), "unreadable", f"the answer is {given!r}, not text")
    seen = _checked(row, columns, View(question, answer))
    seen = seen if seen.problem else _answered(question, answer) or seen
    if "tools" not in columns:
        return seen
    called = {"from": "function_call", "value": given}
    return replace(seen, calls=tool_findings([called], cell(row, columns["tools"])))


def _dialogue(row: Row, columns: Mapping[str, str]) -> View:
    value = cell(row, next(columns[part] for part in DIALOGUES if part in columns))
    turns = _turns(value)
    if not turns:
        return _checked(row, columns, View("", ""))
    roles = [ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower(), "") for turn in turns]
    texts = [_said(turn) for turn in turns]
    last = max((i for i, role in enumerate(roles) if role == "assistant"), default=len(turns))
    system = _text(cell(row, columns["system"])) if "system" in columns else ""
    question = "\n".join(filter(None, [system, *texts[:last]]))
    answer = texts[last] if last < len(turns) else ""
    seen = _checked(row, columns, View(question, answer), fault="wrong_roles")
    if seen.problem:
        return seen
    calls = tool_findings(turns, cell(row, columns.get("tools", "")))
    return replace(_answered(question, answer) or seen, calls=calls)


def _preferred(row: Row, columns: Mapping[str, str]) -> View:
    system, *parts = (_text(cell(row, columns[part])) if part in columns else "" for part in ("system", *ASKED))
    prompt = "\n".join(filter(None, parts))
    if (
        "winner" in columns
        and better_side(cell(row, columns["winner"]), columns["chosen"], columns["rejected"]) == "second"
    ):
        columns = {**columns, "chosen": columns["rejected"], "rejected": columns["chosen"]}
    chosen, rejected = (_text(cell(row, columns[part])) for part in ("chosen", "rejected"))
    # The preference is what is learned, so both answers belong to the prompt, in sorted order.
    question = "\n".join(filter(None, [system, prompt, *sorted((chosen, rejected))]))
    for part in ("chosen", "rejected"):
        if isinstance(given := cell(row, columns[part]), int | float):
            return View(question, chosen, (), "unreadable", f"{part} is {given!r}, not text")
    why = _parse_error(row, lambda: pairs([row], columns=_present(row, columns)))
    return View(question, chosen, (), "unreadable", why) if why else View(question, chosen)


def _thumbed(row: Row, columns: Mapping[str, str]) -> View:
    """View a rated answer: prompt and answer are the input, the rating is the target, as in a run."""
    parts = {
        part: _text(cell(row, columns[part])) for part in ("system", *DIALOGUES, *ASKED, "answer") if part in columns
    }
    question = "\n".join(filter(None, parts.values()))
    try:
        (thumb,) = unpaired_preferences([row], columns=_present(row, columns))
    except DataError as error:
        return View(question, "", (), "unreadable", str(error).removeprefix(f"{row.where}: "))
    return View(question, "good" if thumb.good else "bad")


def _without_thoughts(answer: str) -> str:
    """Return an answer without the block of thoughts in front of it, which may differ between equal answers."""
    return separated(Message("assistant", answer)).content


def _answered(question: str, answer: str) -> View | None:
    """Return the finding for an answer without content; None if it has content."""
    if not answer.strip():
        return View(question, answer, (), "nothing_to_learn", "blank answer")
    if answer.strip().lower() in NO_ANSWER:
        return View(question, answer, (), "nothing_to_learn", f"the answer is {answer.strip()!r}")
    if len(answer) > 20 and answer.strip() == question.strip():
        return View(question, answer, (), "nothing_to_learn", "the answer repeats the question")
    return None


def _checked(row: Row, columns: Mapping[str, str], seen: View, *, fault: str = "unreadable") -> View:
    """Return the view with the parser's error, which would stop a run."""
    why = _parse_error(row, lambda: chats([row], columns=_present(row, columns)))
    return View(seen.question, seen.answer, (), fault, why) if why else seen


def _present(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    return {part: column for part, column in columns.items() if has_column([row], column)}


def _parse_error(row: Row, parse: Callable[[], object]) -> str:
    """Return the parser's error message without the location; empty if the row is valid."""
    try:
        parse()
    except DataError as error:
        return str(error).removeprefix(f"{row.where}: ")
    return ""


def _text(value: object) -> str:
    """Return the text of a cell; of turns, their contents joined."""
    turns = _turns(value)
    if isinstance(value, str) and not turns:
        return value
    items = value if isinstance(value, list) else []
    exchanges = [text for item in items if isinstance(item, list) for text in item]
    return "\n".join(filter(None, [*map(_said, turns), *map(_text, exchanges)]))


def _turns(value: object) -> list[Mapping[str, Any]]:
    """Return the turns of a cell; empty if they cannot be parsed, which the parser reports."""
    try:
        return [turn for turn in turns_in(value, "") if isinstance(turn, Mapping)]
    except DataError:
        return []


def _said(turn: Mapping[str, Any]) -> str:
    """Return the content and calls of a turn, so that answers with different calls differ, without its thoughts."""
    content = joined(turn.get("content", turn.get("value")))
    if isinstance(content, str) and ROLES.get(str(turn.get("role", turn.get("from"))).strip().lower()) == "assistant":
        content = _without_thoughts(content)
    try:
        calls = as_words(read_calls(turn, ""))
    except DataError:  # the parser reports the error
        calls = ""
    return "\n".join(filter(None, [content if isinstance(content, str) else "", calls]))
