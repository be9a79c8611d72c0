"""Prompts that a model is to answer anew, and its attempts: what learning from rewards works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.data.examples import Chat, Message, chats, group_of, need, parsed, turns_of
from tunesmith.data.prompts import PROMPTS
from tunesmith.data.rows import Row, columns_of
from tunesmith.data.turns import check_order, instructed
from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Exercise(Chat):
    """Turns that end with a question, or with somebody's answer to it, and the row they were made of."""

    row: Mapping[str, object] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns that are to be answered."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def reference(self) -> str:
        """The row's own answer, empty where it has none."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer of a model to an exercise, and whether it ended by itself."""

    exercise: Exercise
    text: str
    finished: bool

    @property
    def question(self) -> str:
        """The last thing that was asked."""
        return self.exercise.prompt[-1].content

    @property
    def row(self) -> Mapping[str, object]:
        """The row of the user's file that the exercise was made of."""
        return self.exercise.row


# How good each of some attempts is.
Scorer = Callable[[Sequence[Attempt]], list[float]]


def exercises(
    rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = ""
) -> list[Exercise]:
    """One Exercise for each row.

    `columns` is {"prompt": ...} and perhaps "answer", or {"messages": ...}; a chat may end with the question.
    Other parts are taken as `chats` takes them.
    """
    if "answer" in columns and "prompt" in columns:
        return [
            _of(chat, row)
            for chat, row in zip(chats(rows, columns=columns, instruction=instruction, group=group), rows, strict=True)
        ]
    (column,) = (columns[part] for part in ("messages", "conversations", "prompt") if part in columns)
    need(rows, column, group)

    def parse(row: Row) -> Exercise:
        turns = tuple(instructed(_turns(row, column), instruction))
        return Exercise(row.where, turns, group_of(row, group), row=row.fields)

    return parsed(rows, parse)


def prompt_column(rows: Sequence[Row]) -> str:
    """The column with the prompt in rows that hold nothing else that is known; empty where none is named like one."""
    return next((name for name in PROMPTS if name in columns_of(rows)), "")


def _of(chat: Chat, row: Row) -> Exercise:
    """The chat up to its last answer, with its row."""
    last = max(i for i, message in enumerate(chat.messages) if message.role == "assistant")
    return Exercise(chat.where, chat.messages[: last + 1], chat.group, row=row.fields)


def _turns(row: Row, column: str) -> list[Message]:
    """The turns of a column: a text is one question."""
    turns = turns_of(row, column, "user")
    check_order(turns, row.where)
    if not any(turn.role == "user" for turn in turns):
        raise DataError(f"{row.where}: nobody asks anything; add a user turn")
    return turns
