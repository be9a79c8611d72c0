"""Chat messages and their roles, parsed from the formats of the usual programs."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.tokenization.thinking import FIELDS, THINK
from tunesmith.data.tokenization.tool_calls import Call, as_words, calls_alone, calls_in, read_calls
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
# Role -> roles that may follow it; "" is the start of a chat.
FOLLOWING = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
# Keys by which rows exclude an answer from the loss or weight it, and the words of such a key.
LEARNED, WORDS = ("weight", "train", "training", "loss"), {"true": 1.0, "false": 0.0, "none": 1.0, "": 1.0}
# Tags around the result of a tool.
RESULT = "<tool_response>", "</tool_response>"
# A list of turns in a table cell, as JSON or as a Python literal.
LIST_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:.*\}\s*\]\s*""", re.DOTALL)
SPEAKER = re.compile(rf"""['"](?:role|from)['"]\s*:\s*['"](?:{"|".join(ROLES)})['"]""")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: system, user, assistant or tool.
        content: text of the turn.
        calls: tools that an assistant turn calls.
        tools: on the first turn of a chat, the tools that may be called, as JSON text.
        thoughts: the thoughts of an assistant turn before its content; empty: it has none.
        weight: factor of the loss of an assistant turn; 0: the turn is context and is not learned.
    """

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    tools: str = ""
    thoughts: str = ""
    weight: float = 1.0

    @property
    def said(self) -> str:
        """Content and calls as one text."""
        return "\n".join(filter(None, [self.content, as_words(self.calls)]))

    @property
    def calling(self) -> bool:
        """True if this assistant turn calls a tool, possibly only in its text."""
        return self.role == "assistant" and bool(self.calls or calls_in(self.content))


def check_order(turns: Sequence[Message], where: str) -> None:
    """Raise DataError at the first turn whose role may not follow the previous one, as in a chat."""
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn.role not in FOLLOWING[before]:
            expected = " or ".join(FOLLOWING[before])
            previous = f"after {before}" if before else "first"
            raise DataError(
                f"{where}: turn {number}: expected {expected} {previous}, got {turn.role}; "
                "write an optional system turn, then alternate user and assistant"
            )
        before = turn.role


def turns_in(value: object, where: str) -> Sequence[object]:
    """Return the turns in a value: a list, a list written as text, or a single turn; empty for anything else.

    Raise DataError if a list written as text cannot be parsed.
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
    raise DataError(f"{where}: list of turns written as text that cannot be parsed; save the rows as jsonl or parquet")


def turn_of(item: object, where: str) -> Message:
    """Parse one turn in the format of any of the usual programs."""
    if not isinstance(item, Mapping):
        raise DataError(f'{where}: expected a turn, got {short(item)}; write {{"role": ..., "content": ...}}')
    speaker = item.get("role", item.get("from"))
    role = ROLES.get(str(speaker).strip().lower())
    if role is None:
        raise DataError(f"{where}: unknown role {speaker!r}; write one of {', '.join(FOLLOWING)[2:]}")
    calls = read_calls(item, where)
    if calls and role != "assistant":
        raise DataError(
            f"{where} ({role}): tool call in a turn of another role than assistant; move it to an assistant turn"
        )
    content = "" if speaker == "function_call" else joined(item.get("content", item.get("value")))
    if content is None and role in ("assistant", "tool"):  # a function may return nothing
        content = ""
    if role == "tool" and isinstance(content, dict | list | int | float):  # the result as JSON, not as its text
        content = json.dumps(content, ensure_ascii=False, default=str)
    if not isinstance(content, str) or (role == "user" and not content.strip()):
        raise DataError(f"{where} ({role}): expected text, got {short(content)}; write the content as text")
    whole("".join(f"{call.name}{call.arguments}" for call in calls), where)
    turn = Message(role, whole(content, where), calls)
    if role != "assistant":
        return turn
    return replace(turn, thoughts=_thoughts_of(item, where), weight=_weight_of(item, where))


