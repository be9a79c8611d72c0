"""Guess the roles of columns with unknown names from words in the names and from values, for the user to confirm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml

from tunesmith.data.files import quoted
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.ambiguous import ANSWER_WORDS, THUMB_WORDS, asked, unclear, unjudged
from tunesmith.data.schema.cells import PLUS, is_flag
from tunesmith.data.schema.columns import NOTED, Column, columns_held, ignored_columns, left_over, named

# Words in column names of texts and labels, in addition to the known formats.
TEXT_WORDS = (
    "text", "review", "comment", "body", "message", "description", "content", "note", "feedback", "sentence", "post",
    "tweet", "mail", "email", "subject", "title", "ticket", "complaint", "remark", "opinion",
)  # fmt: skip
LABEL_WORDS = (
    "label", "labels", "class", "category", "sentiment", "rating", "stars", "score", "type", "intent", "topic", "tag",
    "verdict", "status", "mood", "urgency", "priority", "department", "team", "queue", "emotion", "outcome",
)  # fmt: skip
# Names of the columns of a glossary: a term is too short for a prompt under any other name.
TERM_WORDS = ("term", "word", "concept", "acronym", "abbreviation", "headword", "phrase")
MEANING_WORDS = ("meaning", "definition", "explanation", "gloss", "description", "translation")
QUANTITY_WORDS = ("value", "grade", "points", "price", "mean", "amount", "target", "average", "number")
BETTER = ("chosen", "better", "good", "preferred", "accepted", "winner")
WORSE = ("rejected", "worse", "bad", "dispreferred", "loser")
LONGEST_TEXT = 100  # median words; longer texts are documents
FEWEST_WORDS = 2  # median words of a text
FEWEST_FLAGS = 3  # columns of 0 and 1 that are one label each


@dataclass(frozen=True, slots=True)
class Guess:
    """A guessed objective and its columns."""

    objective: str  # kind of the objective
    columns: dict[str, str]  # role -> column of the file
    ignored: Mapping[str, str] = field(default_factory=dict)  # column that is not used -> reason
    other_labels: tuple[str, ...] = ()  # columns that could be the label as well
    lacking: str = ""  # how many rows have no label or number

    def explain(self) -> str:
        """Return the role of each column in one line, for the user to check."""
        roles = ", ".join(f"{column} -> {part}" for part, column in self.columns.items())
        others = f"; other possible labels: {', '.join(self.other_labels)}" if self.other_labels else ""
        lacking = f"; {self.lacking}" if self.lacking else ""
        return roles + lacking + others + ignored_columns(self.ignored)

    def change(self) -> str:
        """Return the command-line option that sets this objective."""
        flow = yaml.safe_dump(
            {"kind": self.objective, **self.columns},
            default_flow_style=True,
            allow_unicode=True,
            sort_keys=False,
            width=10_000,
        )
        return f"--set {quoted(f'objective={flow.strip()}')}"


def guess(rows: Sequence[Row]) -> Guess | None:
    """Guess an objective from column names and values.

    Prompts and answers are recognized by their names; else a text and a label with few distinct values, or a number.
    The guess is None if there is no candidate or the columns are ambiguous.
    """
    guessed = _guess(rows)
    return guessed and replace(guessed, ignored=left_over(rows, guessed.columns.values()))


def _guess(rows: Sequence[Row]) -> Guess | None:
    columns = columns_held(rows)
    texts = [column for column in columns if column.text]
    prompt, better, worse = asked(columns), named(texts, BETTER), named(texts, WORSE)
    if prompt and better and worse:
        return Guess("preference", {"prompt": prompt.name, "chosen": better.name, "rejected": worse.name})
    if unclear(rows):
        return None
    labels = [column for column in columns if column.few]
    if pair := _pair(columns):
        if thumb := named([column for column in labels if column.thumbs], THUMB_WORDS):
            return Guess("preference", {**pair, "label": thumb.name})
        return None if unjudged(rows, read=pair.values()) else Guess("instruct", pair)
    candidates = [column for column in labels if not column.called & NOTED]
    if flags := _flags(candidates, texts):
        return flags
    label = named(labels, LABEL_WORDS) or min(candidates, key=lambda column: column.values, default=None)
    text = _longest_text([column for column in texts if column is not label])
    if text is not None and label is None and (target := _target(columns)):
        return Guess("regress", {"text": text.name, "target": target.name})
    if label is None or text is None:
        return None
    others = tuple(column.name for column in labels if column not in (label, text) and _in_words(column))
    return Guess("classify", {"text": text.name, "label": label.name}, other_labels=others)


def _flags(candidates: Sequence[Column], texts: Sequence[Column]) -> Guess | None:
    """Return a guess of several labels, one column of 0 and 1 each, where no other column can be a label."""
    text = _longest_text([column for column in texts if not column.few])
    if text is None or len(candidates) < FEWEST_FLAGS or named(candidates, LABEL_WORDS):
        return None
    if not all(is_flag(value) for column in candidates for value in column.distinct):
        return None
    return Guess("classify", {"text": text.name, "label": PLUS.join(column.name for column in candidates)})


def _longest_text(texts: Sequence[Column]) -> Column | None:
    """Return the text column, by its name or else the longest; columns of few values only if there is no other."""
    long = [column for column in texts if column.words >= FEWEST_WORDS]
    varied = [column for column in long if not column.few] or long
    return named(varied, TEXT_WORDS) or max(varied, key=lambda column: column.words, default=None)


def _in_words(column: Column) -> bool:
    """Return whether a column of few values is not metadata, or has words as values, unlike a version."""
    return not column.called & NOTED or not any(value[:1].isdigit() for value in column.distinct)


def unguessed(rows: Sequence[Row]) -> str:
    """Return why the columns are ambiguous and the fix; empty if they are not."""
    pair = _pair(columns_held(rows))
    return unclear(rows) or (unjudged(rows, read=pair.values()) if pair else "")


def alternatives(rows: Sequence[Row]) -> str:
    """Return what text columns without clear roles may be, as options to paste; empty without a text column."""
    columns = columns_held(rows)
    texts = [column for column in columns if column.text and not column.few and "." not in column.name]
    texts = sorted(texts, key=lambda column: -column.words)[:2]
    names = [column.name for column in columns if column.name in {text.name for text in texts}]
    found = []
    if len(names) == 2:
        pair = Guess("instruct", {"prompt": names[0], "answer": names[1]})
        found.append(f"if {names[1]} answers {names[0]}, use {pair.change()}")
    elif names:
        found.append(f"to learn the texts, use {Guess('domain', {'text': names[0]}).change()}")
    if (prompt := asked(columns)) and prompt.name in names:
        found.append(f"to train with a reward function, use {Guess('rl', {'prompt': prompt.name}).change()}")
    return "; ".join(found)


def _target(columns: Sequence[Column]) -> Column | None:
    """Return the column of a number to predict: the one named like a label or a quantity, or the only scale."""
    scales = [column for column in columns if column.scale and not column.called & NOTED]
    only = scales[0] if len(scales) == 1 else None
    return named(scales, (*LABEL_WORDS, *QUANTITY_WORDS)) or only


def _pair(columns: Sequence[Column]) -> dict[str, str]:
    """Return the columns named like a prompt and its answer, or a term and its meaning; empty without both."""
    texts = [column for column in columns if column.text and not column.few and not column.called & set(WORSE)]
    prompt, answer = asked(columns), named(texts, ANSWER_WORDS)
    if prompt is None and not any(column.few for column in columns):
        prompt, answer = named(texts, TERM_WORDS), named(texts, MEANING_WORDS)
    if prompt is None or answer is None or prompt is answer:
        return {}
    return {"prompt": prompt.name, "answer": answer.name}


def has_label(rows: Sequence[Row]) -> bool:
    """Return whether a column can be a label: named like one, with few distinct values.

    With short texts, any column with few values counts unless it is named like metadata.
    """
    columns = columns_held(rows)
    few = [column for column in columns if column.few]
    if named(few, LABEL_WORDS):
        return True
    longest = max((column.words for column in columns if column.text), default=0)
    documents = longest > LONGEST_TEXT or any({"doc", "id"} <= column.called for column in columns)
    return not documents and any(not column.called & NOTED for column in few)
