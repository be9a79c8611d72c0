"""What kind of rows these are, told by their columns, and which column plays which part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.guess import guess, has_label, unguessed
from tunesmith.data.kinds import (
    are_shares,
    are_turns,
    is_answer,
    is_dialogue,
    is_label,
    is_open,
    is_text,
    is_thumb,
    label_items,
    listed,
    may_be_text,
)
from tunesmith.data.rows import Row, columns_of, file_of
from tunesmith.data.unclear import BOTH_READ, nameless, unjudged
from tunesmith.errors import DataError, UnsettledError

LOOKED_AT = 200
# Of more labels than these hardly any come again where they are names or sentences.
FEW, CLASSES = 20, 0.8
ENOUGH = 0.9

DIALOGUES = ("messages", "conversations", "conversation", "dialogue")
SYSTEMS = ("system", "system_prompt")
INPUTS = ("input", "context", "passage")
TOOLS = ("tools", "functions")
ASKED = ("prompt", "question", "instruction", "query", "input")
THUMBS = ("label", "feedback", "thumb", "thumbs", "vote", "rating", "kto_tag", "desirable", "liked")
ANSWERS = ("output", "response", "completion", "answer")
PAIRS = (
    *(("prompt", answer) for answer in ("completion", "response", "answer")),
    ("question", "answer"),
    ("question", "response"),
    ("prompt", "output"),
    ("input", "output"),
    ("source", "target"),
    ("document", "summary"),
)
DOCUMENTS = ("text", "content")
TEXTS = ("text", "sentence", "review", "content", "body", "comment", "message", "tweet", "title", "headline")
LABELS = ("label", "labels", "category", "class", "sentiment", "stance", "target", "intent", "topic", "tags")

# Two columns of these names hold one text in two languages.
LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip

EXPLICIT = (
    "{kind: classify, text: COLUMN, label: COLUMN}",
    "{kind: instruct, prompt: COLUMN, answer: COLUMN}",
    "{kind: preference, prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}",
    "{kind: domain, text: COLUMN}",
)
PARTS = {
    "system": "system turn",
    "prompt": "user turn",
    "input": "user turn",
    "history": "earlier turns",
    "answer": "assistant turn",
    "messages": "turns by role and content",
    "conversations": "turns by from and value",
    "tools": "what the assistant may call",
    "chosen": "preferred answer",
    "rejected": "other answer",
    "margin": "by how much it is better",
    "text": "what is read",
    "label": "what is learned",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A known shape of rows: the objective it serves, and our word for a part -> the file's column."""

    name: str
    objective: str
    columns: Mapping[str, str]

    def explain(self) -> str:
        """One line that shows the mapping, for the user to check."""
        by_part: dict[str, list[str]] = {}
        for word, column in self.columns.items():
            by_part.setdefault(PARTS[word], []).append(column)
        parts = (f"{'+'.join(columns)} -> {part}" for part, columns in by_part.items())
        return f"detected {self.name}: {', '.join(parts)}"


def detect(rows: Sequence[Row], *, learned: bool = True) -> Format:
    """The most specific format that at least 90 % of the first 200 rows have; unclear rows are refused.

    Where answers are not `learned`, marks on them do not matter.
    """
    sample = _Sample(rows[:LOOKED_AT])
    found = next(filter(None, (look(sample) for look in DETECTORS)), None)
    if found is not None:
        if learned and found.objective == "instruct" and (why := unjudged(rows, read=found.columns.values())):
            raise UnsettledError(why)
        return found
    if guessed := guess(rows):
        cure = f"`tunesmith init` writes a recipe by this guess, and others take it as {guessed.change()}"
    elif why := unguessed(rows) or nameless(rows):
        raise DataError(why)
    else:
        cure = "write in the recipe which is which, as objective: " + " or ".join(EXPLICIT)
    raise DataError(f"{file_of(rows)}: no known format has the columns {columns_of(rows)}{_odd(sample)}; {cure}")


