"""Typed examples: what a row becomes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

from tunesmith.data.tokenization.messages import Message

# A reference answer, or all accepted answers of a row; a score is the best over them.
Reference = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A document or passage."""

    where: str
    text: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text with something to learn about it, which a subclass adds."""

    TARGET: ClassVar[str] = ""  # name of the field to learn

    where: str
    text: str

    @property
    def group(self) -> str:
        """Return the source of the row: a field of every subclass, after what is to learn."""
        raise NotImplementedError

    @property
    def target(self) -> tuple[str, ...]:
        """Return what is to learn, as texts: of two rows with the same text, equal for duplicates."""
        return (repr(getattr(self, self.TARGET)),)

    def with_target_of(self, other: TextExample) -> Self:
        """Return the text with what is to learn about another one."""
        return replace(self, **{self.TARGET: getattr(other, self.TARGET)})


@dataclass(frozen=True, slots=True)
class LabelledText(TextExample):
    """A text with one label, or with `multi` any number of labels."""

    TARGET: ClassVar[str] = "labels"

    labels: tuple[str, ...]
    group: str = ""
    multi: bool = False

    @property
    def target(self) -> tuple[str, ...]:
        """Return the labels."""
        return self.labels


@dataclass(frozen=True, slots=True)
class RatedText(TextExample):
    """A text with a number to predict."""

    TARGET: ClassVar[str] = "number"

    number: float
    group: str = ""


class Span(NamedTuple):
    """A labelled part of a text: first character and the one after the last, in code points, and the label."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class TaggedText(TextExample):
    """A text with labelled spans, in order and without overlaps."""

    TARGET: ClassVar[str] = "spans"

    spans: tuple[Span, ...]
    group: str = ""

    def with_target_of(self, other: TextExample) -> Self:
        """Return the text with the spans of another one that do not end after it."""
        spans = getattr(other, self.TARGET)
        return replace(self, spans=tuple(span for span in spans if span.end <= len(self.text)))


@dataclass(frozen=True, slots=True)
class Query(TextExample):
    """A query with a passage that answers it, or a text with another one and how similar both are."""

    passage: str
    group: str = ""
    negatives: tuple[str, ...] = ()  # passages that do not answer it
    evidence: str = ""  # words that every passage which answers it contains; empty if unknown
    score: float | None = None  # similarity of both texts; None for a query
    label: str = ""  # texts of one label are alike; empty without labels

    @property
    def target(self) -> tuple[str, ...]:
        """Return the label, or the passage."""
        return (self.label or self.passage,)

    def with_target_of(self, other: TextExample) -> Self:
        """Return the query with the passage, the negatives and the label of another one."""
        assert isinstance(other, Query)
        kept = {name: getattr(other, name) for name in ("passage", "negatives", "evidence", "score", "label")}
        return replace(self, **kept)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation."""

    where: str  # location of the row
    messages: tuple[Message, ...]  # turns of the chat
    group: str = ""  # source of the row
    reference_index: int = -1  # index of the reference answer; the number of messages if the chat ends with the prompt
    # all accepted answers of a row that lists them, empty if the question has no answer; else None
    accepted: tuple[str, ...] | None = None
    # one of `thinking.MODES`, what happens to the thoughts of this row; empty: what the recipe names
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair: two completions of one prompt."""

    where: str  # location of the row
    prompt: tuple[Message, ...]  # turns before the completions
    chosen: str  # preferred completion
    rejected: str  # other completion
    group: str = ""  # source of the row
    margin: float = 0.0  # by how much `chosen` is better; 0 if unknown
    cut: tuple[bool, bool] = (False, False)  # whether the chosen and the rejected completion were truncated


@dataclass(frozen=True, slots=True)
class UnpairedPreference:
    """An unpaired preference: one completion rated good or bad."""

    where: str  # location of the row
    prompt: tuple[Message, ...]  # turns before the completion
    answer: str  # the completion
    good: bool  # the rating
    group: str = ""  # source of the row
    cut: bool = False  # whether the completion was truncated


Example = Text | LabelledText | RatedText | TaggedText | Query | Chat | Pair | UnpairedPreference
