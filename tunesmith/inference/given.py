"""What a caller gives a model to read, made sure of. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunesmith.data.examples import Message
from tunesmith.errors import RecipeError


def listed(texts: Iterable[str], what: str) -> list[str]:
    """The texts as a list. Raises RecipeError for a text alone, whose letters would be read, and for what is none."""
    if isinstance(texts, str):
        raise RecipeError(f"{what}: {texts[:20]!r} is one text and no list of them; write [text]")
    found = list(texts)
    if strange := [place for place, text in enumerate(found) if not isinstance(text, str)]:
        raise RecipeError(f"{what}: text {strange[0] + 1} is {found[strange[0]]!r} and no text; leave it out")
    return found


def refuse_empty(rows: Sequence[Sequence[int]], what: str) -> None:
    """Nothing where every text has ids; else RecipeError."""
    if empty := [place for place, ids in enumerate(rows) if not ids]:
        raise RecipeError(f"{what}: text {empty[0] + 1} is empty; leave it out")


def turns(messages: Sequence[Message]) -> Sequence[Message]:
    """The turns of a chat. Raises RecipeError for none of them, and for what is none."""
    if not (isinstance(messages, list | tuple) and messages and all(isinstance(one, Message) for one in messages)):
        cure = 'give [Message("user", text)], of tunesmith.data.examples'
        raise RecipeError(f"reply: {str(messages)[:40]!r} is no list of turns; {cure}")
    return messages
