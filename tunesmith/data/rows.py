"""Rows of a user's file, each with the place it came from; all faults of a file are told together.

Reads jsonl, ndjson, json, csv, tsv, parquet, and the Hub's data sets as `owner/name` or `owner/name:split`.
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
    """What came from a place in a file."""

    @property
    def where(self) -> str:
        """file:line."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file; `where` begins every error about it."""

    where: str
    fields: Mapping[str, object]


def read_rows(source: str | Path, *, offline: bool = False) -> list[Row]:
    """Every row of a file or Hub dataset, or one DataError that lists what is wrong with it."""
    path = Path(source)
    there = is_there(path)
    if there and path.is_dir():
        from tunesmith.data.folder import read_folder

        return read_folder(path)
    if there and path.suffix.lower() not in READERS:
        raise DataError(f"{path.name}: cannot read this kind of file; {_readable(path)}")
    rows = READERS[path.suffix.lower()](path) if there else _from_hub(str(source), offline=offline)
    if not rows:
        raise DataError(f"{path.name}: no rows; give a file with at least one")
    return rows


def _from_hub(source: str, *, offline: bool) -> list[Row]:
    """The rows of a data set of the Hub. Raises DataError for what can be none."""
    path, dataset = Path(source), HUB_ID.fullmatch(source)
    if not dataset or path.suffix.lower() in READERS or is_there(path.parent):
        raise DataError(f"{source}: no such file; {_nearest_file(path)}")
    if offline:
        cure = "leave out --offline, or give a file"
        raise DataError(f"{source}: no such file, and this run may not ask the Hub for a dataset; {cure}")
    from tunesmith.data.columnar import read_hub

    name, split = dataset.groups("train")
    return read_hub(source, str(name), str(split))


def _readable(path: Path) -> str:
    """What to give in place of a file of another kind."""
    from tunesmith.data.collect.convert import READERS as DOCUMENTS

    if path.suffix.lower() in DOCUMENTS:
        return f"give the folder of your documents, or what `tunesmith collect {path.name}` makes of this one"
    return f"give one of {', '.join(READERS)}"


def keep(rows: Sequence[Row], where: Mapping[str, Sequence[object]]) -> list[Row]:
    """The rows whose value is one of the listed ones, in every column of `where`."""
    kept = list(rows)
    for column, values in where.items():
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))
        wanted = listed({column: values})
        left = [row for row in kept if has_listed(row.fields, wanted)]
        if not left:
            found = Counter(repr(row.fields.get(column)) for row in kept).most_common(10)
            here = ", ".join(f"{value} ({count})" for value, count in found)
            asked = [values] if isinstance(values, str) else list(values)
            raise DataError(f"{file_of(rows)}: no row left with {column} in {asked}; values there: {here}")
        kept = left
    return kept


def listed(where: Mapping[str, Sequence[object]]) -> Listed:
    """The values of `where` as they are compared with those of rows."""
    lists = {column: [values] if isinstance(values, str) else values for column, values in where.items()}
    return {column: frozenset(map(_comparable, values)) for column, values in lists.items()}


def has_listed(fields: Mapping[str, object], wanted: Listed) -> bool:
    """Whether a row has one of the listed values in every column."""
    return all(_comparable(fields.get(column)) in values for column, values in wanted.items())


def as_word(value: object) -> str | None:
    """A text, truth value, day or whole number as its word (1.0 is "1"); None for anything else."""
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))  # warehouses unload whole numbers as decimals
    return str(value) if isinstance(value, str | int | date) else None


def refuse(faults: Sequence[str], *, more: int = 0, kind: type[DataError] = DataError) -> NoReturn:
    """Raise the first 20 faults together, one a line, and say how many more there are, with `more` not given."""
    more += len(faults[SHOWN_FAULTS:])
    raise kind("\n".join([*faults[:SHOWN_FAULTS], *([f"... and {more} more"] if more else [])]))


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Every column that some row has, in the order they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.fields))


def file_of(rows: Sequence[Placed]) -> str:
    """The file or the folder that the rows came from, as errors name it."""
    return rows[0].where.rpartition(":")[0] or rows[0].where.partition("/")[0] if rows else "data"


def missing_column(rows: Sequence[Row], column: str) -> str:
    """The fault that no row has this column, with the nearest name that one has."""
    columns = columns_of(rows)
    by_lower = {name.lower(): name for name in columns}
    nearest = get_close_matches(column.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    return f"{file_of(rows)}: no column {column!r}; {hint}columns here: {columns}"


def _comparable(value: object) -> tuple[str, str]:
    # By word, so that `1`, `0.5`, `true` and `2024-01-05` in a recipe find the texts that a csv holds.
    word = as_word(value)
    word = str(value) if word is None and isinstance(value, float) else word
    if word is None:
        return ("json", json.dumps(value, sort_keys=True, default=str))
    return ("word", word.lower() if word.lower() in ("true", "false") else word)


def _nearest_file(path: Path) -> str:
    if not (is_there(path.parent) and path.parent.is_dir()):
        return f"there is no folder {str(path.parent)!r} either, check the path"
    if is_link(path):
        return f"it is a link to {str(path.readlink())!r}, where nothing is"
    nearest = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"give a file that ends in {', '.join(READERS)}"


def unreadable(path: Path, error: OSError) -> DataError:
    """The error of a file that the disk does not give."""
    return DataError(f"{path.name}: cannot be read ({error.strerror}); check its permissions")


def not_utf8(name: str, line: int, byte: int) -> str:
    """The fault of a byte that is not UTF-8."""
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
    """A row of each (place, value) that is an object once parsed; all that are not, as one DataError."""
    rows, faults = [], []
    for where, value in values:
        try:
            parsed = parse(value)
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: not JSON ({reason(error)}); write one JSON object on each line")
            continue
        if isinstance(parsed, dict):
            rows.append(Row(where, parsed))
        else:
            faults.append(f'{where}: {type(parsed).__name__}, not an object; write {{"column": value}}')
    return rows if not faults else refuse(faults)


def _rows_of_lines(text: str, name: str) -> list[Row]:
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
    lines = enumerate(text.split("\n"), 1)
    return _objects(((f"{name}:{number}", line) for number, line in lines if line.strip()), read_json)


def numbered(values: Iterable[object], name: str) -> list[Row]:
    """A row of each value, which has to be an object; its number is its place."""
    return _objects(((f"{name}:{n}", value) for n, value in enumerate(values, 1)), lambda value: value)


def _json_lines(path: Path) -> list[Row]:
    return _rows_of_lines(_read_text(path), path.name)


def _json_file(path: Path) -> list[Row]:
    text, name = _read_text(path), path.name
    cure = 'give an array of objects, {"data": [...]}, or one object on each line'
    try:
        whole = read_json(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_object(text):
            return _rows_of_lines(text, name)
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{name}:{line}: not JSON ({reason(error)}); {cure}") from error
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    if isinstance(whole, list):
        return numbered(whole, name)
    if _first_line_is_object(text) and not any(map(_is_rows, whole.values())):
        return _rows_of_lines(text, name)
    keys = f" with the keys {list(whole)}" if isinstance(whole, dict) else ""
    raise DataError(f"{name}: one JSON {type(whole).__name__}{keys}, not rows; {cure}")


def _is_rows(value: object) -> bool:
    """Whether this is a list of rows, or holds one: no turns, which have a role."""
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
    """Why a library refused, on one line."""
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
