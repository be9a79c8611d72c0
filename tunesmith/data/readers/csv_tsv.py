"""Tables with separators, csv and tsv, streamed: a file need not fit into memory."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from tunesmith.data.readers.row import PLURALS, SHOWN_FAULTS, Row, refuse
from tunesmith.data.readers.text_file import TextFile
from tunesmith.errors import DataError

CLOSED_QUOTE = re.compile(r'"(?:[^"]|"")*"')
# A space and a quoted cell, or its beginning; not a quotation with text after it.
SPACED_QUOTE = re.compile(r' +"(?:[^"]|"")*"?')
LOOKED_AT = 50  # lines
TABLE_SHARE = 0.8  # of the rows have as many cells as most, if lines above the header are a title
SPACED_SHARE = 0.5  # of the rows have a space before a quoted cell, if such spaces do not belong to cells
SEPARATORS = ",;\t|"
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
DECIMAL_COMMA = re.compile(r"[+-]?\d{1,3}(\.\d{3})*,\d+|[+-]?\d+,\d+")
# A point in a column with decimal commas separates thousands.
INTEGER = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)")
# The comma of `1,234` may separate thousands as well as decimals.
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
LONGEST_CELL = 2**31 - 1  # the default of the csv module rejects cells above 131072 characters


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line of a table that is not a row, and the reason."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """The notation of a table.

    Attributes:
        separator: character between cells.
        quoting: constant of the csv module.
        skipped: lines above the header, an Excel directive or a title.
        spaced: a space follows each separator, as in `1, "a, b"`; it does not belong to the cell.
        decimal: numeric columns with decimal commas, as in most of Europe.
        note: what differs from a comma-separated file in UTF-8; empty for one.
    """

    separator: str
    quoting: Literal[0, 3]
    skipped: int
    spaced: bool
    decimal: frozenset[str]
    note: str


def read_separated(file: TextFile, kind: str) -> Iterator[Row]:
    """Yield the rows of a csv or tsv file in order, then raise one DataError that lists every broken line."""
    errors, more = list[str](), 0
    try:
        for row in read_table(file, kind):
            if isinstance(row, Row):
                yield row
            elif len(errors) < SHOWN_FAULTS:  # every line may be broken
                errors.append(f"{file.name}:{row.line}: {row.why}")
            else:
                more += 1
    except DataError as error:
        errors.append(str(error))
    if errors:
        refuse(errors, more=more)


def read_table(file: TextFile, kind: str) -> Iterator[Row | BrokenLine]:
    """Yield each line of a csv or tsv file as a row or as a BrokenLine. Raise DataError if it is not a table.

    Args:
        file: the file.
        kind: `.csv` or `.tsv`.
    """
    dialect = dialect_of(file, kind)
    return rows_of(cells_of(file.lines(""), file.name, dialect, skip=dialect.skipped), file.name, dialect)


def dialect_of(file: TextFile, kind: str) -> Dialect:
    """Detect how a table is written, from its first rows.

    Args:
        file: the file.
        kind: `.csv` or `.tsv`.
    """
    with closing(file.lines("")) as lines:
        header = next((line for line in lines if line.strip()), "")
    directive = header.strip().lower().strip('"').startswith("sep=")
    if directive:
        separator = header.strip().strip('"')[len("sep=") :][:1] or "\t"
        skipped, about = 1, [f"line 1 ({header.strip()}) names the separator"]
        cuts = {separator: _cut(file, separator)}
    else:
        separators = "\t" if kind == ".tsv" else SEPARATORS
        cuts = {mark: _cut(file, mark) for mark in separators}
        separator = max(separators, key=lambda mark: _rating(cuts[mark]))
        skipped, about = 0, []
        if not _rating(cuts[separator])[0]:
            separator, skipped = _below_title(cuts) or (separator, 0)
            about = [f"{skipped} line{'s' * (skipped > 1)} above the header skipped"] if skipped else []
    if spaced := _is_spaced(cuts[separator]):
        cuts[separator] = _cut(file, separator, spaced=True)
        about.append("spaces before cells skipped")
    plain = separator == "\t" and not skipped and _quotes_are_text(file, header)
    several = _rating(cuts[separator])[0] or skipped  # a single column has no separator
    if several and separator != ("\t" if kind == ".tsv" else ","):
        about.insert(0, f"separated by {NAMES.get(separator, repr(separator))}")
    decimal = _decimal_columns([cells for line, cells in cuts[separator] if line > skipped], separator)
    if decimal:
        about.append(f"decimal commas in {', '.join(map(repr, decimal))} read as points")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    return Dialect(separator, quoting, skipped, spaced, frozenset(decimal), ", ".join(about))


def _is_spaced(rows: Sequence[tuple[int, list[str]]]) -> bool:
    """Return whether most rows have a space before the quote that opens a cell."""
    opened = [any(map(SPACED_QUOTE.fullmatch, cells)) for _, cells in rows[1:]]
    return sum(opened) > SPACED_SHARE * len(opened)


def _cut(file: TextFile, separator: str, *, spaced: bool = False) -> list[tuple[int, list[str]]]:
    """Return line and cells of the first rows that are not blank, cut at a separator.

    Cells may contain other separators and line breaks.
    """
    rows: list[tuple[int, list[str]]] = []
    start = 1
    with closing(file.lines("")) as lines:
        reader = csv.reader(islice(lines, LOOKED_AT), delimiter=separator, skipinitialspace=spaced)
        try:
            while (cells := _next(reader)) is not None:
                if any(cell.strip() for cell in cells):
                    rows.append((start, cells))
                start = reader.line_num + 1
        except csv.Error:  # reported with its location when the table is read
            return []
    return rows


def _rating(rows: Sequence[tuple[int, list[str]]]) -> tuple[bool, float, int]:
    """Rate a separator: (it splits the header, share of rows with as many cells as the header, number of cells)."""
    sizes = [len(cells) for _, cells in rows] or [0]
    return sizes[0] > 1, sizes.count(sizes[0]) / len(sizes), sizes[0]


def _below_title(cuts: dict[str, list[tuple[int, list[str]]]]) -> tuple[str, int] | None:
    """Return separator and lines above the header of a table below a title; None if no separator makes one."""
    best: tuple[float, str, int] = (0.0, "", 0)
    for separator, rows in cuts.items():
        (usual, count), *_ = Counter(len(cells) for _, cells in rows).most_common(1) or [(0, 0)]
        first, header = next(((line, cells) for line, cells in rows if len(cells) == usual), (1, []))
        # A comma in a sentence is followed by a space, one between column names is not.
        names = len(set(header)) == usual and not any(cell[:1].isspace() or not cell for cell in header)
        if usual > 1 and names and count >= TABLE_SHARE * len(rows) and first > 1:
            best = max(best, (count / len(rows), separator, first - 1))
    return best[1:] if best[1] else None


def rows_of(lines: Iterator[tuple[int, list[str]]], name: str, dialect: Dialect) -> Iterator[Row | BrokenLine]:
    """Match the lines of `cells_of` with their header, the first of them, and yield rows."""
    first, header = next(lines, (1, [""]))
    header = [cell.strip() for cell in header]
    if twice := sorted({cell for cell in header if cell and header.count(cell) > 1}):
        raise DataError(f"{name}:{first}: duplicate column names {twice}; give each column its own name")
    fix = f"put cells that contain {dialect.separator!r} in double quotes"
    nameless = [index for index, cell in enumerate(header) if not cell]
    decimal = {index for index, column in enumerate(header) if column in dialect.decimal}
    for line, raw in lines:
        # Some programs end each line with a separator, which adds empty cells.
        cells = raw if any(cell.strip() for cell in raw[len(header) :]) else raw[: len(header)]
        if len(cells) != len(header):
            yield BrokenLine(line, f"expected {len(header)} cells as in the header, got {len(cells)}; {fix}")
        elif len([index for index in nameless if cells[index].strip()]) > 1:
            raise DataError(f"{name}:{line}: {len(nameless)} columns with values have no name; name them in line 1")
        else:
            if decimal:
                cells = [_with_point(cell) if index in decimal else cell for index, cell in enumerate(cells)]
            yield Row(f"{name}:{line}", dict(zip(header, cells, strict=True)))


def _decimal_columns(rows: Sequence[Sequence[str]], separator: str) -> list[str]:
    """Return the numeric columns with decimal commas; a column of several labels (`1,2`) is not one.

    Args:
        rows: cells of the header and of the rows below it.
        separator: a comma leaves none for decimals.
    """
    if not rows or separator == ",":
        return []
    header, *below = rows
    found = []
    for index, column in enumerate(map(str.strip, header)):
        values = [cells[index].strip() for cells in below if len(cells) > index and cells[index].strip()]
        commas = [value for value in values if DECIMAL_COMMA.fullmatch(value)]
        numbers = len(commas) + sum(INTEGER.fullmatch(value) is not None for value in values) == len(values)
        several = column.lower().endswith(PLURALS)
        if numbers and not several and not all(map(THOUSANDS.fullmatch, commas)):
            found.append(column)
    return found


def _with_point(cell: str) -> str:
    """Return a number with a decimal point and without separators of thousands; any other text unchanged."""
    number = cell.strip()
    if not (DECIMAL_COMMA.fullmatch(number) or INTEGER.fullmatch(number)):
        return cell
    return number.replace(".", "").replace(",", ".")


def cells_of(
    file: Generator[str, None, None], name: str, dialect: Dialect, *, skip: int = 0, before: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each non-blank row with the line on which it starts.

    Args:
        file: lines with their line ends, read no further than the row needs, and closed at the end.
        name: name of the file, for errors.
        dialect: how the table is written.
        skip: lines above the header.
        before: lines of the file before these.
    """
    start = before + skip + 1
    with closing(file) as lines:
        for _ in islice(lines, skip):
            pass
        reader = csv.reader(
            lines,
            delimiter=dialect.separator,
            quoting=dialect.quoting,
            skipinitialspace=dialect.spaced,
            strict=True,
        )
        try:
            while (cells := _next(reader)) is not None:
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    yield start, cells
                start = before + skip + reader.line_num + 1
        except csv.Error as error:
            fix = 'close every quoted cell, and double each quote inside it ("")'
            raise DataError(f"{name}:{start}: invalid table ({error}); {fix}") from error


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    """Return the next row. The csv field size limit is global to the process, so it is restored after every row."""
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _quotes_are_text(file: TextFile, header: str) -> bool:
    """Return whether a tsv file was written without quoting: a cell starts with a quote and does not close it."""
    unclosed = False
    if "\t" not in header:  # with one column, a cell that contains a line break looks like two rows
        return False
    with closing(file.lines("\n")) as lines:
        for line in filter(str.strip, lines):
            cells = line.rstrip("\n").rstrip("\r").split("\t")
            if len(cells) != header.count("\t") + 1:
                return False
            unclosed = unclosed or any(cell.startswith('"') and not CLOSED_QUOTE.fullmatch(cell) for cell in cells)
    return unclosed
