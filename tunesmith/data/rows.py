"""Rows of a user's file, each with its location; all errors of a file are reported together.

Reads jsonl, ndjson, json, csv, tsv, parquet, folders of documents, and datasets of the Hugging Face Hub as
`owner/name` or `owner/name:split`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from tunesmith.data.files import is_link, is_there, read_json, refuse_utf16
from tunesmith.errors import DataError

T = TypeVar("T")
Listed = Mapping[str, frozenset[tuple[str, str]]]
SHOWN_FAULTS = 20
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?::([\w.-]+))?")


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


def read_rows(source: str | Path, *, offline: bool = False) -> list[Row]:
    """Load all rows of a file, a folder of documents or a Hub dataset.

    Args:
        source: path, or `owner/name[:split]` of a Hub dataset.
        offline: do not download datasets.

    Returns:
        At least one row, in file order.

    Raises:
        DataError: if anything cannot be read; one message lists up to 20 errors of the file.
    """
    path = Path(source)
    there = is_there(path)
    if there and path.is_dir():
        from tunesmith.data.folder import read_folder

        return read_folder(path)
    if there and path.suffix.lower() not in READERS:
        from tunesmith.data.collect.convert import READERS as DOCUMENTS

        fix = f"give one of {', '.join(READERS)}"
        if path.suffix.lower() in DOCUMENTS:
            fix = f"give the folder of your documents, or the output of `tunesmith collect {path.name}`"
        raise DataError(f"{path.name}: unsupported file type; {fix}")
    rows = READERS[path.suffix.lower()](path) if there else _from_hub(str(source), offline=offline)
    if not rows:
        raise DataError(f"{path.name}: no rows; give a file with at least one")
    return rows


def _from_hub(source: str, *, offline: bool) -> list[Row]:
    """Load a Hub dataset; raise DataError if the name cannot be one."""
    path, dataset = Path(source), HUB_ID.fullmatch(source)
    if not dataset or path.suffix.lower() in READERS or is_there(path.parent):
        raise DataError(f"{source}: no such file; {_nearest_file(path)}")
    if offline:
        raise DataError(
            f"{source}: no such file, and --offline forbids downloading a dataset; omit --offline or give a file"
        )
    from tunesmith.data.columnar import read_hub

    name, split = dataset.groups("train")
    return read_hub(source, str(name), str(split))


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
        allowed = listed({column: values})
        matching = [row for row in selected if has_listed(row.fields, allowed)]
        if not matching:
            counts = Counter(repr(row.fields.get(column)) for row in selected).most_common(10)
            present = ", ".join(f"{value} ({count})" for value, count in counts)
            expected = [values] if isinstance(values, str) else list(values)
            raise DataError(f"{file_of(rows)}: no row has {column} in {expected}; values in the file: {present}")
        selected = matching
    return selected


def listed(where: Mapping[str, Sequence[object]]) -> Listed:
    """Return the allowed values of `where` in the form in which they are compared."""
    lists = {column: [values] if isinstance(values, str) else values for column, values in where.items()}
    return {column: frozenset(map(_comparable, values)) for column, values in lists.items()}


def has_listed(fields: Mapping[str, object], allowed: Listed) -> bool:
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
    """Return all columns that occur in any row, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.fields))


def file_of(rows: Sequence[Placed]) -> str:
    """Return the file or folder that the rows are from, as error messages name it."""
    return rows[0].where.rpartition(":")[0] or rows[0].where.partition("/")[0] if rows else "data"


