"""Splits that a file brings along: a column whose values name the part of each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tunesmith.data.readers.row import Row, columns_of, file_of, missing_column
from tunesmith.data.schema.split_names import DEFAULT_SPLIT, split_parts
from tunesmith.errors import DataError

SHOWN_VALUES = 5


def split_column(rows: Sequence[Row], column: str = DEFAULT_SPLIT) -> dict[str, int]:
    """Count the rows of each part that a column names; empty if it is not used, see `split_parts`.

    Args:
        rows: rows of one file.
        column: the column.
    """
    return split_parts([row.fields.get(column) for row in rows])


def column_note(rows: Sequence[Row], column: str, counts: Mapping[str, int]) -> str:
    """Return a note on the split column of a train file, which is used if it is named and there are counts.

    Args:
        rows: rows of the train file, or the first of them.
        column: column with the parts; empty: none is used.
        counts: rows of each part over the whole file, as `split_column` returns them.

    Returns:
        A line on what was used or ignored, empty if the file has no such column.

    Raises:
        DataError: a column other than `split` was named, and it is missing or does not name parts.
    """
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    if not column:
        fix = f"set data.split: {DEFAULT_SPLIT} to use it"
        return f"{file_of(rows)}: column {DEFAULT_SPLIT!r} ({listed}) is not used; {fix}" if counts else ""
    if counts:
        return f'{file_of(rows)}: split by the column {column!r}: {listed} rows (data.split: "" to ignore it)'
    if column not in columns_of(rows):
        if column != DEFAULT_SPLIT:
            raise DataError(f"data.split: {missing_column(rows, column)}")
        return ""
    values = Counter(str(row.fields.get(column)) for row in rows).most_common(SHOWN_VALUES)
    found = f"column {column!r} contains {', '.join(value for value, _ in values)}"
    if column != DEFAULT_SPLIT:
        raise DataError(f"{file_of(rows)}: {found}; data.split needs train, validation or test, and held-out rows")
    return f"{file_of(rows)}: {found}, which hold out no rows or all; not used for the split"
