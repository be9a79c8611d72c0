"""What kind of rows these are, told by their columns, and which column plays which part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.columns import LONGEST_LABEL
from tunesmith.data.guess import guess, has_label
from tunesmith.data.pairs import GOOD
from tunesmith.data.rows import Row, as_word, columns_of, file_of
from tunesmith.data.unclear import nameless, unclear, unjudged
from tunesmith.errors import DataError

LOOKED_AT = 200
# Of more labels than these hardly any come again where they are names or sentences.
FEW, CLASSES = 20, 0.8
ENOUGH = 0.9

DIALOGUES = ("messages", "conversations", "conversation", "dialogue")
SYSTEMS = ("system", "system_prompt")
INPUTS = ("input", "context", "passage")
THUMBS = ("label", "feedback", "thumb", "thumbs", "vote", "rating")
ANSWERS = ("output", "response", "completion", "answer")
PAIRS = (
    *(("prompt", answer) for answer in ("completion", "response", "answer")),
    ("question", "answer"),
    ("question", "response"),
    ("input", "output"),
    ("source", "target"),
    ("document", "summary"),
)
DOCUMENTS = ("text", "content")
TEXTS = ("text", "sentence", "review", "content", "body", "comment", "message", "tweet", "title", "headline")
LABELS = ("label", "labels", "category", "class", "sentiment", "target", "intent", "topic", "tags")

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


def detect(rows: Sequence[Row]) -> Format:
    """The most specific format that at least 90 % of the first 200 rows have; unclear rows are refused."""
    sample = _Sample(rows[:LOOKED_AT])
    for look in DETECTORS:
        found = look(sample)
        if found is not None:
            return found
    if guessed := guess(rows):
        cure = f"`tunesmith init` writes a recipe by this guess, and others take it as {guessed.change()}"
    elif why := unclear(rows) or (sample.optional(answer=ANSWERS) and unjudged(rows)) or nameless(rows):
        raise DataError(why)
    else:
        cure = "write in the recipe which is which, as objective: " + " or ".join(EXPLICIT)
    raise DataError(f"{file_of(rows)}: no known format has the columns {columns_of(rows)}{_odd(sample)}; {cure}")


class _Sample:
    """The first rows, asked for columns by lower-case name."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.names = {name.strip().lower(): name for name in columns_of(rows) if name.strip()}

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
        found = [str(item) for value in self.values(column) for item in (value if isinstance(value, list) else [value])]
        return len(found) < FEW or len(set(found)) <= CLASSES * len(found)

    def optional(self, **parts: Sequence[str]) -> dict[str, str]:
        """Parts that may be blank in most rows: a column of such a name is enough."""
        found = {part: [self.names[name] for name in names if name in self.names] for part, names in parts.items()}
        return {part: columns[0] for part, columns in found.items() if columns}


def _odd(sample: _Sample) -> str:
    """The first value that keeps columns of known names from being read as texts and labels; nothing without one."""
    for names, holds, kind in (
        (DIALOGUES, _is_dialogue, "turns"),
        (TEXTS, _is_text, "text"),
        (LABELS, _is_label, "label"),
    ):
        for column in (sample.names[name] for name in names if name in sample.names):
            for row in sample.rows:
                if not holds(row.fields.get(column)):
                    return f", and {row.where} has no {kind} in {column!r}: {str(row.fields.get(column))[:40]}"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_turns(value: object, *, role: str = "role", content: str = "content") -> bool:
    return isinstance(value, list) and bool(value) and all(_is_turn(turn, role, content) for turn in value)


def _is_turn(turn: object, role: str, content: str) -> bool:
    return isinstance(turn, dict) and role in turn and content in turn


def _is_dialogue(value: object) -> bool:
    return _are_turns(value) or _are_shares(value)


def _are_shares(value: object) -> bool:
    return _are_turns(value, role="from", content="value")


def _is_answer(value: object) -> bool:
    return _is_text(value) or _are_turns(value)


