"""The rows of a file, a chunk at a time, so that a file need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunesmith.data.files import read_json, refuse_utf16
from tunesmith.data.rows import READERS, SHOWN_FAULTS, Row, read_rows, reason, refuse, unreadable
from tunesmith.data.separated import BrokenLine, read_table
from tunesmith.errors import DataError

CURE = "; write one JSON object on each line"
CHUNK_ROWS = 2000
CHUNK_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Consecutive rows: their lines in the file, and each as raw JSON, as columns, or why it is none."""

    lines: list[int]
    rows: Sequence[bytes | dict[str, object] | str]


def chunks(source: str, *, offline: bool = False) -> Iterator[RowChunk]:
    """All rows of a file. Lines of jsonl come unparsed, so that a line that is no row is a finding, not an end.

    jsonl, csv and tsv are streamed; json, parquet and Hub data sets are read whole. Raises DataError for what cannot be
    read, of a table after its last row.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir():
        cure = f"make rows of its documents first: tunesmith collect {source} --out rows.jsonl"
        raise DataError(f"{source}: a folder, which has no lines to point at; {cure}")
    if path.is_file() and suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif path.is_file() and suffix in (".csv", ".tsv"):
        yield from _table(path)
    else:
        rows = read_rows(source, offline=offline)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS]
            yield RowChunk([line_of(row) for row in part], [dict(row.fields) for row in part])


def name_of(source: str) -> str:
    """The file as `where` names it."""
    return Path(source).name if Path(source).suffix.lower() in READERS else source


def line_of(row: Row) -> int:
    """The line at the end of a row's `where`."""
    return int(row.where.rpartition(":")[2])


def parsed(raw: bytes | dict[str, object] | str) -> dict[str, object] | str:
    """The columns of a row, or why the line is no row."""
    if isinstance(raw, dict | str):
        return raw
    try:
        value = read_json(raw.rstrip(b"\r\n"))  # else a fault at the end is told of a line 2
    except (ValueError, RecursionError) as error:
        return f"not JSON ({reason(error)})"
    return value if isinstance(value, dict) else f"{type(value).__name__}, not an object"


def head(source: str, count: int, *, offline: bool = False) -> list[Row]:
    """The first rows that can be read, for their format to be told. Raises DataError where there is none."""
    rows, faults, more = list[Row](), list[str](), 0
    name = name_of(source)
    for chunk in chunks(source, offline=offline):
        for line, raw in zip(chunk.lines, chunk.rows, strict=True):
            fields = parsed(raw)
            if isinstance(fields, dict):
                rows.append(Row(f"{name}:{line}", fields))
            elif len(faults) < SHOWN_FAULTS:  # a file may be nothing but faults
                faults.append(f"{name}:{line}: {fields}{'' if isinstance(raw, str) else CURE}")
            else:
                more += 1
        if len(rows) >= count:
            break
    if not rows and faults:
        refuse(faults, more=more)
    if not rows:
        raise DataError(f"{name}: no rows; give a file with at least one")
    return rows[:count]


def has_column(source: str, column: str, *, offline: bool = False) -> bool:
    """Whether any row of a file has this column."""
    rows = (parsed(raw) for chunk in chunks(source, offline=offline) for raw in chunk.rows)
    return any(column in fields for fields in rows if isinstance(fields, dict))


def _json_lines(path: Path) -> Iterator[RowChunk]:
    lines: list[int] = []
    raws: list[bytes] = []
    held = 0
    try:
        file = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                refuse_utf16(raw, path.name)
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            lines.append(number)
            raws.append(raw)
            held += len(raw)
            if len(raws) >= CHUNK_ROWS or held >= CHUNK_BYTES:
                yield RowChunk(lines, raws)
                lines, raws, held = [], [], 0
    if raws:
        yield RowChunk(lines, raws)


def _table(path: Path) -> Iterator[RowChunk]:
    lines = read_table(path)
    while part := list(islice(lines, CHUNK_ROWS)):
        yield RowChunk(
            [one.line if isinstance(one, BrokenLine) else line_of(one) for one in part],
            [one.why if isinstance(one, BrokenLine) else dict(one.fields) for one in part],
        )
