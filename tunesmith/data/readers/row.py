"""A row with its location, the filter by column values, and the errors of rows, reported for a whole file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from tunesmith.errors import DataError, suggestion

T = TypeVar("T")
# Column -> its allowed values, in the form of `_comparable`.
Allowed = Mapping[str, frozenset[tuple[str, str]]]
# Errors that one message lists; further ones are counted.
SHOWN_FAULTS = 20
ABSENT = object()  # no value, not even None
# Dotted names are collected from this number of rows, to this depth; one with more keys is a map.
NESTED_ROWS = 200
NESTED_DEPTH = 4
NESTED_KEYS = 30
TURN_KEYS = {"role", "from"}
# Ends of the names of columns that may have several labels in a cell.
PLURALS = ("tags", "labels", "topics", "categories", "genres", "keywords")


class Placed(Protocol):
    """Anything that has a location in a file."""

    @property
    def where(self) -> str:
        """`file:line`."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file.

    Attributes:
        where: location, `file:line`; error messages begin with it.
        fields: column -> value, unchanged.
    """

    where: str
    fields: Mapping[str, object]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", nested(self.fields))


class NestedFields(dict[str, object]):
    """Fields with objects inside, whose values are also found by dotted names.

    `fields["review.text"]` is the `text` of the object in `review`; of a list of objects it is the list of their
    texts. A column of exactly this name comes first. Iteration gives the top-level columns.
    """

    def __getitem__(self, column: str) -> object:
        """Return the value of a column or of a dotted name."""
        if super().__contains__(column):
            return super().__getitem__(column)
        if (value := _inner(self, column)) is ABSENT:
            raise KeyError(column)
        return value

    def __contains__(self, column: object) -> bool:
        """Return whether there is such a column or dotted name."""
        return super().__contains__(column) or (isinstance(column, str) and _inner(self, column) is not ABSENT)

    def get(self, column: str, default: object = None) -> object:
        """Return the value of a column or of a dotted name, or the default."""
        try:
            return self[column]
        except KeyError:
            return default


def nested(fields: Mapping[str, object]) -> Mapping[str, object]:
    """Return fields whose objects are addressed by dotted names; unchanged if they contain no object.

    Args:
        fields: column -> value.
    """
    if isinstance(fields, NestedFields) or not any(isinstance(value, dict | list) for value in fields.values()):
        return fields
    return NestedFields(fields)


def _inner(value: object, name: str) -> object:
    """Return the value below a dotted name, ABSENT if there is none."""
    if isinstance(value, list):
        found = [inner for item in value if (inner := _inner(item, name)) is not ABSENT]
        return found or ABSENT
    if not isinstance(value, dict):
        return ABSENT
    first, dot, rest = name.partition(".")
    while True:  # a key may contain dots itself
        if dict.__contains__(value, first):
            inner = dict.__getitem__(value, first)
            found_inner = _inner(inner, rest) if dot else inner
            if found_inner is not ABSENT:
                return found_inner
        if not dot:
            return ABSENT
        more, dot, rest = rest.partition(".")
        first = f"{first}.{more}"


def changed_at(fields: Mapping[str, object], column: str, change: Callable[[object], object]) -> dict[str, object]:
    """Return a copy of the fields with the value of a column or dotted name changed.

    Args:
        fields: column -> value.
        column: column or dotted name; the fields are returned unchanged if there is none.
        change: returns the new value.
    """
    copy = dict(fields)
    if column in copy:
        copy[column] = change(copy[column])
        return copy
    parts = column.split(".")
    for cut in range(1, len(parts)):
        first, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
        if first in copy and _inner(copy[first], rest) is not ABSENT:
            copy[first] = _changed_inside(copy[first], rest, change)
            return copy
    return copy


def _changed_inside(value: object, name: str, change: Callable[[object], object]) -> object:
    if isinstance(value, list):
        return [_changed_inside(item, name, change) for item in value]
    return changed_at(value, name, change) if isinstance(value, dict) else value


def keep(rows: Sequence[Row], where: Mapping[str, Sequence[object]]) -> list[Row]:
    """Return the rows that have one of the listed values in every column of `where`.

    Args:
        rows: rows of one file.
        where: column -> allowed values, compared as words: `1` matches "1" and 1.0.

    Raises:
        DataError: if a column is missing or no row matches.
    """
    selected = list(rows)
    for column, values in where.items():
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))
        allowed = allowed_values({column: values})
        matching = [row for row in selected if has_allowed(row.fields, allowed)]
        if not matching:
            counts = Counter(repr(row.fields.get(column)) for row in selected).most_common(10)
            present = ", ".join(f"{value} ({count})" for value, count in counts)
            expected = [values] if isinstance(values, str) else list(values)
            raise DataError(f"{file_of(rows)}: no row has {column} in {expected}; values in the file: {present}")
        selected = matching
    return selected


def allowed_values(where: Mapping[str, Sequence[object]]) -> Allowed:
    """Return the allowed values of `where` in the form in which they are compared."""
    lists = {column: [values] if isinstance(values, str) else values for column, values in where.items()}
    return {column: frozenset(map(_comparable, values)) for column, values in lists.items()}


def has_allowed(fields: Mapping[str, object], allowed: Allowed) -> bool:
    """Return whether a row has an allowed value in every column."""
    return all(_comparable(fields.get(column)) in values for column, values in allowed.items())


def as_word(value: object) -> str | None:
    """Return a text, boolean, date or whole number as a word (1.0 is "1"); None for anything else."""
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))  # data warehouses export integers as decimals
    return str(value) if isinstance(value, str | int | date) else None


def refuse(errors: Sequence[str], *, more: int = 0, kind: type[DataError] = DataError) -> NoReturn:
    """Raise one error that lists the first 20 problems, one per line, and counts the rest.

    Args:
        errors: messages.
        more: number of further problems that `errors` does not list.
        kind: exception class.

    Raises:
        DataError: always (or the subclass `kind`).
    """
    more += len(errors[SHOWN_FAULTS:])
    raise kind("\n".join([*errors[:SHOWN_FAULTS], *([f"... and {more} more"] if more else [])]))


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return all columns that occur in any row, in order of first appearance, then dotted names inside objects."""
    names: dict[str, None] = {}
    inner: dict[str, None] = {}
    for number, row in enumerate(rows):
        names.update(dict.fromkeys(row.fields))
        if number < NESTED_ROWS and isinstance(row.fields, NestedFields):
            inner.update(dict.fromkeys(_names_inside(row.fields)))
    return [*names, *(name for name in inner if name not in names)]


