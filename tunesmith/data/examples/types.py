"""Typed examples: what a row becomes."""

from __future__ import annotations

from dataclasses import dataclass

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
class LabelledText:
    """A text with one label, or with `multi` any number of labels."""

    where: str
    text: str
    labels: tuple[str, ...]
    group: str = ""
    multi: bool = False


@dataclass(frozen=True, slots=True)
class RatedText:
    """A text with a number to predict."""

    where: str
    text: str
    number: float
    group: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation.

    Attributes:
        where: location of the row.
        messages: turns of the chat.
        group: source of the row.
        reference_index: index of the reference answer; the number of messages if the chat ends with the prompt.
        accepted: all accepted answers of a row that lists them, empty if the question has no answer; else None.
        thinking: one of `thinking.MODES`, what happens to the thoughts of this row; empty: what the recipe names.
    """

    where: str
    messages: tuple[Message, ...]
    group: str = ""
    reference_index: int = -1
    accepted: tuple[str, ...] | None = None
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair: two completions of one prompt.

    Attributes:
        where: location of the row.
        prompt: turns before the completions.
        chosen: preferred completion.
        rejected: other completion.
        group: source of the row.
        margin: by how much `chosen` is better; 0 if unknown.
        cut: whether the chosen and the rejected completion were truncated.
    """

    where: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str = ""
    margin: float = 0.0
    cut: tuple[bool, bool] = (False, False)


@dataclass(frozen=True, slots=True)
class UnpairedPreference:
    """An unpaired preference: one completion rated good or bad.

    Attributes:
        where: location of the row.
        prompt: turns before the completion.
        answer: the completion.
        good: the rating.
        group: source of the row.
        cut: whether the completion was truncated.
    """

    where: str
    prompt: tuple[Message, ...]
    answer: str
    good: bool
    group: str = ""
    cut: bool = False


Example = Text | LabelledText | RatedText | Chat | Pair | UnpairedPreference
