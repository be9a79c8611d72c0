"""The turns of a chat: who says what, read from the words of the usual programs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.calls import Call, as_words, calls_alone, calls_in, read_calls
from tunesmith.errors import DataError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
# Which roles may come after a role; "" is the start.
FOLLOWING = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
# Keys by which other programs leave an answer of a chat out, and those of thoughts beside it.
LEARNED, WHOLE = ("weight", "train", "training", "loss"), ("1", "1.0", "True", "true", "None")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
RESULT = "<tool_response>", "</tool_response>"
# A list of turns that a table's writer put into a cell, as JSON or as Python shows it.
LIST_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:.*\}\s*\]\s*""", re.DOTALL)
SPEAKER = re.compile(rf"""['"](?:role|from)['"]\s*:\s*['"](?:{"|".join(ROLES)})['"]""")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; the role is system, user, assistant or tool.

    `calls`: the tools that an assistant's turn calls. `tools`: on a chat's first turn, what may be called, as JSON.
    """

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    tools: str = ""

    @property
    def said(self) -> str:
        """Content and calls as one text."""
        return "\n".join(filter(None, [self.content, as_words(self.calls)]))

    @property
    def calling(self) -> bool:
        """Whether it is an assistant's turn that calls a tool, if only in its words."""
        return self.role == "assistant" and bool(self.calls or calls_in(self.content))


def check_order(turns: Sequence[Message], where: str) -> None:
    """Nothing where the roles follow each other as in a chat; else DataError."""
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn.role not in FOLLOWING[before]:
            cure = "write an optional system turn, then user and assistant by turns"
            raise DataError(f"{where}: turn {number} is {turn.role} after {before or 'the start'}; {cure}")
        before = turn.role


def turns_in(value: object, place: str) -> Sequence[object]:
    """The turns of a list, of a list that was written as text, or a single turn; none in anything else.

    Raises DataError for such a text that cannot be read back.
    """
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, list | tuple):
        return value
    if not isinstance(value, str) or not LIST_AS_TEXT.fullmatch(value) or not SPEAKER.search(value):
        return []
    for read in (json.loads, ast.literal_eval):
        try:
            return list(read(value))
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise DataError(f"{place} is a list written as text, which cannot be read back; save the rows as jsonl or parquet")


def turn_of(item: object, place: str) -> Message:
    """A turn as one of the usual programs writes it."""
    if not isinstance(item, Mapping):
        raise DataError(f'{place} is {short(item)}; write {{"role": ..., "content": ...}}')
    said_by = item.get("role", item.get("from"))
    role = ROLES.get(str(said_by).strip().lower())
    if role is None:
        raise DataError(f"{place} has the role {said_by!r}; write one of {', '.join(FOLLOWING)[2:]}")
    calls = read_calls(item, place)
    if calls and role != "assistant":
        raise DataError(f"{place} ({role}) calls a tool; only an assistant's turn may")
    content = "" if said_by == "function_call" else joined(item.get("content", item.get("value")))
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str) or (role == "user" and not content.strip()):
        raise DataError(f"{place} ({role}) must hold text, found {short(content)}; write its content as text")
    whole("".join(f"{call.name}{call.arguments}" for call in calls), place)
    return Message(role, whole(content, place), calls)


def refuse_unlearned(item: object, turn: Message, place: str) -> None:
    """Raise DataError for an answer of a chat that would not be learned as it stands there."""
    told = item if isinstance(item, Mapping) else {}
    if mark := next((name for name in LEARNED if str(told.get(name)) not in WHOLE), ""):
        cure = f"end the chat before it, or leave out {mark}"
        raise DataError(f"{place} has {mark} {told[mark]!r}, and every answer of a chat is learned whole; {cure}")
    if name := next((name for name in THOUGHTS if told.get(name)), ""):
        cure = "write them into its content, or leave them out"
        raise DataError(f"{place} has thoughts in {name!r}, which would not be learned; {cure}")
    if not turn.content.strip() and not turn.calls:
        raise DataError(f"{place} (assistant) says nothing; write the answer, or end the chat before it")


def unworded(turn: Message, *, bare: bool) -> Message:
    """The turn without what templates write around calls and results, for the model's own to write it.

    A text beside calls stays as it is; `bare`: JSON alone is a call too.
    """
    if turn.role == "assistant" and (calls := calls_alone(turn.content, bare=bare)):
        return replace(turn, content="", calls=(*turn.calls, *calls))
    begin, end = RESULT
    content = turn.content.strip()
    if turn.role == "tool" and content.startswith(begin) and content.endswith(end):
        return replace(turn, content=content.removeprefix(begin).removesuffix(end).strip())
    return turn


def instructed(turns: Sequence[Message], instruction: str) -> list[Message]:
    """The turns with the instruction before the first that a user wrote."""
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    content = "\n\n".join(filter(None, [instruction, turns[first].content]))
    return [*turns[:first], replace(turns[first], content=content), *turns[first + 1 :]]


def joined(content: object) -> object:
    """The texts of a content that OpenAI's programs wrote in parts, as one; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "\n".join(texts) if len(texts) == len(content) else content


def whole(text: str, place: str) -> str:
    """The text, if it can be written as UTF-8 at all: no tokenizer can read half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character (\\u{ord(text[error.start]):x}) at {error.start + 1}"
        raise DataError(f"{place} holds {half}; the text was cut inside an emoji, remove it") from error
    return text


def short(value: object) -> str:
    """A value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
