"""Prompts without reference answers."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.examples import DIALOGUES, Message, need, parsed, row_error, turns_of
from tunesmith.data.rows import Row, columns_of, file_of
from tunesmith.data.turns import check_order, instructed
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
    """Return the column with the prompt by its name; empty if there is none.

    Args:
        rows: rows of no known format.
    """
    return next((name for name in PROMPTS if name in columns_of(rows)), "")
