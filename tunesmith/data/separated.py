"""Tables with a separator, csv and tsv, row by row: a file need not fit into memory."""

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
from tunesmith.data.rows import SHOWN_FAULTS, Row, not_utf8, refuse, unreadable
from tunesmith.errors import DataError

CLOSED_QUOTE = re.compile(r'"(?:[^"]|"")*"')
LOOKED_AT = 50  # lines
LONGEST_CELL = 2**31 - 1  # the csv module refuses a cell above 131072 characters unless it is told otherwise


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line of a table that is no row, and why."""

    line: int
    why: str


def read_separated(path: Path) -> Iterator[Row]:
    """Every row of a csv or tsv file, in order; after the last, one DataError for all that is wrong with the file."""
    faults, more = list[str](), 0
    try:
        for row in read_table(path):
            if isinstance(row, Row):
                yield row
            elif len(faults) < SHOWN_FAULTS:  # a file may be nothing but faults
                faults.append(f"{path.name}:{row.line}: {row.why}")
            else:
                more += 1
    except DataError as error:
        faults.append(str(error))
    if faults:
        refuse(faults, more=more)


def read_table(path: Path) -> Iterator[Row | BrokenLine]:
    """Every line of a csv or tsv file as a row, or why it is none. Raises DataError for what is no table."""
    name, header = path.name, _first_line(path)
    if not header:
        raise DataError(f"{name}: empty; give a file with at least one row")
    if header.lower().startswith("sep="):
        raise DataError(f"{name}:1: {header.strip()!r} is for Excel alone; take that line out")
    marks = "\t" if path.suffix.lower() == ".tsv" else ",;\t|"
    mark = max(marks, key=partial(_cuts, path))
    plain = mark == "\t" and _quotes_are_text(path, header)
    return _rows(_cells(path, mark, csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL), name, mark)


def _cuts(path: Path, mark: str) -> tuple[bool, float, int]:
    """How well a mark cuts the first rows: the header at all, how many as the header, and into how many cells.

    A cell may hold other marks, and the end of a line.
    """
    with closing(_lines(path, "")) as lines:
        reader = csv.reader(islice(lines, LOOKED_AT), delimiter=mark)
        try:
            rows = [cells for cells in iter(lambda: _next(reader), None) if any(cell.strip() for cell in cells)]
        except csv.Error:  # the table is read with the mark that is found, and says where it is broken
            rows = []
    sizes = [len(cells) for cells in rows] or [0]
    return sizes[0] > 1, sizes.count(sizes[0]) / len(sizes), sizes[0]


def _rows(lines: Iterator[tuple[int, list[str]]], name: str, mark: str) -> Iterator[Row | BrokenLine]:
    number, header = next(lines, (1, [""]))
    header = [cell.strip() for cell in header]
    if twice := sorted({cell for cell in header if cell and header.count(cell) > 1}):
        raise DataError(f"{name}:{number}: the header has {twice} twice; give each column its own name")
    cure = f"write a cell that holds {mark!r} in double quotes"
    nameless = [place for place, cell in enumerate(header) if not cell]
    for line, found in lines:
        # A program that ends each line with a mark adds cells that hold nothing.
        cells = found if any(cell.strip() for cell in found[len(header) :]) else found[: len(header)]
        if len(cells) != len(header):
            yield BrokenLine(line, f"{len(cells)} cells, the header has {len(header)}; {cure}")
        elif len([place for place in nameless if cells[place].strip()]) > 1:
            raise DataError(
                f"{name}:{line}: {len(nameless)} columns have no name, and hold values; name them in line 1"
            )
        else:
            yield Row(f"{name}:{line}", dict(zip(header, cells, strict=True)))


def _cells(path: Path, mark: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line it starts on."""
    start = 1
    with closing(_lines(path, "")) as lines:
        reader = csv.reader(lines, delimiter=mark, quoting=quoting, strict=True)
        try:
            while (cells := _next(reader)) is not None:
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield start, cells
                start = reader.line_num + 1
        except csv.Error as error:
            cure = 'close every quoted cell, and write a quote inside it twice ("")'
            raise DataError(f"{path.name}:{start}: not a table ({error}); {cure}") from error


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row; the limit, which is the whole process's, is back in its place before anything else runs."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _first_line(path: Path) -> str:
    """The first line with anything on it; blank for a file that has none."""
    with closing(_lines(path, "")) as lines:
        return next((line for line in lines if line.strip()), "")


def _quotes_are_text(path: Path, header: str) -> bool:
    """Whether a tsv file was written without quoting: some cell opens a quote and does not close it."""
    found = False
    if "\t" not in header:  # a cell with a line end looks like two rows there
        return False
    with closing(_lines(path, "\n")) as lines:
        for line in filter(str.strip, lines):
            cells = line.rstrip("\n").rstrip("\r").split("\t")
            if len(cells) != header.count("\t") + 1:
                return False
            found = found or any(cell.startswith('"') and not CLOSED_QUOTE.fullmatch(cell) for cell in cells)
    return found


def _lines(path: Path, newline: Literal["", "\n"]) -> Generator[str, None, None]:
    """The lines of a file with their ends. Raises DataError where it is not UTF-8 or cannot be read."""
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
    """The fault of the first byte that is not UTF-8: decoding in blocks does not say where it lies."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return not_utf8(path.name, number, line[error.start])
    return f"{path.name}: not UTF-8; save the file as UTF-8"
