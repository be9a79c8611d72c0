"""Validation of the texts and messages that a caller passes to a model. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.data.examples import Message
from tunesmith.errors import RecipeError


def listed(texts: Iterable[str], what: str) -> list[str]:
    """Return the texts as a list; raise RecipeError for a single string or an element of another type."""
    if isinstance(texts, str):
        raise RecipeError(f"{what}: expected a list of texts, got the text {texts[:20]!r}; write [text]")
    items = list(texts)
    if invalid := [i for i, text in enumerate(items) if not isinstance(text, str)]:
        raise RecipeError(f"{what}: text {invalid[0] + 1}: expected a string, got {items[invalid[0]]!r}; remove it")
    return items


def refuse_empty(rows: Sequence[Sequence[int]], what: str) -> None:
    """Raise RecipeError if a text has no token ids."""
    if empty := [i for i, ids in enumerate(rows) if not ids]:
        raise RecipeError(f"{what}: text {empty[0] + 1} is empty; remove it")


def turns(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages of a chat; raise RecipeError for an empty list or another type."""
    if not (isinstance(messages, list | tuple) and messages and all(isinstance(turn, Message) for turn in messages)):
        fix = 'give [Message("user", text)], of tunesmith.data.examples'
        raise RecipeError(f"reply: expected a list of messages, got {str(messages)[:40]!r}; {fix}")
    return messages
