"""Several accepted answers to one prompt: a list of texts, or SQuAD's `{"text": [...], "answer_start": [...]}`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tunesmith.data.readers.row import Row, as_word
from tunesmith.data.schema.cells import cell
from tunesmith.data.schema.columns import ENOUGH, LOOKED_AT
from tunesmith.errors import DataError

# Names of columns whose cells are parsed as lists if they are text, as in a csv file. In other columns, a text such
# as `["a", "b"]` is the answer itself.
LIST_NAMES = ("answers", "references", "targets", "outputs", "responses", "solutions", "completions", "summaries")
# A numpy array as pandas writes it inside a dictionary.
ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=[\w']+)?\)", re.DOTALL)
UNANSWERABLE = "unanswerable"


def lists_answers(rows: Sequence[Row], column: str) -> bool:
    """Return whether the column of the answer contains lists of accepted answers."""
    values = [value for row in rows[:LOOKED_AT] if (value := cell(row, column)) not in (None, "")]
    return bool(values) and sum(is_answer_list(value, column) for value in values) >= ENOUGH * len(values)


def is_answer_list(value: object, column: str) -> bool:
    """Return whether a cell is a list of accepted answers; an empty list is one."""
    return _items(value, as_text=_parsed_as_list(column)) is not None


def accepted_answers(row: Row, column: str) -> tuple[str, ...]:
    """Return the distinct accepted answers of a row in a column for which `lists_answers` is true.

    They are empty for a question without an answer.

    Raises:
        DataError: the cell is not a list of texts.
    """
    value = cell(row, column)
    items = _items(value, as_text=_parsed_as_list(column)) if value not in (None, "") else []
    if items is None:
        raise DataError(f"{row.where}: column {column!r} must be a list of answers, got {str(value)[:40]!r}")
    return tuple(dict.fromkeys(item.strip() for item in items if item.strip()))


def _parsed_as_list(column: str) -> bool:
    return column.rpartition(".")[2].strip().lower() in LIST_NAMES


def _items(value: object, *, as_text: bool) -> list[str] | None:
    """Return the items of a list of short values; None for anything else, such as a list of turns."""
    if isinstance(value, str) and as_text:
        value = _read(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if not isinstance(value, list | tuple):
        return None
    words = [as_word(item) for item in value]
    return None if None in words else [word for word in words if word is not None]


def _read(text: str) -> object:
    """Parse the JSON or Python text of a list or an object; None if it is neither."""
    text = ARRAY.sub(r"\1", text.strip())
    if not text.startswith(("[", "{")):
        return None
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read(text)
    return None