def _is_thumb(value: object) -> bool:
    # A csv has no truth values, and 0/1 beside a prompt and an answer are votes too: trained on as plain
    # answers they would teach the bad ones.
    return (as_word(value) or "").strip().lower() in GOOD


def _is_label(value: object) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, list) and _is_label(item) for item in value)
    word = as_word(value)
    return word is not None and 0 < len(word.strip()) <= LONGEST_LABEL


def _preference(sample: _Sample) -> Format | None:
    chosen = sample.column(["chosen"], _is_answer)
    rejected = sample.column(["rejected"], _is_answer)
    if chosen is None or rejected is None:
        return None
    # Without a column of its own the prompt is what the two answers begin with.
    prompt = sample.column(["prompt", "question", "instruction"], _is_answer)
    columns = {"chosen": chosen, "rejected": rejected, **sample.optional(system=SYSTEMS, margin=["margin"])}
    return Format("preference", "preference", {"prompt": prompt, **columns} if prompt else columns)


def _thumbs(sample: _Sample) -> Format | None:
    label = sample.column(THUMBS, _is_thumb)
    prompt = sample.column(["prompt", "question"], _is_answer)
    answer = sample.column(["completion", "response", "answer"], _is_answer)
    if label is None or prompt is None or answer is None:
        return None
    columns = {"prompt": prompt, "answer": answer, "label": label}
    return Format("thumbs", "preference", {**sample.optional(system=SYSTEMS), **columns})


def _messages(sample: _Sample) -> Format | None:
    column = sample.column(DIALOGUES, _are_turns)
    if column is None:
        return None
    return Format("messages", "instruct", {"messages": column, **sample.optional(system=SYSTEMS, tools=["tools"])})


def _sharegpt(sample: _Sample) -> Format | None:
    column = sample.column(DIALOGUES, _are_shares)
    if column is None:
        return None
    extra = sample.optional(system=SYSTEMS, tools=["tools"])
    return Format("sharegpt", "instruct", {"conversations": column, **extra})


def _alpaca(sample: _Sample) -> Format | None:
    prompt, answer = sample.column(["instruction"], _is_text), sample.column(ANSWERS, _is_text)
    if prompt is None or answer is None:
        return None
    extra = sample.optional(input=INPUTS, system=SYSTEMS, tools=["tools"])
    return Format("alpaca", "instruct", {"prompt": prompt, **extra, "answer": answer})


def _prompt_completion(sample: _Sample) -> Format | None:
    for prompt_name, answer_name in PAIRS:
        prompt, answer = sample.column([prompt_name], _is_text), sample.column([answer_name], _is_text)
        if prompt is None or answer is None or unjudged(sample.rows):
            continue
        extra = sample.optional(system=SYSTEMS, tools=["tools"])
        beside = sample.column(INPUTS[1:], _is_text)
        given = {"input": beside} if beside and beside not in (prompt, answer) else {}
        return Format("prompt_completion", "instruct", {**extra, "prompt": prompt, **given, "answer": answer})
    return None


def _translation(sample: _Sample) -> Format | None:
    found = [column for name in sample.names if name in LANGUAGES and (column := sample.column([name], _is_text))]
    return Format("translation", "instruct", {"prompt": found[0], "answer": found[1]}) if len(found) == 2 else None


def _text_label(sample: _Sample) -> Format | None:
    text = sample.column(TEXTS, _is_text)
    label = next((name for name in LABELS if (at := sample.column([name], _is_label)) and sample.repeats(at)), None)
    if text is None or label is None:
        return None
    return Format("text_label", "classify", {"text": text, "label": sample.names[label]})


def _text(sample: _Sample) -> Format | None:
    text = sample.column(DOCUMENTS, _is_text)
    # Next to a column named like a label or an answer, text alone would be a guess.
    others = [*LABELS, *ANSWERS, "prompt", "question", "summary"]
    if text is None or sample.optional(other=others) or has_label(sample.rows):
        return None
    return Format("text", "domain", {"text": text})


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
