"""Prompts: of files without answers, and of online reinforcement learning with the completions sampled for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunesmith.data.examples.parsers import (
    DIALOGUES,
    asked,
    chats,
    group_of,
    need,
    parsed,
    row_error,
    turns_of,
    with_system,
)
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.row import Row, columns_of, file_of
from tunesmith.data.schema.cells import cell
from tunesmith.data.tokenization.messages import Message, check_order, instructed
from tunesmith.data.tokenization.tool_calls import read_tools
from tunesmith.errors import DataError

# Usual names of a prompt column, in order of preference.
PROMPTS = ("prompt", "question", "instruction", "input", "source", "document", *DIALOGUES, "text")


def prompts(rows: Sequence[Row], *, column: str = "", instruction: str = "") -> list[tuple[Message, ...]]:
    """Parse the prompt of each row, from a text or a chat without its final answers.

    Args:
        rows: rows of one file.
        column: column with the prompt; empty: found by its name.
        instruction: text before the first user turn.

    Returns:
        The turns of each prompt.

    Raises:
        DataError: if there is no such column or no row is valid.
        RowError: if some rows are invalid.
    """
    column = column or prompt_column(rows)
    if not column:
        names = ", ".join(PROMPTS[:3])
        raise DataError(
            f"{file_of(rows)}: no prompt column ({names} or similar) among {columns_of(rows)}; give it with --column"
        )
    need(rows, column)

    def parse(row: Row) -> tuple[Message, ...]:
        turns = turns_of(row, column, "user")
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if not any(turn.role == "user" for turn in turns):
            raise row_error(row, column, "must contain a user turn")
        check_order(turns, row.where)
        return tuple(instructed(turns, instruction))

    return parsed(rows, parse)


def prompt_column(rows: Sequence[Row]) -> str:
    """Return the column with the prompt by its name; empty if there is none."""
    return next((name for name in PROMPTS if name in columns_of(rows)), "")


@dataclass(frozen=True, slots=True)
class RLPrompt(Chat):
    """A prompt, or a prompt with a reference answer, and its row."""

    row: Mapping[str, object] = field(default_factory=dict)  # the fields of the row, for reward functions

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns that the model completes."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def reference(self) -> str:
        """The row's own answer; empty if there is none."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else ""


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion that a model sampled.

    Attributes:
        prompt: its prompt.
        text: the completion.
        finished: whether the model ended it, before the token limit.
    """

    prompt: RLPrompt
    text: str
    finished: bool

    @property
    def exercise(self) -> RLPrompt:
        """Return `prompt`, under its old name."""
        warnings.warn("completion.exercise is deprecated; use completion.prompt", DeprecationWarning, stacklevel=2)
        return self.prompt

    @property
    def question(self) -> str:
        """Content of the last turn of the prompt."""
        return self.prompt.prompt[-1].content

    @property
    def row(self) -> Mapping[str, object]:
        """The fields of the row."""
        return self.prompt.row


# A reward function: one score per completion.
Scorer = Callable[[Sequence[Completion]], list[float]]


def rl_prompts(
    rows: Sequence[Row], *, columns: Mapping[str, str], instruction: str = "", group: str = ""
) -> list[RLPrompt]:
    """Parse one RLPrompt per row; arguments as in `chats`, but "answer" or the last answer of a chat may be missing."""
    if "answer" in columns and "prompt" in columns:
        result = []
        for chat, row in zip(chats(rows, columns=columns, instruction=instruction, group=group), rows, strict=True):
            last = max(index for index, message in enumerate(chat.messages) if message.role == "assistant")
            result.append(RLPrompt(chat.where, chat.messages[: last + 1], chat.group, row=row.fields))
        return result
    need(rows, *(column for part, column in columns.items() if part != "tools"), group)
    dialogue = next((columns[part] for part in DIALOGUES if part in columns), "")

    def parse(row: Row) -> RLPrompt:
        turns = turns_of(row, dialogue, "user") if dialogue else asked(row, columns, read=turns_of)
        check_order(turns, row.where)
        if not any(turn.role == "user" for turn in turns):
            raise DataError(f"{row.where}: no user turn; add one")
        turns = instructed(with_system(turns, row, columns.get("system", "")), instruction)
        if tools := read_tools(cell(row, columns.get("tools", "")), row.where):
            turns = [replace(turns[0], tools=tools), *turns[1:]]
        judged = -1 if turns[-1].role == "assistant" else len(turns)
        return RLPrompt(row.where, tuple(turns), group_of(row, group), judged, row=row.fields)

    return parsed(rows, parse)
