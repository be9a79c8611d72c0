"""Splits that a file brings along: a column whose values name the part of each row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tunesmith.data.readers.row import Row, as_word, columns_of, file_of, missing_column
from tunesmith.errors import DataError

DEFAULT_COLUMN = "split"  # used if the file has it
# First word of a value, lower case -> part. `train_sft` and `test-1` begin with such a word.
PART_NAMES = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SHOWN_VALUES = 5


def part_of(value: object) -> str:
    """Return `train`, `validation` or `test` for a value of a split column; empty if it names none of them."""
    words = re.findall(r"[^\W\d_]+", (as_word(value) or "").lower())
    return PART_NAMES.get(words[0], "") if words else ""


def split_column(rows: Sequence[Row], column: str = DEFAULT_COLUMN) -> dict[str, int]:
    """Count the rows of each part that a column names.

    Args:
        rows: rows of one file.
        column: the column.

    Returns:
        Part -> number of rows, blank cells as train; empty if the column is absent, has other values, or holds out
        no row.
    """
    values = [row.fields.get(column) for row in rows]
    filled = [value for value in values if value not in (None, "")]
    parts = Counter(map(part_of, filled))
    if "" in parts or not set(parts) - {"train"}:
        return {}
    parts["train"] += len(values) - len(filled)
    return {part: parts[part] for part in ("train", "validation", "test") if parts[part]}


def assigned(rows: Sequence[Row], column: str) -> tuple[dict[str, str], str]:
    """Return the part of each row by its location, and a note.

    Args:
        rows: rows of the train file.
        column: column with the parts; empty: none is used.

    Returns:
        Location -> part, empty if the column is not used; and a line on what was used or ignored, empty if the file
        has no such column.

    Raises:
        DataError: a column other than `split` was named, and it is missing or does not name parts.
    """
    counts = split_column(rows, column or DEFAULT_COLUMN)
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    if not column:
        fix = f"set data.split: {DEFAULT_COLUMN} to use it"
        return {}, f"{file_of(rows)}: column {DEFAULT_COLUMN!r} ({listed}) is not used; {fix}" if counts else ""
    if counts:
        note = f'{file_of(rows)}: split by the column {column!r}: {listed} rows (data.split: "" to ignore it)'
        return {row.where: part_of(row.fields.get(column)) or "train" for row in rows}, note
    if column not in columns_of(rows):
        if column != DEFAULT_COLUMN:
            raise DataError(f"data.split: {missing_column(rows, column)}")
        return {}, ""
    values = Counter(str(row.fields.get(column)) for row in rows).most_common(SHOWN_VALUES)
    found = f"column {column!r} contains {', '.join(value for value, _ in values)}"
    if column != DEFAULT_COLUMN:
        raise DataError(f"{file_of(rows)}: {found}; data.split needs train, validation or test, and held-out rows")
    return {}, f"{file_of(rows)}: {found}, which hold out no rows; not used for the split"
