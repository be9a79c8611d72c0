"""Detect the format of rows from their columns: the objective they serve and the role of each column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.readers.row import Row, columns_of, file_of
from tunesmith.data.schema.ambiguous import BOTH_READ, nameless, unjudged
from tunesmith.data.schema.guess import Guess, guess, has_label, unguessed
from tunesmith.data.schema.values import (
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
from tunesmith.errors import DataError, UnsettledError

LOOKED_AT = 200
# From FEW values on, a column whose values are mostly distinct (above CLASSES) holds names or sentences, not labels.
FEW = 20
CLASSES = 0.8
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

# Two columns with these names are a translation pair.
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
    "tools": "available tools",
    "chosen": "preferred answer",
    "rejected": "other answer",
    "margin": "preference margin",
    "text": "input text",
    "label": "target",
}


@dataclass(frozen=True, slots=True)
class Format:
    """A known row format.

    Attributes:
        name: name of the format.
        objective: kind of the objective that it serves.
        columns: role -> column of the file.
    """

    name: str
    objective: str
    columns: Mapping[str, str]

    def explain(self) -> str:
        """Return the mapping in one line, for the user to check."""
        by_role: dict[str, list[str]] = {}
        for part, column in self.columns.items():
            by_role.setdefault(PARTS[part], []).append(column)
        mapping = (f"{'+'.join(columns)} -> {role}" for role, columns in by_role.items())
        return f"detected {self.name}: {', '.join(mapping)}"


def detect(rows: Sequence[Row], *, learned: bool = True) -> Format:
    """Detect the most specific format that at least 90 % of the first 200 rows have.

    Args:
        rows: rows of one file.
        learned: whether the answers will be trained on; if not, columns that rate them are ignored.

    Raises:
        DataError: if no format matches; the message has the fix.
        UnsettledError: if the format is known but it is unclear which answers to train on.
    """
    sample = _Sample(rows[:LOOKED_AT])
    match = next(filter(None, (detector(sample) for detector in DETECTORS)), None)
    if match is not None:
        if learned and match.objective == "instruct" and (problem := unjudged(rows, read=match.columns.values())):
            raise UnsettledError(problem)
        return match
    if guessed := guess(rows):
        fix = f"run `tunesmith init` to write a recipe with a guess, or confirm it with {guessed.change()}"
    elif problem := unguessed(rows) or nameless(rows):
        raise DataError(problem)
    else:
        fix = "write the columns in the recipe, as objective: " + " or ".join(EXPLICIT)
    raise DataError(f"{file_of(rows)}: no known format has the columns {columns_of(rows)}{_odd(sample)}; {fix}")


def detect_or_guess(rows: Sequence[Row]) -> Format | Guess:
    """Detect the format, or guess the roles of columns whose names are unknown.

    Args:
        rows: rows of one file.

    Raises:
        DataError: if no format matches and nothing can be guessed.
        UnsettledError: if the format is known but it is unclear which answers to train on.
    """
    try:
        return detect(rows)
    except UnsettledError:
        raise
    except DataError:
        if (guessed := guess(rows)) is None:
            raise
        return guessed


def by_word(rows: Sequence[Row]) -> dict[str, str]:
    """Map lower-case names to columns; of `Text` and `text` the exact one is used.

    A value inside an object is also found by its last name, `text` of `review.text`, if no other column has it.

    Args:
        rows: rows of one file.
    """
    columns = [name for name in columns_of(rows) if name.strip()]
    exact = {name: name for name in columns if name == name.strip().lower()}
    last = Counter(name.rpartition(".")[2].strip().lower() for name in columns)
    inner = {
        word: name for name in columns if "." in name and last[word := name.rpartition(".")[2].strip().lower()] == 1
    }
    return inner | {name.strip().lower(): name for name in columns} | exact


class _Sample:
    """The first rows, with columns accessed by lower-case name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.names = by_word(rows)

    def column(self, names: Sequence[str], holds: Callable[[object], bool]) -> str | None:
        """Return the first of these columns in which at least 90 % of the values satisfy the predicate."""
        present = (self.names[name] for name in names if name in self.names)
        return next((column for column in present if self.share(column, holds) >= ENOUGH), None)

    def share(self, column: str, holds: Callable[[object], bool]) -> float:
        """Return the share of rows whose value in this column satisfies the predicate."""
        return sum(holds(value) for value in self.values(column)) / max(1, len(self.rows))

    def values(self, column: str) -> Iterator[object]:
        """Return the values of a column; None where a row has none."""
        return (row.fields.get(column) for row in self.rows)

    def repeats(self, column: str) -> bool:
        """Return whether values, or items of lists, occur repeatedly; names and sentences do not."""
        items = [str(item) for value in self.values(column) for item in label_items(value)]
        return len(items) < FEW or len(set(items)) <= CLASSES * len(items)

    def settles(self, answer: str, label: str) -> bool:
        """Return whether a few answers repeat, each always with the same label: then the label is not a rating."""
        pairs = set(zip(map(str, self.values(answer)), map(str, self.values(label)), strict=True))
        answers = {text for text, _ in pairs}
        return len(pairs) == len(answers) and 2 <= len(answers) <= len(self.rows) / FEW

    def about(self, *taken: str) -> str | None:
        """Return the context column of a prompt: texts, or lists and objects, which the parser reports."""
        names = [name for name in INPUTS if self.names.get(name) not in taken]
        columns = (self.names[name] for name in names if name in self.names)
        nested = (c for c in columns if any(isinstance(value, list | dict) and value for value in self.values(c)))
        return self.column(names, may_be_text) or next(nested, None)

    def history(self) -> dict[str, str]:
        """Return the column of earlier turns if it has lists; the parser rejects lists that are not exchanges."""
        column = self.names.get("history")
        return {"history": column} if column and any(map(listed, self.values(column))) else {}

    def optional(self, **parts: Sequence[str]) -> dict[str, str]:
        """Return columns that may be blank in most rows: the name alone decides."""
        columns = {
            part: next((self.names[name] for name in names if name in self.names), None)
            for part, names in parts.items()
        }
        return {part: column for part, column in columns.items() if column}