def by_word(rows: Sequence[Row]) -> dict[str, str]:
    """Word in small letters -> the column so called; of `Text` and `text` the latter is what is meant."""
    columns = [name for name in columns_of(rows) if name.strip()]
    exact = {name: name for name in columns if name == name.strip().lower()}
    return {name.strip().lower(): name for name in columns} | exact


class _Sample:
    """The first rows, asked for columns by lower-case name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.names = by_word(rows)

    def column(self, names: Sequence[str], holds: Callable[[object], bool]) -> str | None:
        """The first of these columns that holds such values in enough rows."""
        present = (self.names[name] for name in names if name in self.names)
        return next((column for column in present if self.share(column, holds) >= ENOUGH), None)

    def share(self, column: str, holds: Callable[[object], bool]) -> float:
        """The share of rows whose value in this column is of the kind."""
        return sum(holds(value) for value in self.values(column)) / max(1, len(self.rows))

    def values(self, column: str) -> Iterator[object]:
        """What each row has in this column; None where it has nothing."""
        return (row.fields.get(column) for row in self.rows)

    def repeats(self, column: str) -> bool:
        """Whether the values, or what lists of them hold, come again: names and sentences are no classes."""
        found = [str(item) for value in self.values(column) for item in label_items(value)]
        return len(found) < FEW or len(set(found)) <= CLASSES * len(found)

    def settles(self, answer: str, label: str) -> bool:
        """Whether a few answers come again and each always has the same label, which then says what they say."""
        both = Counter(zip(map(str, self.values(answer)), map(str, self.values(label)), strict=True))
        answers = {said for said, _ in both}
        return len(both) == len(answers) and 2 <= len(answers) <= len(self.rows) / FEW

    def about(self, *taken: str) -> str | None:
        """The column of what a question is about: texts, or lists and objects, which the parser refuses by name."""
        names = [name for name in INPUTS if self.names.get(name) not in taken]
        more = (self.names[name] for name in names if name in self.names)
        nested = (column for column in more if any(isinstance(one, list | dict) and one for one in self.values(column)))
        return self.column(names, may_be_text) or next(nested, None)

    def history(self) -> dict[str, str]:
        """The column of what was said before: lists, which the parser refuses by name where they are no exchanges."""
        column = self.names.get("history")
        return {"history": column} if column and any(map(listed, self.values(column))) else {}

    def optional(self, **parts: Sequence[str]) -> dict[str, str]:
        """Parts that may be blank in most rows: a column of such a name is enough."""
        found = {part: [self.names[name] for name in names if name in self.names] for part, names in parts.items()}
        return {part: columns[0] for part, columns in found.items() if columns}


def _odd(sample: _Sample) -> str:
    """The first value that keeps columns of known names from being read as texts and labels; nothing without one."""
    for names, holds, kind in (
        (DIALOGUES, is_dialogue, "turns"),
        (TEXTS, is_text, "text"),
        (LABELS, is_label, "label"),
        (ANSWERS, is_answer, "text"),
    ):
        for column in (sample.names[name] for name in names if name in sample.names):
            for row in sample.rows:
                if not holds(row.fields.get(column)):
                    value = row.fields.get(column)
                    number = isinstance(value, int | float) and math.isfinite(value)
                    what = "fraction" if kind == "label" else "number"
                    cure = f" (a {what} is no {kind}: write it as a text)" if number else ""
                    return f", and {row.where} has no {kind} in {column!r}: {str(value)[:40]}{cure}"
    return ""


def _preference(sample: _Sample) -> Format | None:
    named = [sample.names[side] for side in ("chosen", "rejected") if side in sample.names]
    if len(named) < 2:
        return None
    for column in named:
        if sample.share(column, is_answer) < ENOUGH:
            odd = next(row for row in sample.rows if not is_answer(row.fields.get(column)))
            found = f"{column!r} holds {str(odd.fields.get(column))[:40]!r}, no answer"
            raise UnsettledError(f"{odd.where}: {found}; write chosen and rejected as texts or as turns in every row")
    columns = {"chosen": named[0], "rejected": named[1], **sample.optional(system=SYSTEMS, margin=["margin"])}
    # Without a column of its own the prompt is what the two answers begin with.
    return Format("preference", "preference", {**_asked(sample), **columns})


def _asked(sample: _Sample) -> dict[str, str]:
    """The columns of what was asked, as far as answers that were judged have one; a chat must wait for them."""
    prompt = sample.column(ASKED, is_answer) or sample.column(DIALOGUES, is_open)
    if prompt is None:
        return {}
    return {"prompt": prompt, **({"input": about} if (about := sample.about(prompt)) else {}), **sample.history()}


def _thumbs(sample: _Sample) -> Format | None:
    label = sample.column(THUMBS, is_thumb)
    if label is None:
        return None
    asked, answer = _asked(sample), sample.column(ANSWERS, is_answer)
    chat = sample.column(DIALOGUES, is_dialogue)
    if asked and answer and not sample.settles(answer, label):
        columns = {**asked, "answer": answer}
    elif chat and not answer:
        columns = {"messages" if sample.column([chat.strip().lower()], are_turns) else "conversations": chat}
    else:
        return None
    return Format("thumbs", "preference", {**sample.optional(system=SYSTEMS), **columns, "label": label})


def _messages(sample: _Sample) -> Format | None:
    column = sample.column(DIALOGUES, are_turns)
    if column is None:
        return None
    return Format("messages", "instruct", {"messages": column, **sample.optional(system=SYSTEMS, tools=TOOLS)})


def _sharegpt(sample: _Sample) -> Format | None:
    column = sample.column(DIALOGUES, are_shares)
    if column is None:
        return None
    extra = sample.optional(system=SYSTEMS, tools=TOOLS)
    return Format("sharegpt", "instruct", {"conversations": column, **extra})


def _alpaca(sample: _Sample) -> Format | None:
    prompt, answer = sample.column(["instruction"], is_text), sample.column(ANSWERS, is_text)
    if prompt is None or answer is None:
        return None
    extra = sample.optional(input=INPUTS, system=SYSTEMS, tools=TOOLS)
    return Format("alpaca", "instruct", {"prompt": prompt, **extra, **sample.history(), "answer": answer})


def _prompt_completion(sample: _Sample) -> Format | None:
    for prompt_name, answer_name in PAIRS:
        prompt, answer = sample.column([prompt_name], is_answer), sample.column([answer_name], is_answer)
        if prompt is None or answer is None:
            continue
        extra = sample.optional(system=SYSTEMS, tools=TOOLS) | sample.history()
        given = {"input": about} if (about := sample.about(prompt, answer)) else {}
        return Format("prompt_completion", "instruct", {**extra, "prompt": prompt, **given, "answer": answer})
    return None


def _translation(sample: _Sample) -> Format | None:
    found = [column for name in sample.names if name in LANGUAGES and (column := sample.column([name], is_text))]
    return Format("translation", "instruct", {"prompt": found[0], "answer": found[1]}) if len(found) == 2 else None


def _text_label(sample: _Sample) -> Format | None:
    text = sample.column(TEXTS, is_text)
    label = next((name for name in LABELS if (at := sample.column([name], is_label)) and sample.repeats(at)), None)
    if text is None or label is None or any(text.lower() in pair <= sample.names.keys() for pair in BOTH_READ):
        return None
    return Format("text_label", "classify", {"text": text, "label": sample.names[label]})


def _text(sample: _Sample) -> Format | None:
    text = sample.column(DOCUMENTS, is_text)
    # Next to a column named like a label or an answer, text alone would be a guess.
    other = sample.optional(other=[*LABELS, *ANSWERS, "prompt", "question", "summary"]) or has_label(sample.rows)
    return None if text is None or other else Format("text", "domain", {"text": text})


DETECTORS: tuple[Callable[[_Sample], Format | None], ...] = (
    _preference,
    _thumbs,
    _messages,
    _sharegpt,
    _alpaca,
    _prompt_completion,
    _translation,
    _text_label,
    _text,
)
