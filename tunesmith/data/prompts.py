"""Prompts without an answer: what a model is to be asked."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.examples import DIALOGUES, Message, fault, need, parsed, turns_of
from tunesmith.data.rows import Row, columns_of, file_of
from tunesmith.data.turns import check_order, instructed
from tunesmith.errors import DataError

# Columns that usually hold what is asked, the likeliest first.
PROMPTS = ("prompt", "question", "instruction", "input", "source", "document", *DIALOGUES, "text")


def prompts(rows: Sequence[Row], *, column: str = "", instruction: str = "") -> list[tuple[Message, ...]]:
    """The turns to be answered of each row, from a text or a chat; answers that the chat ends with are left out."""
    column = column or next((name for name in PROMPTS if name in columns_of(rows)), "")
    if not column:
        here, cure = columns_of(rows), "name the column with what is asked, with --column"
        raise DataError(
            f"{file_of(rows)}: no column is called {', '.join(PROMPTS[:3])} or the like, but {here}; {cure}"
        )
    need(rows, column)
    return parsed(rows, lambda row: tuple(instructed(_asked(row, column), instruction)))


def _asked(row: Row, column: str) -> list[Message]:
    turns = turns_of(row, column, "user")
    while turns and turns[-1].role == "assistant":
        turns.pop()
    if not any(turn.role == "user" for turn in turns):
        raise fault(row, column, "must hold a turn of a user")
    check_order(turns, row.where)
    return turns
