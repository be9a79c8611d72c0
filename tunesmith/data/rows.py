"""Rows of a user's file, each with the place it came from; all faults of a file are told together.

Reads jsonl, ndjson, json, csv, tsv, parquet, and the Hub's data sets as `owner/name` or `owner/name:split`.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Literal, NoReturn, TypeVar

from tunesmith.errors import DataError

T = TypeVar("T")
SHOWN_FAULTS = 20
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?::([\w.-]+))?")
CLOSED_QUOTE = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file; `where` begins every error about it."""

    where: str
    fields: Mapping[str, object]


def read_rows(source: str | Path, *, offline: bool = False) -> list[Row]:
    """Every row of a file or Hub dataset, or one DataError that lists what is wrong with it."""
    path = Path(source)
    if path.is_dir():
        from tunesmith.data.folder import read_folder

        return read_folder(path)
    if path.exists() and path.suffix.lower() not in READERS:
        raise DataError(f"{path.name}: cannot read this kind of file; give one of {', '.join(READERS)}")
    rows = READERS[path.suffix.lower()](path) if path.exists() else _hub_rows(str(source), offline=offline)
    if not rows:
        raise DataError(f"{path.name}: no rows; give a file with at least one")
    return rows


def keep(rows: Sequence[Row], where: Mapping[str, Sequence[object]]) -> list[Row]:
    """The rows whose value is one of the listed ones, in every column of `where`."""
    kept = list(rows)
    for column, values in where.items():
        if not any(column in row.fields for row in rows):
            raise DataError(missing_column(rows, column))
        listed = [values] if isinstance(values, str) else list(values)
        wanted = {_comparable(value) for value in listed}
        left = [row for row in kept if _comparable(row.fields.get(column)) in wanted]
        if not left:
            found = Counter(repr(row.fields.get(column)) for row in kept).most_common(10)
            here = ", ".join(f"{value} ({count})" for value, count in found)
            raise DataError(f"{file_of(rows)}: no row left with {column} in {listed}; values there: {here}")
        kept = left
    return kept


