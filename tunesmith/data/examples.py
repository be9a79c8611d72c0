"""Examples: rows whose parts are known. Every parser checks the whole list before it refuses any of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tunesmith.data.calls import read_tools
from tunesmith.data.kinds import is_array, is_nothing, label_items, listed
from tunesmith.data.rows import Row, as_word, file_of, missing_column, refuse
from tunesmith.data.turns import Message as Message  # a part of an example, known from here
from tunesmith.data.turns import (
    check_order,
    instructed,
    refuse_unlearned,
    short,
    turn_of,
    turns_in,
    unworded,
    whole,
)
from tunesmith.data.words import folded
from tunesmith.errors import DataError, RowError

E = TypeVar("E")
DIALOGUES = ("messages", "conversations")
DIALOGUE_PARTS = {*DIALOGUES, "system", "tools"}
PAIR_PARTS = {"prompt", "answer", "input", "history", "system", "tools"}


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
    """Turns; `judged` is the answer that a model's is compared with, their number where they end with the question."""

    where: str
    messages: tuple[Message, ...]
    group: str = ""
    judged: int = -1


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to the same turns, of which one was preferred, by `margin` where that is known.

    `cut` says whether the chosen and the rejected answer were cut off before they ended.
    """

    where: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    group: str = ""
    margin: float = 0.0
    cut: tuple[bool, bool] = (False, False)


@dataclass(frozen=True, slots=True)
class Thumb:
    """An answer to some turns, found good or not; `cut`: it was cut off before it ended."""

    where: str
    prompt: tuple[Message, ...]
    answer: str
    good: bool
    group: str = ""
    cut: bool = False


Example = Text | Labelled | Chat | Pair | Thumb


def texts(rows: Sequence[Row], *, text: str, group: str = "") -> list[Text]:
    """One Text for each row."""
    need(rows, text, group)
    return parsed(rows, lambda row: Text(row.where, text_of(row, text), group_of(row, group)))


def labelled(rows: Sequence[Row], *, text: str, label: str, group: str = "") -> list[Labelled]:
    """One Labelled for each row; if any row holds a list of labels, all are multi-label."""
    need(rows, text, label, group)
    multi = any(label_items(value := row.fields.get(label)) != [value] for row in rows)
    return parsed(
        rows,
        lambda row: Labelled(row.where, text_of(row, text), _labels(row, label), group_of(row, group), multi),
    )


def chats(rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = "") -> list[Chat]:
    """One Chat for each row, from a column of turns or from a prompt and an answer.

    `columns` is {"messages": ...}, {"conversations": ...} or {"prompt": ..., "answer": ...}, where `system`
    and, beside a prompt, `input` and `history`, beside turns, `tools` may be added. The instruction stands
    before the first user turn.
    """
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")
    if set(columns) - (DIALOGUE_PARTS if dialogue else PAIR_PARTS) or not (
        dialogue or {"prompt", "answer"} <= set(columns)
    ):
        cure = "write objective: {kind: instruct, prompt: COLUMN, answer: COLUMN}"
        raise DataError(f"{file_of(rows)}: {dict(columns)} is not a prompt and an answer, nor a chat; {cure}")
    need(rows, *(column for part, column in columns.items() if part != "tools"), group)

    def parse(row: Row) -> Chat:
        turns = _dialogue(row, dialogue) if dialogue else _pair(row, columns)
        turns = with_system(turns, row, columns.get("system", ""))
        tools = read_tools(row.fields.get(columns.get("tools", "")), row.where)
        # Where nothing is offered, JSON alone is an answer like any other.
        turns = [unworded(turn, bare=bool(tools)) for turn in turns]
        if tools:
            turns = [replace(turns[0], tools=tools), *turns[1:]]
        return Chat(row.where, tuple(instructed(turns, instruction)), group_of(row, group))

    return parsed(rows, parse)


def with_system(turns: Sequence[Message], row: Row, column: str) -> list[Message]:
    """The turns behind what the row's system column says, where it has one and they do not begin with another."""
    system = _optional(row, column)
    return [Message("system", system), *turns] if system and turns[0].role != "system" else list(turns)


def group_of(row: Row, column: str) -> str:
    """The row's source, as the group column names it; blank where the row names none."""
    value = row.fields.get(column) if column else None
    word = "" if value is None else as_word(value)
    if word is None:
        raise fault(row, column, "must name the source of the row")
    return word.strip()


def fingerprint(example: Example) -> str:
    """The whole content, letter case and spacing aside: equal for exact copies."""
    if isinstance(example, Labelled):
        return "\x1e".join([folded(example.text), *sorted(map(folded, example.labels))])
    if isinstance(example, Pair):
        return "\x1e".join([_turns_plain(example.prompt), folded(example.chosen), folded(example.rejected)])
    if isinstance(example, Thumb):
        return "\x1e".join([_turns_plain(example.prompt), folded(example.answer), str(example.good)])
    return _turns_plain(example.messages) if isinstance(example, Chat) else folded(example.text)


def question(example: Example) -> str:
    """What is asked, letter case and spacing aside: the text, or the turns before the last answer.

    Of answers that were judged it is prompt and answers, in whatever order: what people said of them is the answer.
    """
    if isinstance(example, Pair):
        return "\x1e".join([prompt_of(example), *sorted(map(folded, (example.chosen, example.rejected)))])
    if isinstance(example, Thumb):
        return "\x1e".join([prompt_of(example), folded(example.answer)])
    if not isinstance(example, Chat):
        return folded(example.text)
    if example.judged == len(example.messages):  # the turns end with the question
        return _turns_plain(example.messages)
    answers = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    return _turns_plain(example.messages[: answers[-1]] if answers else example.messages)


