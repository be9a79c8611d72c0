"""Values of columns, and of texts in several columns (`title + body`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tunesmith.data.readers.row import Row, as_word

PLUS = " + "
FLAGS = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}


def cell(row: Row, column: str) -> object:
    """Return the value of a row in a column; None if the row has none, which pandas writes as NaN.

    Args:
        row: the row.
        column: name of a column, dotted for a value inside objects; or several names joined by ` + `, whose texts
            are put on separate lines, each after its name. An existing name comes first.
    """
    if PLUS in column and column not in row.fields:
        values = {name: cell(row, name) for name in map(str.strip, column.split(PLUS))}
        words = {name: as_word(value) or ("" if value is None else str(value)) for name, value in values.items()}
        return "\n".join(f"{name}: {word.strip()}" for name, word in words.items() if word.strip())
    value = row.fields.get(column)
    return None if isinstance(value, float) and math.isnan(value) else value


def label_cell(row: Row, column: str) -> object:
    """Return the label of a row: the value of a column, or the names of those joined columns whose value is 1.

    Joined columns (see `cell`) have one label each, with 1 or true in the rows that have it. The result is None if one
    of them has another value than 0 or 1.
    """
    if PLUS not in column or column in row.fields:
        return cell(row, column)
    names = [name.strip() for name in column.split(PLUS)]
    flags = [flag_of(cell(row, name)) for name in names]
    return None if None in flags else [name for name, flag in zip(names, flags, strict=True) if flag]


def flag_of(value: object) -> bool | None:
    """Return the truth value of a cell, such as 1 or `true`; None for anything else."""
    return FLAGS.get((as_word(value) or "").strip().lower())


def is_flag(word: str) -> bool:
    """Return whether a value, as a word, is 0 or 1, true or false."""
    return word.strip().lower() in FLAGS


def same_flags(labels: Iterable[str]) -> list[str]:
    """Return a note on labels that are spellings of one truth value, such as `1` and `True`; empty without such."""
    spelt: dict[bool, list[str]] = {}
    for label in sorted(labels):
        if is_flag(label):
            spelt.setdefault(FLAGS[label.lower()], []).append(label)
    return [
        f"the labels {' and '.join(map(repr, same))} may mean the same, but count as {len(same)} labels; "
        "write only one of them"
        for same in spelt.values()
        if len(same) > 1
    ]


def has_column(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column, or each of several joined columns, has a value in any row or is a name of the file."""
    if any(column in row.fields for row in rows):
        return True
    return PLUS in column and all(has_column(rows, name.strip()) for name in column.split(PLUS))


def names_in(column: str, fields: Mapping[str, object]) -> list[str]:
    """Return the columns of a row that a column means (see `cell`): itself, or several, as far as they exist."""
    names = [column] if column in fields else [name.strip() for name in column.split(PLUS)]
    return [name for name in names if name in fields]