def as_word(value: object) -> str | None:
    """A text, truth value or whole number as its word (1.0 is "1"); None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) else None


def refuse(faults: Sequence[str]) -> NoReturn:
    """Raise the first 20 faults together, one a line, and say how many more there are."""
    more = [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    raise DataError("\n".join([*faults[:SHOWN_FAULTS], *more]))


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Every column that some row has, in the order they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.fields))


def file_of(rows: Sequence[Row]) -> str:
    """The file that the rows came from, as errors name it."""
    return rows[0].where.rpartition(":")[0] or rows[0].where if rows else "data"


def missing_column(rows: Sequence[Row], column: str) -> str:
    """The fault that no row has this column, with the nearest name that one has."""
    columns = columns_of(rows)
    by_lower = {name.lower(): name for name in columns}
    nearest = get_close_matches(column.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[nearest[0]]!r}? " if nearest else ""
    return f"{file_of(rows)}: no column {column!r}; {hint}columns here: {columns}"


def _comparable(value: object) -> tuple[str, str]:
    # By word, so that `1` in a recipe finds the text "1" that a csv holds.
    word = as_word(value)
    return ("json", json.dumps(value, sort_keys=True, default=str)) if word is None else ("word", word)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {str(path.parent)!r} either, check the path"
    nearest = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"give a file that ends in {', '.join(READERS)}"


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror}); check its permissions") from error
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(f"{path.name}: empty; give a file with at least one row")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name}:1: UTF-16, not UTF-8; save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        cure = "save the file as UTF-8 (it may be latin-1 or cp1252)"
        raise DataError(f"{path.name}:{line}: byte 0x{byte:02x} is not UTF-8; {cure}") from error


def _objects(values: Iterable[tuple[str, T]], parse: Callable[[T], object]) -> list[Row]:
    """A row of each (place, value) that is an object once parsed; all that are not, as one DataError."""
    rows, faults = [], []
    for where, value in values:
        try:
            parsed = parse(value)
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: not JSON ({_reason(error)}); write one JSON object on each line")
            continue
        if isinstance(parsed, dict):
            rows.append(Row(where, parsed))
        else:
            faults.append(f'{where}: {type(parsed).__name__}, not an object; write {{"column": value}}')
    return rows if not faults else refuse(faults)


def _rows_of_lines(text: str, name: str) -> list[Row]:
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a text.
    lines = enumerate(text.split("\n"), 1)
    return _objects(((f"{name}:{number}", line) for number, line in lines if line.strip()), json.loads)


def _numbered(values: Iterable[object], name: str) -> list[Row]:
    return _objects(((f"{name}:{n}", value) for n, value in enumerate(values, 1)), lambda value: value)


def _json_lines(path: Path) -> list[Row]:
    return _rows_of_lines(_read_text(path), path.name)


def _json_file(path: Path) -> list[Row]:
    text, name = _read_text(path), path.name
    cure = 'give an array of objects, {"data": [...]}, or one object on each line'
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_object(text):
            return _rows_of_lines(text, name)
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise DataError(f"{name}:{line}: not JSON ({_reason(error)}); {cure}") from error
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    if isinstance(whole, list):
        return _numbered(whole, name)
    if _first_line_is_object(text):
        return _rows_of_lines(text, name)
    keys = f" with the keys {list(whole)}" if isinstance(whole, dict) else ""
    raise DataError(f"{name}: one JSON {type(whole).__name__}{keys}, not rows; {cure}")


def _first_line_is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _separated(path: Path) -> list[Row]:
    text, name = _read_text(path), path.name
    header = text.lstrip("\r\n").partition("\n")[0]
    marks = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    delimiter = next((mark for mark in marks if mark in header), marks[0])
    plain = delimiter == "\t" and _quotes_are_text(text, header)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses a cell above 131072 characters
    try:
        return _rows_of_cells(_cells(text, name, delimiter=delimiter, quoting=quoting), name, delimiter)
    finally:
        csv.field_size_limit(limit)


def _quotes_are_text(text: str, header: str) -> bool:
    """Whether a tsv file was written without quoting: some cell opens a quote and does not close it."""
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
    opened = (cell for line in lines for cell in line if cell.startswith('"'))
    whole = all(len(line) == header.count("\t") + 1 for line in lines)
    return whole and any(not CLOSED_QUOTE.fullmatch(cell) for cell in opened)


def _cells(text: str, name: str, *, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line it starts on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    start = 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        cure = 'close every quoted cell, and write a quote inside it twice ("")'
        raise DataError(f"{name}:{start}: not a table ({error}); {cure}") from error


def _rows_of_cells(lines: Iterator[tuple[int, list[str]]], name: str, delimiter: str) -> list[Row]:
    rows, faults = [], []
    cure = f"write a cell that holds {delimiter!r} in double quotes"
    try:
        number, header = next(lines, (1, [""]))
        header = [cell.strip() for cell in header]
        if twice := sorted({cell for cell in header if header.count(cell) > 1}):
            faults.append(f"{name}:{number}: the header has {twice} twice; give each column its own name")
        for line, cells in lines:
            if len(cells) != len(header):
                faults.append(f"{name}:{line}: {len(cells)} cells, the header has {len(header)}; {cure}")
            else:
                rows.append(Row(f"{name}:{line}", dict(zip(header, cells, strict=True))))
    except DataError as error:
        faults.append(str(error))
    return rows if not faults else refuse(faults)


def _parquet(path: Path) -> list[Row]:
    arrow, parquet = _library("pyarrow", path.name), _library("pyarrow.parquet", path.name)
    try:
        values = parquet.read_table(str(path)).to_pylist()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path.name}: not Parquet ({_reason(error)}); write it as jsonl") from error
    return _numbered(values, path.name)


def _hub_rows(source: str, *, offline: bool) -> list[Row]:
    path, dataset = Path(source), HUB_ID.fullmatch(source)
    if not dataset or path.suffix.lower() in READERS or path.parent.exists():
        raise DataError(f"{source}: no such file; {_nearest_file(path)}")
    if offline:
        cure = "leave out --offline, or give a file"
        raise DataError(f"{source}: no such file, and this run may not ask the Hub for a dataset; {cure}")
    hub, (name, split) = _library("datasets", source), dataset.groups("train")
    # Before version 4 the library could run a script that came with the data.
    if int(hub.__version__.partition(".")[0]) < 4:
        raise DataError(f"{source}: this 'datasets' may run remote code; pip install 'datasets>=4.7'")
    try:
        return _numbered(hub.load_dataset(name, split=split), name)
    except (hub.exceptions.DatasetsError, OSError, ValueError) as error:
        cure = f"check the name and the network, or write '{name}:SPLIT'"
        raise DataError(f"{name}: cannot get its {split!r} split ({_reason(error)}); {cure}") from error


def _library(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        raise DataError(f"{where}: needs {library!r}; pip install {library}, or give a jsonl file") from error


def _reason(error: Exception) -> str:
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