def prompt_of(example: Pair | Thumb) -> str:
    """The turns that the judged answers are to, letter case and spacing aside."""
    return _turns_plain(example.prompt)


def _turns_plain(messages: Sequence[Message]) -> str:
    return "\x1e".join(f"{message.role}\x1f{folded(message.said)}" for message in messages)


def parsed(rows: Sequence[Row], parse: Callable[[Row], E]) -> list[E]:
    """What `parse` makes of every row; the faults of the whole list are told together."""
    examples, faults = [], []
    for row in rows:
        try:
            examples.append(parse(row))
        except DataError as error:
            faults.append(str(error))
    # Where every row fails, the columns are wrong, and dropping rows would leave none.
    return examples if not faults else refuse(faults, kind=RowError if examples else DataError)


def need(rows: Sequence[Row], *columns: str) -> None:
    """Refuse columns that no row has, once instead of once a row."""
    absent = [column for column in columns if column and not any(column in row.fields for row in rows)]
    if rows and absent:
        refuse([missing_column(rows, column) for column in dict.fromkeys(absent)])


def fault(row: Row, column: str, must: str) -> DataError:
    """An error about what a row has in a column."""
    found = short(row.fields.get(column))
    return DataError(f"{row.where}: column {column!r} {must}, found {found}; columns here: {list(row.fields)}")


def text_of(row: Row, column: str) -> str:
    """The text of a column, which must not be blank."""
    value = row.fields.get(column)
    if not isinstance(value, str):
        raise fault(row, column, "must be text")
    if not value.strip():
        raise DataError(
            f"{row.where}: column {column!r} is blank; drop the row, or `tunesmith audit DATA --fix OUT` does"
        )
    return whole(value, f"{row.where}: column {column!r}")


def _optional(row: Row, column: str) -> str:
    """The text of a column that may be blank."""
    value = row.fields.get(column) if column else None
    if isinstance(value, list | dict) and value:
        raise fault(row, column, "must be one text (join its parts, or name objective.prompt and objective.answer)")
    return "" if is_nothing(value) or (isinstance(value, str) and not value.strip()) else text_of(row, column)


def _labels(row: Row, column: str) -> tuple[str, ...]:
    value = row.fields.get(column)
    if is_array(value):
        raise fault(row, column, "must be a word, or a list with commas between its labels")
    words = [(as_word(item) or "").strip() for item in label_items(value)]
    if not all(words):
        raise fault(row, column, "must be a word, a whole number or a list of them (write a fraction as a text)")
    # One label, however its accents are written: macOS writes them apart.
    words = [unicodedata.normalize("NFC", word) for word in words]
    return tuple(dict.fromkeys(whole(word, f"{row.where}: column {column!r}") for word in words))


def turns_of(row: Row, column: str, role: str) -> list[Message]:
    """The turns of a column; a text is one of this role."""
    given = turns_in(row.fields.get(column), f"{row.where}: column {column!r}")
    turns = [turn_of(item, f"{row.where}: {column} turn {number}") for number, item in enumerate(given, 1)]
    return turns or [Message(role, text_of(row, column))]


def asked(row: Row, columns: Mapping[str, str], *, read: Callable[[Row, str, str], list[Message]]) -> list[Message]:
    """What was said before, then the prompt as `read` gives its turns, with what it is about behind it."""
    turns = [*_earlier(row, columns.get("history", "")), *read(row, columns["prompt"], "user")]
    about = _optional(row, columns.get("input", ""))
    return [*turns[:-1], replace(turns[-1], content=f"{turns[-1].content}\n\n{about}")] if about else turns


def _earlier(row: Row, column: str) -> list[Message]:
    """The exchanges of a history, each a question and its answer."""
    given = row.fields.get(column) if column else None
    said = listed(given)
    if (given and given != "[]" and not said) or not all(isinstance(one, list) and len(one) == 2 for one in said):
        raise fault(row, column, "must be a list of [question, answer]")
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for one in said for role, text in zip(roles, one, strict=True)]
    return [turn_of(turn, f"{row.where}: {column} turn {number}") for number, turn in enumerate(turns, 1)]


def _pair(row: Row, columns: Mapping[str, str]) -> list[Message]:
    turns = [*asked(row, columns, read=turns_of), *turns_of(row, columns["answer"], "assistant")]
    check_order(turns, row.where)
    return turns


def _dialogue(row: Row, column: str) -> list[Message]:
    given = turns_in(row.fields.get(column), f"{row.where}: column {column!r}")
    if not given:
        raise fault(row, column, "must be a list of turns")
    turns = [turn_of(item, f"{row.where}: turn {number}") for number, item in enumerate(given, 1)]
    check_order(turns, row.where)
    said = [at for at, turn in enumerate(turns) if turn.role == "assistant" and (turn.content.strip() or turn.calls)]
    if not said:
        raise DataError(f"{row.where}: no assistant turn with content; add the answer or drop the row")
    end = said[-1] + 1
    for number, (item, turn) in enumerate(zip(given[:end], turns, strict=False), 1):
        if turn.role == "assistant":
            refuse_unlearned(item, turn, f"{row.where}: turn {number}")
    # What follows the last answer is not learned, an empty answer among it.
    turns = turns[:end] + [turn for turn in turns[end:] if turn.role != "assistant"]
    return turns if turns[0].content.strip() else turns[1:]