def _names_inside(value: Mapping[str, object], prefix: str = "", depth: int = 1) -> Iterator[str]:
    """Yield the dotted names of the values inside objects; chat turns and maps with many keys are not opened."""
    for key, item in value.items():
        if prefix and not isinstance(item, dict):
            yield f"{prefix}{key}"
        objects = [item] if isinstance(item, dict) else item if isinstance(item, list) else []
        for one in objects[:1]:
            opened = isinstance(one, dict) and len(one) <= NESTED_KEYS and not TURN_KEYS & one.keys()
            if opened and depth < NESTED_DEPTH:
                yield from _names_inside(one, f"{prefix}{key}.", depth + 1)


def file_of(rows: Sequence[Placed]) -> str:
    """Return the file or folder that the rows are from, as error messages name it."""
    return rows[0].where.rpartition(":")[0] or rows[0].where.partition("/")[0] if rows else "data"


def missing_column(rows: Sequence[Row], column: str) -> str:
    """Return the error message for a column that no row has, with the nearest existing name."""
    columns = columns_of(rows)
    hint = suggestion(column, columns)
    return f"{file_of(rows)}: no column {column!r}; {hint}{' ' * bool(hint)}columns here: {columns}"


def _comparable(value: object) -> tuple[str, str]:
    # Compared as words, so that `1`, `0.5`, `true` and `2024-01-05` in a recipe match the text cells of a csv.
    word = as_word(value)
    word = str(value) if word is None and isinstance(value, float) else word
    if word is None:
        return ("json", json.dumps(value, sort_keys=True, default=str))
    return ("word", word.lower() if word.lower() in ("true", "false") else word)


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the operating system does not open."""
    return DataError(f"{path}: cannot be read ({error.strerror}); check its permissions")


def objects(values: Iterable[tuple[str, T]], parse: Callable[[T], object]) -> Iterator[Row]:
    """Yield a row for each (location, value) that parses to an object, then report all others in one DataError."""
    errors, more = list[str](), 0
    for where, value in values:
        try:
            parsed = parse(value)
        except (ValueError, RecursionError) as error:
            problem = f"{where}: invalid JSON ({reason(error)}); write one JSON object per line"
        else:
            if (fields := fields_of(parsed)) is not None:
                yield Row(where, fields)
                continue
            problem = f'{where}: expected an object, got {type(parsed).__name__}; write {{"column": value}}'
        errors, more = ([*errors, problem], more) if len(errors) < SHOWN_FAULTS else (errors, more + 1)
    if errors:
        refuse(errors, more=more)


def fields_of(value: object) -> dict[str, object] | None:
    """Return the columns of a parsed line: an object, or a text with its annotations; None for anything else."""
    if isinstance(value, list) and is_pair(value):
        return {**value[1], "text": value[0]}
    return value if isinstance(value, dict) else None


def is_pair(value: Sequence[object]) -> bool:
    """Return whether a list is a text with its entities, as spaCy's training data has them."""
    return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict) and "entities" in value[1]


def numbered(values: Iterable[object], name: str, first: int = 1) -> Iterator[Row]:
    """Yield a row for each value, which must be an object; its location is its position, counted from `first`."""
    return objects(((f"{name}:{n}", value) for n, value in enumerate(values, first)), lambda value: value)


def reason(error: Exception) -> str:
    """Return a library's error message on one line."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return " ".join(str(error).split())