def _thoughts_of(item: Mapping[str, object], where: str) -> str:
    """Return the thoughts that a turn has under a separate key; empty if there are none."""
    name = next((name for name in FIELDS if item.get(name)), "")
    thoughts = joined(item.get(name, ""))
    if not isinstance(thoughts, str):
        raise DataError(f"{where}: expected thoughts in {name!r} as text, got {short(thoughts)}; write them as text")
    return whole(thoughts.strip(), where)


def _weight_of(item: Mapping[str, object], where: str) -> float:
    """Return the factor of the loss of an answer: 0 if the row excludes it."""
    weight = 1.0
    for name in LEARNED:
        value = str(item.get(name, "")).strip().lower()
        try:
            factor = WORDS[value] if value in WORDS else float(value)
        except ValueError:
            factor = -1.0
        if not 0 <= factor < math.inf:
            raise DataError(f"{where}: expected {name} as true, false or a number >= 0, got {short(item[name])}; use 1")
        weight *= factor
    return weight


def refuse_unlearned(turn: Message, where: str) -> None:
    """Raise DataError for an answer that cannot be trained on as written: it is empty, or its thoughts have no end."""
    if not turn.weight:
        return
    if turn.content.lstrip().startswith(THINK.opened):
        fix = f"write {THINK.closed} and the answer behind them, or drop the row"
        raise DataError(f"{where} (assistant): thoughts that do not end; {fix}")
    if not turn.content.strip() and not turn.calls:
        after = " after the thoughts" if turn.thoughts else ""
        raise DataError(f"{where} (assistant): empty answer{after}; write the answer, or end the chat before this turn")


def with_thoughts(turn: Message) -> str:
    """Return the content of a turn with its thoughts in front, as a `<think>` block."""
    return f"{THINK.begin}{turn.thoughts}{THINK.between}{turn.content}" if turn.thoughts else turn.content


def separated(turn: Message) -> Message:
    """Return an assistant turn with the thoughts at the beginning of its content apart from it; others unchanged.

    Thoughts are a `<think>` block, which may lack its opening mark where the prompt of a model has written it.
    """
    if turn.role != "assistant" or turn.thoughts:
        return turn
    thoughts, closed, answer = turn.content.partition(THINK.closed)
    before, opened, inner = thoughts.partition(THINK.opened)
    if not closed or (opened and before.strip()):
        return turn
    return replace(turn, thoughts=(inner if opened else thoughts).strip(), content=answer.strip())


def unworded(turn: Message, *, bare: bool) -> Message:
    """Return the turn without the tags that templates write around calls and results.

    The model's own template adds its tags. A turn with text besides its calls is unchanged. With `bare`, plain JSON is
    a call too.
    """
    if turn.role == "assistant" and (calls := calls_alone(turn.content, bare=bare)):
        return replace(turn, content="", calls=(*turn.calls, *calls))
    begin, end = RESULT
    content = turn.content.strip()
    if turn.role == "tool" and content.startswith(begin) and content.endswith(end):
        return replace(turn, content=content.removeprefix(begin).removesuffix(end).strip())
    return turn


def instructed(turns: Sequence[Message], instruction: str) -> list[Message]:
    """Return the turns with an instruction, which may be empty, before the first user turn."""
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    content = "\n\n".join(filter(None, [instruction, turns[first].content]))
    return [*turns[:first], replace(turns[first], content=content), *turns[first + 1 :]]


def joined(content: object) -> object:
    """Return the text of OpenAI content parts as one string; any other value unchanged."""
    if not isinstance(content, list) or not content:
        return content
    parts = [part for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "\n".join(texts) if len(texts) == len(content) else content


def whole(text: str, where: str) -> str:
    """Return the text, or raise DataError for half of a surrogate pair, which tokenizers cannot read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a surrogate pair (\\u{ord(text[error.start]):x}) at character {error.start + 1}"
        raise DataError(f"{where}: {half}; the text was cut inside an emoji, remove it") from error
    return text


def short(value: object) -> str:
    """Return a value as error messages show it, at most 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
