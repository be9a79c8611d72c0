"""Tables with separators, csv and tsv, streamed: a file need not fit into memory."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from tunesmith.data.files import refuse_utf16
from tunesmith.data.readers.row import SHOWN_FAULTS, Row, not_utf8, refuse, unreadable
from tunesmith.errors import DataError

CLOSED_QUOTE = re.compile(r'"(?:[^"]|"")*"')
LOOKED_AT = 50  # lines
LONGEST_CELL = 2**31 - 1  # the default of the csv module rejects cells above 131072 characters


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line of a table that is not a row, and the reason."""

    line: int
    why: str


def read_separated(path: Path) -> Iterator[Row]:
    """Yield the rows of a csv or tsv file in order, then raise one DataError that lists every broken line."""
    errors, more = list[str](), 0
    try:
        for row in read_table(path):
            if isinstance(row, Row):
                yield row
            elif len(errors) < SHOWN_FAULTS:  # every line may be broken
                errors.append(f"{path.name}:{row.line}: {row.why}")
            else:
                more += 1
    except DataError as error:
        errors.append(str(error))
    if errors:
        refuse(errors, more=more)


def read_table(path: Path) -> Iterator[Row | BrokenLine]:
    """Yield each line of a csv or tsv file as a row or as a BrokenLine. Raise DataError if it is not a table."""
    name = path.name
    with closing(_lines(path, "")) as lines:
        header = next((line for line in lines if line.strip()), "")
    if not header:
        raise DataError(f"{name}: empty; give a file with at least one row")
    if header.lower().startswith("sep="):
        raise DataError(f"{name}:1: {header.strip()!r} is an Excel directive, not a header; delete this line")
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
    separator = max(separators, key=partial(_cuts, path))
    plain = separator == "\t" and _quotes_are_text(path, header)
    return _rows(_cells(path, separator, csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL), name, separator)


def _cuts(path: Path, separator: str) -> tuple[bool, float, int]:
    """Rate a separator on the first rows: (it splits the header, share of rows with as many cells, number of cells).

    Cells may contain other separators and line breaks.
    """
    with closing(_lines(path, "")) as lines:
        reader = csv.reader(islice(lines, LOOKED_AT), delimiter=separator)
        try:
            rows = [cells for cells in iter(lambda: _next(reader), None) if any(cell.strip() for cell in cells)]
        except csv.Error:  # reported with its location when the table is read
            rows = []
    sizes = [len(cells) for cells in rows] or [0]
    return sizes[0] > 1, sizes.count(sizes[0]) / len(sizes), sizes[0]


def _rows(lines: Iterator[tuple[int, list[str]]], name: str, separator: str) -> Iterator[Row | BrokenLine]:
    """Match cells with the header and yield rows."""
    first, header = next(lines, (1, [""]))
    header = [cell.strip() for cell in header]
    if twice := sorted({cell for cell in header if cell and header.count(cell) > 1}):
        raise DataError(f"{name}:{first}: duplicate column names {twice}; give each column its own name")
    fix = f"put cells that contain {separator!r} in double quotes"
    nameless = [index for index, cell in enumerate(header) if not cell]
    for line, raw in lines:
        # Some programs end each line with a separator, which adds empty cells.
        cells = raw if any(cell.strip() for cell in raw[len(header) :]) else raw[: len(header)]
        if len(cells) != len(header):
            yield BrokenLine(line, f"expected {len(header)} cells as in the header, got {len(cells)}; {fix}")
        elif len([index for index in nameless if cells[index].strip()]) > 1:
            raise DataError(f"{name}:{line}: {len(nameless)} columns with values have no name; name them in line 1")
        else:
            yield Row(f"{name}:{line}", dict(zip(header, cells, strict=True)))


def _cells(path: Path, separator: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each non-blank row with the line on which it starts."""
    start = 1
    with closing(_lines(path, "")) as lines:
        reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        try:
            while (cells := _next(reader)) is not None:
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield start, cells
                start = reader.line_num + 1
        except csv.Error as error:
            fix = 'close every quoted cell, and double each quote inside it ("")'
            raise DataError(f"{path.name}:{start}: invalid table ({error}); {fix}") from error


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    """Return the next row. The csv field size limit is global to the process, so it is restored after every row."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _quotes_are_text(path: Path, header: str) -> bool:
    """Return whether a tsv file was written without quoting: a cell starts with a quote and does not close it."""
    unclosed = False
    if "\t" not in header:  # with one column, a cell that contains a line break looks like two rows
        return False
    with closing(_lines(path, "\n")) as lines:
        for line in filter(str.strip, lines):
            cells = line.rstrip("\n").rstrip("\r").split("\t")
            if len(cells) != header.count("\t") + 1:
                return False
            unclosed = unclosed or any(cell.startswith('"') and not CLOSED_QUOTE.fullmatch(cell) for cell in cells)
    return unclosed


def _lines(path: Path, newline: Literal["", "\n"]) -> Generator[str, None, None]:
    """Yield the lines of a file with their line ends. Raise DataError if it cannot be read or is not UTF-8."""
    try:
        with path.open("rb") as file:
            refuse_utf16(file.read(2), path.name)
        with path.open(encoding="utf-8-sig", newline=newline) as text:
            yield from text
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path)) from None
    except OSError as error:
        raise unreadable(path, error) from error


def _not_utf8(path: Path) -> str:
    """Return the message for the first byte that is not UTF-8; the incremental decoder does not report its line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return not_utf8(path.name, number, line[error.start])
    return f"{path.name}: not UTF-8; save the file as UTF-8"
