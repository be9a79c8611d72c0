"""Prompts that a model is to answer anew, and its attempts: what learning from rewards works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunesmith.data.calls import read_tools
from tunesmith.data.examples import (
    DIALOGUES,
    Chat,
    Message,
    asked,
    chats,
    group_of,
    need,
    parsed,
    turns_of,
    with_system,
)
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

    `columns` are those of `chats`, of which "answer" may be left out; a chat may end with the question.
    """
    if "answer" in columns and "prompt" in columns:
        return [
            _of(chat, row)
            for chat, row in zip(chats(rows, columns=columns, instruction=instruction, group=group), rows, strict=True)
        ]
    need(rows, *(column for part, column in columns.items() if part != "tools"), group)

    def parse(row: Row) -> Exercise:
        turns = instructed(with_system(_turns(row, columns), row, columns.get("system", "")), instruction)
        if tools := read_tools(row.fields.get(columns.get("tools", "")), row.where):
            turns = [replace(turns[0], tools=tools), *turns[1:]]
        judged = -1 if turns[-1].role == "assistant" else len(turns)
        return Exercise(row.where, tuple(turns), group_of(row, group), judged, row.fields)

    return parsed(rows, parse)


def prompt_column(rows: Sequence[Row]) -> str:
    """The column with the prompt in rows that hold nothing else that is known; empty where none is named like one."""
    return next((name for name in PROMPTS if name in columns_of(rows)), "")


def _of(chat: Chat, row: Row) -> Exercise:
    """The chat up to its last answer, with its row."""
    last = max(i for i, message in enumerate(chat.messages) if message.role == "assistant")
    return Exercise(chat.where, chat.messages[: last + 1], chat.group, row=row.fields)


def _turns(row: Row, columns: Mapping[str, str]) -> list[Message]:
    """The turns of a chat, or of a prompt with what it is about: a text is one question."""
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")
    turns = turns_of(row, dialogue, "user") if dialogue else asked(row, columns, read=turns_of)
    check_order(turns, row.where)
    if not any(turn.role == "user" for turn in turns):
        raise DataError(f"{row.where}: nobody asks anything; add a user turn")
    return turns