def _odd(sample: _Sample) -> str:
    """Describe the first value that prevents columns with known names from being used; empty if there is none."""
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
                    fix = " (write the number as text)" if number else ""
                    return f", and {row.where} does not have a {kind} in {column!r}: {str(value)[:40]}{fix}"
    return ""


def _preference(sample: _Sample) -> Format | None:
    sides = [sample.names[side] for side in ("chosen", "rejected") if side in sample.names]
    if len(sides) < 2:
        return None
    for column in sides:
        if sample.share(column, is_answer) < ENOUGH:
            row = next(row for row in sample.rows if not is_answer(row.fields.get(column)))
            problem = f"expected an answer in {column!r}, got {str(row.fields.get(column))[:40]!r}"
            raise UnsettledError(f"{row.where}: {problem}; write chosen and rejected as texts or as turns in every row")
    columns = {"chosen": sides[0], "rejected": sides[1], **sample.optional(system=SYSTEMS, margin=["margin"])}
    # Without a prompt column, the prompt is the common beginning of both answers.
    return Format("preference", "preference", {**_asked(sample), **columns})


def _asked(sample: _Sample) -> dict[str, str]:
    """Return the prompt columns of preference rows, as far as there are any; a chat must end with a user turn."""
    prompt = sample.column(ASKED, is_answer) or sample.column(DIALOGUES, is_open)
    if prompt is None:
        return {}
    context = {"input": about} if (about := sample.about(prompt)) else {}
    return {"prompt": prompt, **context, **sample.history()}


def _thumbs(sample: _Sample) -> Format | None:
    label = sample.column(THUMBS, is_thumb)
    if label is None:
        return None
    prompt = _asked(sample)
    answer = sample.column(ANSWERS, is_answer)
    chat = sample.column(DIALOGUES, is_dialogue)
    if prompt and answer and not sample.settles(answer, label):
        columns = {**prompt, "answer": answer}
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
        context = {"input": about} if (about := sample.about(prompt, answer)) else {}
        return Format("prompt_completion", "instruct", {**extra, "prompt": prompt, **context, "answer": answer})
    return None


def _translation(sample: _Sample) -> Format | None:
    texts = [column for name in sample.names if name in LANGUAGES and (column := sample.column([name], is_text))]
    return Format("translation", "instruct", {"prompt": texts[0], "answer": texts[1]}) if len(texts) == 2 else None


def _text_label(sample: _Sample) -> Format | None:
    text = sample.column(TEXTS, is_text)
    labels = ((name, sample.column([name], is_label)) for name in LABELS)
    label = next((name for name, column in labels if column and sample.repeats(column)), None)
    if text is None or label is None or any(text.lower() in pair <= sample.names.keys() for pair in BOTH_READ):
        return None
    return Format("text_label", "classify", {"text": text, "label": sample.names[label]})


def _text(sample: _Sample) -> Format | None:
    text = sample.column(DOCUMENTS, is_text)
    # With a column named like a label or an answer, training on the text alone would be a guess.
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
