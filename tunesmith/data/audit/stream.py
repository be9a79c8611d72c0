"""The rows of a file, a chunk at a time, so that a file need not fit into memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.rows import READERS, Row, read_rows
from tunesmith.errors import DataError

CHUNK_ROWS = 2000
CHUNK_BYTES = 4_000_000
LARGE_TABLE = 50_000_000  # bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows: their lines in the file, and each as raw JSON or as columns."""

    lines: list[int]
    rows: Sequence[bytes | dict[str, object]]


def chunks(source: str, *, offline: bool = False) -> Iterator[Chunk]:
    """All rows of a file. Lines of jsonl come unparsed, so that a line that is no row is a finding, not an end.

    jsonl and plain csv are streamed; json, parquet and Hub data sets are read whole.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif path.is_file() and suffix in (".csv", ".tsv") and _streams(path):
        yield from _table(path)
    else:
        rows = read_rows(source, offline=offline)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = rows[start : start + CHUNK_ROWS]
            yield Chunk([line_of(row) for row in part], [dict(row.fields) for row in part])


def name_of(source: str) -> str:
    """The file as `where` names it."""
    return Path(source).name if Path(source).suffix.lower() in READERS else source.partition(":")[0]


def line_of(row: Row) -> int:
    """The line at the end of a row's `where`."""
    return int(row.where.rpartition(":")[2])


def parsed(raw: bytes | dict[str, object]) -> dict[str, object] | str:
    """The columns of a row, or why the line is no row."""
    if isinstance(raw, dict):
        return raw
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else f"{type(value).__name__}, not an object"


def head(source: str, count: int, *, offline: bool = False) -> list[Row]:
    """The first rows that can be read, for their format to be told. Raises DataError where there is none."""
    rows: list[Row] = []
    name = name_of(source)
    for chunk in chunks(source, offline=offline):
        for line, raw in zip(chunk.lines, chunk.rows, strict=True):
            fields = parsed(raw)
            if isinstance(fields, dict):
                rows.append(Row(f"{name}:{line}", fields))
        if len(rows) >= count:
            break
    if not rows:
        raise DataError(f"{name}: no rows; give a file with at least one")
    return rows[:count]


def _json_lines(path: Path) -> Iterator[Chunk]:
    lines: list[int] = []
    raws: list[bytes] = []
    held = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            lines.append(number)
            raws.append(raw)
            held += len(raw)
            if len(raws) >= CHUNK_ROWS or held >= CHUNK_BYTES:
                yield Chunk(lines, raws)
                lines, raws, held = [], [], 0
    if raws:
        yield Chunk(lines, raws)


def _streams(path: Path) -> bool:
    """Whether the table is too large to be read whole with all its checks; a small one is."""
    return path.stat().st_size > LARGE_TABLE


def _table(path: Path) -> Iterator[Chunk]:
    """A large table, read row by row; raises DataError at its first broken row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        marks = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
        mark = next((mark for mark in marks if mark in first), marks[0])
        file.seek(0)
        reader = csv.reader(file, delimiter=mark)
        try:
            yield from _grouped(reader, path.name)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path.name}:{reader.line_num}: not a table ({error}); write it as jsonl") from error


def _grouped(reader: Any, name: str) -> Iterator[Chunk]:
    header = [cell.strip() for cell in next(reader)]
    lines: list[int] = []
    rows: list[dict[str, object]] = []
    start = int(reader.line_num) + 1
    for cells in reader:
        number, start = start, int(reader.line_num) + 1  # a cell may hold line ends: a row is told by its first line
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            cure = "write a cell that holds the separator in double quotes"
            raise DataError(f"{name}:{number}: {len(cells)} cells, the header has {len(header)}; {cure}")
        lines.append(number)
        rows.append(dict(zip(header, cells, strict=True)))
        if len(rows) >= CHUNK_ROWS:
            yield Chunk(lines, rows)
            lines, rows = [], []
    if rows:
        yield Chunk(lines, rows)
