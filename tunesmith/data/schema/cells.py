"""Values of columns, and of texts in several columns (`title + body`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.readers.row import Row, as_word

PLUS = " + "


def cell(row: Row, column: str) -> object:
    """Return the value of a row in a column.

    Args:
        row: the row.
        column: name of a column, dotted for a value inside objects; or several names joined by ` + `, whose texts
            are put on lines of their own, each after its name. An existing name comes first.

    Returns:
        The value; None if the row has none.
    """
    if PLUS in column and column not in row.fields:
        values = {name: cell(row, name) for name in map(str.strip, column.split(PLUS))}
        words = {name: as_word(value) or ("" if value is None else str(value)) for name, value in values.items()}
        return "\n".join(f"{name}: {word.strip()}" for name, word in words.items() if word.strip())
    return row.fields.get(column)


def has_column(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column, or each of several joined columns, has a value in any row or is a name of the file."""
    if any(column in row.fields for row in rows):
        return True
    return PLUS in column and all(has_column(rows, name.strip()) for name in column.split(PLUS))


def names_in(column: str, fields: Mapping[str, object]) -> list[str]:
    """Return the columns of a row that a column means: itself, or several joined ones, as far as they exist.

    Args:
        column: see `cell`.
        fields: the fields of a row.
    """
    names = [column] if column in fields else [name.strip() for name in column.split(PLUS)]
    return [name for name in names if name in fields]
