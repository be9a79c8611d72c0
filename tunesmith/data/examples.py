"""Examples: rows whose parts are known. Every parser checks the whole list before it refuses any of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tunesmith.data.calls import Call, as_words, read_calls, read_tools
from tunesmith.data.rows import Row, as_word, file_of, missing_column, refuse
from tunesmith.errors import DataError

E = TypeVar("E")
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
DIALOGUES = ("messages", "conversations")
DIALOGUE_PARTS = {*DIALOGUES, "system", "tools"}
PAIR_PARTS = {"prompt", "answer", "input", "system"}


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


@dataclass(frozen=True, slots=True)
class Text:
    """A document or passage."""

    where: str
    text: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label, or with `multi` any number of labels."""

    where: str
    text: str
    labels: tuple[str, ...]
    group: str = ""
    multi: bool = False


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns of which at least one is an answer; `judged` is the one that a model's answer is compared with."""

    where: str
    messages: tuple[Message, ...]
    group: str = ""
    judged: int = -1


Example = Text | Labelled | Chat


def texts(rows: Sequence[Row], *, text: str, group: str = "") -> list[Text]:
    """One Text for each row."""
    _need(rows, text, group)
    return _parsed(rows, lambda row: Text(row.where, _text(row, text), group_of(row, group)))


def labelled(rows: Sequence[Row], *, text: str, label: str, group: str = "") -> list[Labelled]:
    """One Labelled for each row; if any row holds a list of labels, all are multi-label."""
    _need(rows, text, label, group)
    multi = any(isinstance(row.fields.get(label), list | tuple) for row in rows)
    return _parsed(
        rows,
        lambda row: Labelled(row.where, _text(row, text), _labels(row, label), group_of(row, group), multi),
    )


def chats(rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = "") -> list[Chat]:
    """One Chat for each row, from a column of turns or from a prompt and an answer.

    `columns` is {"messages": ...}, {"conversations": ...} or {"prompt": ..., "answer": ...}, where `system`
    and, beside a prompt, `input`, beside turns, `tools` may be added. The instruction stands before the first
    user turn.
    """
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")
    if set(columns) - (DIALOGUE_PARTS if dialogue else PAIR_PARTS) or not (
        dialogue or {"prompt", "answer"} <= set(columns)
    ):
        cure = "write objective: {kind: instruct, prompt: COLUMN, answer: COLUMN}"
        raise DataError(f"{file_of(rows)}: {dict(columns)} is not a prompt and an answer, nor a chat; {cure}")
    _need(rows, *(column for part, column in columns.items() if part != "tools"), group)

    def parse(row: Row) -> Chat:
        turns = _dialogue(row, dialogue) if dialogue else _pair(row, columns)
        system = _optional(row, columns.get("system", ""))
        if system and turns[0].role != "system":
            turns = [Message("system", system), *turns]
        if tools := read_tools(row.fields.get(columns.get("tools", "")), row.where):
            turns = [replace(turns[0], tools=tools), *turns[1:]]
        return Chat(row.where, tuple(_instructed(turns, instruction)), group_of(row, group))

    return _parsed(rows, parse)


def group_of(row: Row, column: str) -> str:
    """The row's source, as the group column names it; blank where the row names none."""
    value = row.fields.get(column) if column else None
    word = "" if value is None else as_word(value)
    if word is None:
        raise _fault(row, column, "must name the source of the row")
    return word.strip()


def fingerprint(example: Example) -> str:
    """The whole content, letter case and spacing aside: equal for exact copies."""
    if isinstance(example, Labelled):
        return "\x1e".join([_plain(example.text), *sorted(map(_plain, example.labels))])
    return _turns_plain(example.messages) if isinstance(example, Chat) else _plain(example.text)


def question(example: Example) -> str:
    """What is asked, letter case and spacing aside: the text, or the turns before the last answer."""
    if not isinstance(example, Chat):
        return _plain(example.text)
    answers = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    return _turns_plain(example.messages[: answers[-1]] if answers else example.messages)


def _plain(text: str) -> str:
    # str.split also takes the separators \x1e and \x1f for spaces, so no content can imitate them.
    return " ".join(text.casefold().split())


