"""Prompts for reinforcement learning, and the completions that rewards score."""

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
from tunesmith.data.rows import Row
from tunesmith.data.turns import check_order, instructed
from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Exercise(Chat):
    """A prompt, or a prompt with a reference answer, and its row.

    Attributes:
        row: the fields of the row, for reward functions.
    """

    row: Mapping[str, object] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns that the model completes."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def reference(self) -> str:
        """The row's own answer; empty if there is none."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion that a model sampled.

    Attributes:
        exercise: its prompt.
        text: the completion.
        finished: whether the model ended it, before the token limit.
    """

    exercise: Exercise
    text: str
    finished: bool

    @property
    def question(self) -> str:
        """Content of the last turn of the prompt."""
        return self.exercise.prompt[-1].content

    @property
    def row(self) -> Mapping[str, object]:
        """The fields of the row."""
        return self.exercise.row


# A reward function: one score per attempt.
Scorer = Callable[[Sequence[Attempt]], list[float]]


def exercises(
    rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = ""
) -> list[Exercise]:
    """Parse one Exercise per row.

    Args:
        rows: rows of one file.
        columns: as for `chats`; "answer" may be omitted, and a chat may end with the prompt.
        instruction: text before the first user turn.
        group: column with the source of a row; may be empty.

    Raises:
        DataError: if a column is missing or no row is valid.
        RowError: if some rows are invalid.
    """
    if "answer" in columns and "prompt" in columns:
        result = []
        for chat, row in zip(chats(rows, columns=columns, instruction=instruction, group=group), rows, strict=True):
            last = max(index for index, message in enumerate(chat.messages) if message.role == "assistant")
            result.append(Exercise(chat.where, chat.messages[: last + 1], chat.group, row=row.fields))
        return result
    need(rows, *(column for part, column in columns.items() if part != "tools"), group)
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")

    def parse(row: Row) -> Exercise:
        turns = turns_of(row, dialogue, "user") if dialogue else asked(row, columns, read=turns_of)
        check_order(turns, row.where)
        if not any(turn.role == "user" for turn in turns):
            raise DataError(f"{row.where}: no user turn; add one")
        turns = instructed(with_system(turns, row, columns.get("system", "")), instruction)
        if tools := read_tools(row.fields.get(columns.get("tools", "")), row.where):
            turns = [replace(turns[0], tools=tools), *turns[1:]]
        judged = -1 if turns[-1].role == "assistant" else len(turns)
        return Exercise(row.where, tuple(turns), group_of(row, group), judged, row.fields)

    return parsed(rows, parse)