def missing_column(rows: Sequence[Row], column: str) -> str:
    """Return the error message for a column that no row has, with the nearest existing name."""
    columns = columns_of(rows)
    by_lower = {name.lower(): name for name in columns}
    nearest = get_close_matches(column.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    return f"{file_of(rows)}: no column {column!r}; {hint}columns here: {columns}"


def _comparable(value: object) -> tuple[str, str]:
    # Compared as words, so that `1`, `0.5`, `true` and `2024-01-05` in a recipe match the text cells of a csv.
    word = as_word(value)
    word = str(value) if word is None and isinstance(value, float) else word
    if word is None:
        return ("json", json.dumps(value, sort_keys=True, default=str))
    return ("word", word.lower() if word.lower() in ("true", "false") else word)


def _nearest_file(path: Path) -> str:
    if not (is_there(path.parent) and path.parent.is_dir()):
        return f"the folder {str(path.parent)!r} does not exist either, check the path"
    if is_link(path):
        return f"it is a broken link to {str(path.readlink())!r}"
    nearest = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"give a file that ends in {', '.join(READERS)}"


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the operating system does not open."""
    return DataError(f"{path.name}: cannot be read ({error.strerror}); check its permissions")


def not_utf8(name: str, line: int, byte: int) -> str:
    """Return the error message for a byte that is not UTF-8."""
    return f"{name}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8 (it may be latin-1 or cp1252)"


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{path.name}: empty; give a file with at least one row")
    refuse_utf16(data, path.name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(not_utf8(path.name, line, error.object[error.start])) from error


def _objects(values: Iterable[tuple[str, T]], parse: Callable[[T], object]) -> list[Row]:
    """Return a row for each (location, value) that parses to an object; report all others in one DataError."""
    rows, errors = [], []
    for where, value in values:
        try:
            parsed = parse(value)
        except (ValueError, RecursionError) as error:
            errors.append(f"{where}: invalid JSON ({reason(error)}); write one JSON object per line")
            continue
        if isinstance(parsed, dict):
            rows.append(Row(where, parsed))
        else:
            errors.append(f'{where}: expected an object, got {type(parsed).__name__}; write {{"column": value}}')
    return rows if not errors else refuse(errors)


def _rows_of_lines(text: str, name: str) -> list[Row]:
    # Only "\n" ends a line: str.splitlines would also split at U+2028 inside a text.
    lines = enumerate(text.split("\n"), 1)
    return _objects(((f"{name}:{number}", line) for number, line in lines if line.strip()), read_json)


def numbered(values: Iterable[object], name: str) -> list[Row]:
    """Return a row for each value, which must be an object; its location is its position, counted from 1."""
    return _objects(((f"{name}:{n}", value) for n, value in enumerate(values, 1)), lambda value: value)


def _json_lines(path: Path) -> list[Row]:
    return _rows_of_lines(_read_text(path), path.name)


def _json_file(path: Path) -> list[Row]:
    text, name = _read_text(path), path.name
    fix = 'give an array of objects, {"data": [...]}, or one object per line'
    try:
        value = read_json(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_object(text):
            return _rows_of_lines(text, name)
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{name}:{line}: invalid JSON ({reason(error)}); {fix}") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, list):
        return numbered(value, name)
    if _first_line_is_object(text) and not any(map(_is_rows, value.values())):
        return _rows_of_lines(text, name)
    keys = f" with the keys {list(value)}" if isinstance(value, dict) else ""
    raise DataError(f"{name}: expected rows, got one JSON {type(value).__name__}{keys}; {fix}")


def _is_rows(value: object) -> bool:
    """Return whether the value is, or contains, a list of rows; chat turns, which have a role, are not rows."""
    if isinstance(value, dict):
        return any(map(_is_rows, value.values()))
    return isinstance(value, list) and any(isinstance(one, dict) and not {"role", "from"} & one.keys() for one in value)


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _separated(path: Path) -> list[Row]:
    from tunesmith.data.separated import read_separated

    return list(read_separated(path))


def _parquet(path: Path) -> list[Row]:
    from tunesmith.data.columnar import read_parquet

    return read_parquet(path)


def reason(error: Exception) -> str:
    """Return a library's error message on one line."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return " ".join(str(error).split())


READERS: Mapping[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
