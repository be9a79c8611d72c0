"""Which columns of rows with unknown headers may play which part: a guess by names and values, for people to check."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from tunesmith.data.columns import columns_held, named
from tunesmith.data.rows import Row
from tunesmith.data.unclear import ANSWER_WORDS, asked, unclear, unjudged

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
NOTED = {
    "split", "lang", "language", "source", "license", "licence", "url", "date", "year", "version", "page", "section",
    "chapter", "doc", "document", "author", "id", "group", "book", "file", "path", "part", "subset", "format",
}  # fmt: skip
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
    answer = named([one for one in texts if not one.few and not one.called & set(WORSE)], ANSWER_WORDS)
    if prompt and answer and prompt is not answer:
        if unjudged(rows):
            return None
        return Guess("instruct", {"prompt": prompt.name, "answer": answer.name})
    labels = [column for column in columns if column.few]
    label = named(labels, LABEL_WORDS) or min(labels, key=lambda column: column.values, default=None)
    long = [column for column in texts if column is not label and column.words >= FEWEST_WORDS]
    text = named(long, TEXT_WORDS) or max(long, key=lambda column: column.words, default=None)
    if label is None or text is None:
        return None
    return Guess("classify", {"text": text.name, "label": label.name})


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
