"""Which columns of rows with unknown headers may play which part: a guess by names and values, for people to check."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from tunesmith.data.columns import NOTED, Column, columns_held, named
from tunesmith.data.rows import Row
from tunesmith.data.unclear import ANSWER_WORDS, THUMB_WORDS, asked, unclear, unjudged

# Words in a header that tell a part, beside those that need no guess.
TEXT_WORDS = (
    "text", "review", "comment", "body", "message", "description", "content", "note", "feedback", "sentence", "post",
    "tweet", "mail", "email", "subject", "title", "ticket", "complaint", "remark", "opinion",
)  # fmt: skip
LABEL_WORDS = (
    "label", "labels", "class", "category", "sentiment", "rating", "stars", "score", "type", "intent", "topic", "tag",
    "verdict", "status", "mood", "urgency", "priority", "department", "team", "queue", "emotion", "outcome",
)  # fmt: skip
BETTER = ("chosen", "better", "good", "preferred", "accepted", "winner")
WORSE = ("rejected", "worse", "bad", "dispreferred", "loser")
LONGEST_TEXT = 100  # words, in the middle: longer ones are documents
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
    """The parts that names and values suggest: question and answers by their names, else a text and few-valued labels;
    None where nothing does, or where something speaks against it."""
    columns = columns_held(rows)
    texts = [column for column in columns if column.text]
    prompt, better, worse = asked(columns), named(texts, BETTER), named(texts, WORSE)
    if prompt and better and worse:
        return Guess("preference", {"prompt": prompt.name, "chosen": better.name, "rejected": worse.name})
    if unclear(rows):
        return None
    labels = [column for column in columns if column.few]
    if found := _pair(columns):
        if thumb := named([column for column in labels if column.thumbs], THUMB_WORDS):
            return Guess("preference", {**found, "label": thumb.name})
        return None if unjudged(rows, read=found.values()) else Guess("instruct", found)
    unnoted = [column for column in labels if not column.called & NOTED]
    label = named(labels, LABEL_WORDS) or min(unnoted, key=lambda column: column.values, default=None)
    long = [column for column in texts if column is not label and column.words >= FEWEST_WORDS]
    text = named(long, TEXT_WORDS) or max(long, key=lambda column: column.words, default=None)
    if label is None or text is None:
        return None
    return Guess("classify", {"text": text.name, "label": label.name})


def unguessed(rows: Sequence[Row]) -> str:
    """Why nothing is guessed, with its cure; nothing where nothing speaks against a guess."""
    found = _pair(columns_held(rows))
    return unclear(rows) or (unjudged(rows, read=found.values()) if found else "")


def _pair(columns: Sequence[Column]) -> dict[str, str]:
    """The columns that are called like a prompt and its answer; nothing without both."""
    texts = [column for column in columns if column.text and not column.few and not column.called & set(WORSE)]
    prompt, answer = asked(columns), named(texts, ANSWER_WORDS)
    if prompt is None or answer is None or prompt is answer:
        return {}
    return {"prompt": prompt.name, "answer": answer.name}


def has_label(rows: Sequence[Row]) -> bool:
    """Whether a column is called as labels are and has few values.

    Beside short texts, which are no documents, any of few values is one that is not called as a note about a text.
    """
    columns = columns_held(rows)
    few = [column for column in columns if column.few]
    if named(few, LABEL_WORDS):
        return True
    longest = max((column.words for column in columns if column.text), default=0)
    documents = longest > LONGEST_TEXT or any({"doc", "id"} <= column.called for column in columns)
    return not documents and any(not column.called & NOTED for column in few)