def _turns_plain(messages: Sequence[Message]) -> str:
    return "\x1e".join(f"{message.role}\x1f{_plain(message.said)}" for message in messages)


def _parsed(rows: Sequence[Row], parse: Callable[[Row], E]) -> list[E]:
    examples, faults = [], []
    for row in rows:
        try:
            examples.append(parse(row))
        except DataError as error:
            faults.append(str(error))
    return examples if not faults else refuse(faults)


def _need(rows: Sequence[Row], *columns: str) -> None:
    """Refuse columns that no row has, once instead of once a row."""
    absent = [column for column in columns if column and not any(column in row.fields for row in rows)]
    if rows and absent:
        refuse([missing_column(rows, column) for column in dict.fromkeys(absent)])


def _fault(row: Row, column: str, must: str) -> DataError:
    found = _short(row.fields.get(column))
    return DataError(f"{row.where}: column {column!r} {must}, found {found}; columns here: {list(row.fields)}")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _text(row: Row, column: str) -> str:
    value = row.fields.get(column)
    if not isinstance(value, str) or not value.strip():
        raise _fault(row, column, "must be text")
    return _whole(value, f"{row.where}: column {column!r}")


def _whole(text: str, place: str) -> str:
    """The text, if it can be written as UTF-8 at all: no tokenizer can read half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a character (\\u{ord(text[error.start]):x}) at {error.start + 1}"
        raise DataError(f"{place} holds {half}; the text was cut inside an emoji, remove it") from error
    return text


def _optional(row: Row, column: str) -> str:
    """The text of a column that may be blank."""
    value = row.fields.get(column) if column else None
    return "" if value is None or (isinstance(value, str) and not value.strip()) else _text(row, column)


def _labels(row: Row, column: str) -> tuple[str, ...]:
    value = row.fields.get(column)
    words = [(as_word(item) or "").strip() for item in (value if isinstance(value, list | tuple) else [value])]
    if not all(words):
        raise _fault(row, column, "must be a word, a whole number or a list of them")
    return tuple(dict.fromkeys(_whole(word, f"{row.where}: column {column!r}") for word in words))


def _pair(row: Row, columns: Mapping[str, str]) -> list[Message]:
    asked = [_text(row, columns["prompt"]), _optional(row, columns.get("input", ""))]
    answer = _text(row, columns["answer"])
    return [Message("user", "\n\n".join(filter(None, asked))), Message("assistant", answer)]


def _dialogue(row: Row, column: str) -> list[Message]:
    value = row.fields.get(column)
    if not isinstance(value, list | tuple) or not value:
        raise _fault(row, column, "must be a list of turns")
    turns = [_turn(item, f"{row.where}: turn {number}") for number, item in enumerate(value, 1)]
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn.role not in FOLLOWING[before]:
            cure = "write an optional system turn, then user and assistant by turns"
            raise DataError(f"{row.where}: turn {number} is {turn.role} after {before or 'the start'}; {cure}")
        before = turn.role
    if not any(turn.role == "assistant" and (turn.content.strip() or turn.calls) for turn in turns):
        raise DataError(f"{row.where}: no assistant turn with content; add the answer or drop the row")
    return turns if turns[0].content.strip() else turns[1:]


def _turn(item: object, place: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f'{place} is {_short(item)}; write {{"role": ..., "content": ...}}')
    said_by = item.get("role", item.get("from"))
    role = ROLES.get(str(said_by).strip().lower())
    if role is None:
        raise DataError(f"{place} has the role {said_by!r}; write one of {', '.join(FOLLOWING)[2:]}")
    calls = read_calls(item, place)
    if calls and role != "assistant":
        raise DataError(f"{place} ({role}) calls a tool; only an assistant's turn may")
    content = "" if said_by == "function_call" else item.get("content", item.get("value"))
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str) or (role == "user" and not content.strip()):
        raise DataError(f"{place} ({role}) must hold text, found {_short(content)}; write its content as text")
    _whole("".join(f"{call.name}{call.arguments}" for call in calls), place)
    return Message(role, _whole(content, place), calls)


def _instructed(turns: Sequence[Message], instruction: str) -> list[Message]:
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    content = "\n\n".join(filter(None, [instruction, turns[first].content]))
    return [*turns[:first], replace(turns[first], content=content), *turns[first + 1 :]]
