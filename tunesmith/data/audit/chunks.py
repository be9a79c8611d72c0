"""The rows of a file in chunks, so that a file need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunesmith.data.files import quoted, read_json
from tunesmith.data.readers.csv_tsv import BrokenLine, read_table
from tunesmith.data.readers.read import LINES, TABLES, RowStream, check_kind, read_rows
from tunesmith.data.readers.row import SHOWN_FAULTS, Row, fields_of, nested, reason, refuse
from tunesmith.data.readers.text_file import TextFile, locate, open_text
from tunesmith.errors import DataError

FIX = "; write one JSON object per line"
CHUNK_ROWS = 2000
CHUNK_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Consecutive rows: the line of each, and each row as raw JSON, as columns, or as the reason why it is invalid."""

    lines: list[int]
    rows: Sequence[bytes | dict[str, object] | str]


def chunks(source: str, *, offline: bool = False) -> Iterator[RowChunk]:
    """Yield all rows of a file in chunks. Lines of jsonl are not parsed, so that an invalid line becomes a finding.

    jsonl, csv, tsv and parquet are streamed; json, workbooks and Hub datasets are read at once.

    Raises:
        DataError: if the file cannot be read; for a table, after its last row.
    """
    if Path(source).is_dir():
        fix = f"convert its documents to rows first: `tunesmith collect {quoted(source)} --as domain --out rows.jsonl`"
        raise DataError(f"{source}: expected a file, got a folder; {fix}")
    file = locate(source)
    if file and check_kind(file).kind in LINES:
        yield from _json_lines(open_text(file))
    elif file and file.kind in TABLES:
        table = read_table(open_text(file), file.kind)
        while entries := list(islice(table, CHUNK_ROWS)):
            yield RowChunk(
                [entry.line if isinstance(entry, BrokenLine) else line_of(entry) for entry in entries],
                [entry.why if isinstance(entry, BrokenLine) else dict(entry.fields) for entry in entries],
            )
    else:
        is_parquet = file is not None and file.kind == ".parquet"
        rows = iter(RowStream(source, {}) if is_parquet else read_rows(source, offline=offline))
        while part := list(islice(rows, CHUNK_ROWS)):
            yield RowChunk([line_of(row) for row in part], [dict(row.fields) for row in part])


def name_of(source: str) -> str:
    """Return the name of the file as row locations use it."""
    file = locate(source)
    return file.name if file else source


def line_of(row: Row) -> int:
    """Return the line number at the end of a row's location."""
    return int(row.where.rpartition(":")[2])


def parsed(raw: bytes | dict[str, object] | str) -> Mapping[str, object] | str:
    """Return the columns of a row, or the reason why the line is not a row."""
    if isinstance(raw, str):
        return raw
    if isinstance(raw, dict):
        return nested(raw)
    try:
        value = read_json(raw.rstrip(b"\r\n"))  # otherwise an error at the end would be reported on line 2
    except (ValueError, RecursionError) as error:
        return f"invalid JSON ({reason(error)})"
    fields = fields_of(value)
    return f"expected an object, got {type(value).__name__}" if fields is None else nested(fields)


def head(source: str, count: int, *, offline: bool = False) -> list[Row]:
    """Load the first readable rows, for format detection.

    Args:
        source: file or Hub dataset.
        count: number of rows, at most.
        offline: do not download datasets.

    Raises:
        DataError: if no row can be read.
    """
    rows, errors, more = list[Row](), list[str](), 0
    name = name_of(source)
    for chunk in chunks(source, offline=offline):
        for line, raw in zip(chunk.lines, chunk.rows, strict=True):
            fields = parsed(raw)
            if not isinstance(fields, str):
                rows.append(Row(f"{name}:{line}", fields))
            elif len(errors) < SHOWN_FAULTS:  # every line may be broken
                errors.append(f"{name}:{line}: {fields}{'' if isinstance(raw, str) else FIX}")
            else:
                more += 1
        if len(rows) >= count:
            break
    if not rows and errors:
        refuse(errors, more=more)
    if not rows:
        raise DataError(f"{name}: no rows; give a file with at least one")
    return rows[:count]


def has_column(source: str, column: str, *, offline: bool = False) -> bool:
    """Return whether any row of a file has the column.

    Args:
        source: file or Hub dataset.
        column: name of the column.
        offline: do not download datasets.
    """
    rows = (parsed(raw) for chunk in chunks(source, offline=offline) for raw in chunk.rows)
    return any(column in fields for fields in rows if not isinstance(fields, str))


def _json_lines(text: TextFile) -> Iterator[RowChunk]:
    lines: list[int] = []
    raws: list[bytes] = []
    size = 0
    with text.open_bytes() as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            lines.append(number)
            raws.append(raw)
            size += len(raw)
            if len(raws) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield RowChunk(lines, raws)
                lines, raws, size = [], [], 0
    if raws:
        yield RowChunk(lines, raws)
