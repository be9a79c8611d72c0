"""Rows in JSON: one object per line, an array, or a document with a list of rows inside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunesmith.data.files import read_json
from tunesmith.data.readers.row import TURN_KEYS, Row, numbered, objects, reason
from tunesmith.data.readers.text_file import TextFile
from tunesmith.errors import DataError, first_names

DEPTH = 4  # of a list of rows in a document
LISTED = 8  # lists of rows, or keys, in a message
LEAST_KEYED = 3  # entries of an object of rows
USUAL = "data"


def json_lines(file: TextFile) -> Iterator[Row]:
    """Yield one object per line, then raise a DataError that lists the invalid lines."""
    return _rows_of_lines(file.lines("\n"), file.name)


def json_document(file: TextFile, part: str) -> tuple[Iterator[Row], str]:
    """Load the rows of a JSON document.

    Args:
        file: the file.
        part: dotted key of the list of rows; empty to find it.

    Returns:
        The rows, and a note if they are not at the top of the document.

    Raises:
        DataError: the file is not JSON, or has no list of rows or several of them.
    """
    text, name = file.read(), file.name
    fix = 'give an array of objects, {"data": [...]}, or one object per line'
    try:
        value = read_json(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_object(text):
            return _rows_of_lines(text.split("\n"), name), ""
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{name}:{line}: invalid JSON ({reason(error)}); {fix}") from error
    if isinstance(value, list):
        if part:
            raise DataError(f"{file.path}: a list of rows has no part {part!r}; use {file.path}")
        return numbered(value, name), ""
    if not isinstance(value, dict):
        raise DataError(f"{name}: expected rows, got one JSON {type(value).__name__}; {fix}")
    if not part and (rows := _transposed(value, name)) is not None:
        return numbered(rows, name), "table stored by column, as pandas writes it"
    if not part and (rows := _keyed(value)) is not None:
        return numbered(rows, name), f"rows are the values of one object, its keys the column {next(iter(rows[0]))!r}"
    return _listed_rows(value, file, part) or (_single_row(text, value, name, fix), "")


def _listed_rows(value: Mapping[str, Any], file: TextFile, part: str) -> tuple[Iterator[Row], str] | None:
    """Return the rows of the named or only list of a document; None if it has none."""
    lists = dict(_lists(value))
    if part and part not in lists:
        raise DataError(f"{file.path}: no list of rows {part!r}; lists here: {', '.join(lists) or 'none'}")
    if part or USUAL in lists:
        return numbered(lists[part or USUAL], file.name), ""
    if len(lists) == 1:
        ((key, found),) = lists.items()
        return numbered(found, file.name), f"rows are the list {key!r}"
    if not lists:
        return None
    sizes = ", ".join(f"{key} ({len(found)})" for key, found in list(lists.items())[:LISTED])
    largest = max(lists, key=lambda key: len(lists[key]))
    raise DataError(f"{file.name}: several lists of rows: {sizes}; name one, such as '{file.path}#{largest}'")


def _single_row(text: str, value: Mapping[str, Any], name: str, fix: str) -> Iterator[Row]:
    """Return a document that is one line as one row; raise DataError for any other."""
    if isinstance(value.get(USUAL), list):
        return numbered(value[USUAL], name)
    if _first_line_is_object(text) and USUAL not in value:
        return _rows_of_lines(text.split("\n"), name)
    keys = first_names(list(map(repr, value)), LISTED)
    raise DataError(f"{name}: expected rows, got one JSON object with the keys {keys}; {fix}")


def _rows_of_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    # Only "\n" ends a line: str.splitlines would also split at U+2028 inside a text. Without it, an error at the end
    # would be reported on line 2.
    places = ((f"{name}:{number}", line.removesuffix("\n")) for number, line in enumerate(lines, 1) if line.strip())
    return objects(places, read_json)


def _lists(value: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, list[Any]]]:
    """Yield dotted key and items of each list of objects; chat turns, which have a role, are not rows."""
    for key, item in value.items():
        if isinstance(item, list) and item and all(isinstance(one, dict) for one in item):
            if not TURN_KEYS & item[0].keys():
                yield f"{prefix}{key}", item
        elif isinstance(item, dict) and depth < DEPTH:
            yield from _lists(item, f"{prefix}{key}.", depth + 1)


def _transposed(value: Mapping[str, Any], name: str) -> list[dict[str, Any]] | None:
    """Return the rows of a table that is stored by column, or as columns and data; None for any other object."""
    if set(value) <= {"columns", "index", USUAL} and {"columns", USUAL} <= set(value):
        columns, rows = value["columns"], value[USUAL]
        lists = isinstance(columns, list) and isinstance(rows, list)
        if lists and all(isinstance(row, list) and len(row) == len(columns) for row in rows):
            header = list(map(_column_name, columns))
            if twice := sorted(column for column, count in Counter(header).items() if count > 1):
                raise DataError(f"{name}: duplicate column names {twice}; give each column its own name")
            return [dict(zip(header, row, strict=True)) for row in rows]
    if keys := index_of(value):
        return [{column: cells[key] for column, cells in value.items()} for key in keys]
    if _has_lists_of_cells(value):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    return None


def _has_lists_of_cells(value: Mapping[str, Any]) -> bool:
    """Return whether an object has a list of cells for each column, as `to_dict` of datasets and of pandas makes it."""
    columns = list(value.values())
    return (
        len(columns) > 1
        and all(isinstance(cells, list) and len(cells) == len(columns[0]) > 1 for cells in columns)
        and not any(isinstance(cell, dict) for cells in columns for cell in cells)  # lists of rows, or turns of a chat
    )


def _column_name(name: object) -> str:
    """Return the name of a column of pandas as text; the levels of a name are joined by points, `a.x`."""
    return ".".join(filter(None, map(str, name))) if isinstance(name, list) else str(name)


def index_of(value: Mapping[str, Any]) -> list[str]:
    """Return the index of a table that pandas wrote by column; empty for any other object.

    Its values are objects with the same integers as keys. Filtered rows leave gaps, shuffled ones another order.

    Args:
        value: column -> index of the row -> cell.
    """
    columns = list(value.values())
    keys = list(columns[0]) if columns and isinstance(columns[0], dict) else []
    alike = all(isinstance(column, dict) and list(column) == keys for column in columns)
    return keys if alike and all(map(str.isdecimal, keys)) else []


def _keyed(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of an object of alike objects, such as {"id1": {...}, "id2": {...}}; None for any other object.

    Rows are alike if each shares at least half of its keys with the first: settings in sections have few in common.
    """
    if len(value) < LEAST_KEYED or not all(isinstance(row, dict) and row for row in value.values()):
        return None
    rows = list(value.values())
    keys = rows[0].keys()
    if TURN_KEYS & keys or any(2 * len(keys & row.keys()) < len(keys | row.keys()) for row in rows):
        return None
    column = "key" if all("key" not in row for row in rows) else "_key"
    return [{column: name, **row} for name, row in value.items()]


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False
