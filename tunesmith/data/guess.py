"""Which columns of rows with unknown headers may play which part: a guess by names and values, for people to check."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

import yaml

from tunesmith.data.rows import Row, as_word, columns_of, file_of

# Words in a header that tell a part, beside those that need no guess.
TEXT_WORDS = (
    "text", "review", "comment", "body", "message", "description", "content", "note", "feedback", "sentence", "post",
    "tweet", "mail", "email", "subject", "title", "ticket", "complaint", "remark", "opinion",
)  # fmt: skip
LABEL_WORDS = (
    "label", "labels", "class", "category", "sentiment", "rating", "stars", "score", "type", "intent", "topic", "tag",
    "verdict", "status", "mood", "urgency", "priority", "department", "team", "queue", "emotion", "outcome",
)  # fmt: skip
PROMPT_WORDS = (
    "prompt", "question", "query", "request", "ask", "q", "instruction", "problem", "user", "customer", "issue",
)  # fmt: skip
ANSWER_WORDS = (
    "answer", "reply", "response", "solution", "a", "output", "resolution", "agent", "assistant", "summary",
)  # fmt: skip
LOOKED_AT, ENOUGH = 200, 0.9
LONGEST_LABEL = 60  # characters, also of labels that people write
MOST_LABELS, ROWS_A_LABEL = 50, 3
FEWEST_WORDS = 2  # of a text, in the middle


@dataclass(frozen=True, slots=True)
class Guess:
    """An objective and the columns that it may read: our word for a part -> the file's column."""

    objective: str
    columns: dict[str, str]

    def explain(self) -> str:
        """Which column plays which part, for the user to check."""
        return ", ".join(f"{column} -> {part}" for part, column in self.columns.items())

    def change(self) -> str:
        """What makes it so, for a command line."""
        flow = yaml.safe_dump(
            {"kind": self.objective, **self.columns},
            default_flow_style=True,
            allow_unicode=True,
            sort_keys=False,
            width=10_000,
        )
        return f"--set {shlex.quote(f'objective={flow.strip()}')}"


def guess(rows: Sequence[Row]) -> Guess | None:
    """The parts that names and values suggest: question and answer by their names, else a text and few-valued labels;
    None where nothing does."""
    columns = _columns(rows)
    texts = [column for column in columns if column.text]
    prompt, answer = _named(texts, PROMPT_WORDS), _named(texts, ANSWER_WORDS)
    if prompt and _rivals(texts):
        return None
    if prompt and answer and prompt is not answer:
        return Guess("instruct", {"prompt": prompt.name, "answer": answer.name})
    labels = [column for column in columns if column.few]
    label = _named(labels, LABEL_WORDS) or min(labels, key=lambda column: column.values, default=None)
    long = [column for column in texts if column is not label and column.words >= FEWEST_WORDS]
    text = _named(long, TEXT_WORDS) or max(long, key=lambda column: column.words, default=None)
    if label is None or text is None:
        return None
    return Guess("classify", {"text": text.name, "label": label.name})


def has_label(rows: Sequence[Row]) -> bool:
    """Whether a column is called as labels are, and has few values."""
    return _named([column for column in _columns(rows) if column.few], LABEL_WORDS) is not None


def fault(rows: Sequence[Row]) -> str:
    """What stands in the way of a guess: a column without a name, which no recipe can name, or two answers to a prompt
    of which nobody knows the better; nothing where there is neither."""
    place = next((number for number, name in enumerate(columns_of(rows), 1) if not name.strip()), 0)
    if place:
        return f"{file_of(rows)}: column {place} has no name; give it one in the first line"
    texts = [column for column in _columns(rows) if column.text]
    if _named(texts, PROMPT_WORDS) and (rivals := _rivals(texts)):
        names = " and ".join(column.name for column in rivals[:2])
        return f"{file_of(rows)}: {names} both answer; write the better one as `chosen`, the other as `rejected`"
    return ""


def _columns(rows: Sequence[Row]) -> list[_Column]:
    return [_Column(name, rows[:LOOKED_AT]) for name in columns_of(rows) if name.strip()]


def _rivals(texts: Sequence[_Column]) -> list[_Column]:
    """Answers that only a number or a letter tells apart, as response_a and response_b; none where there is one."""
    answer = _named(texts, ANSWER_WORDS)
    alike = [column for column in texts if answer and column.called == answer.called]
    return alike if len(alike) > 1 else []


class _Column:
    """What one column holds."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name = name
        called = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        self.called = {word for word in called if len(word) > 1 or len(called) == 1}  # Q and A, and not "is it a dog"
        words = [as_word(row.fields.get(name)) for row in rows]
        there = [word.strip() for word in words if word is not None and word.strip()]
        self.values = len(set(there))
        self.words = median(len(word.split()) for word in there) if there else 0
        full = len(there) >= ENOUGH * len(rows)
        self.text = full and not all(word.isdigit() for word in there)
        short = max(map(len, there), default=0) <= LONGEST_LABEL
        self.few = full and short and 2 <= self.values <= min(MOST_LABELS, max(2, len(rows) // ROWS_A_LABEL))


def _named(columns: Sequence[_Column], words: Collection[str]) -> _Column | None:
    """The column of whose name most is one of these words; of several the one with most in it."""
    found = [column for column in columns if column.called & set(words)]
    return min(found, key=lambda column: (len(column.called - set(words)), -column.words), default=None)
