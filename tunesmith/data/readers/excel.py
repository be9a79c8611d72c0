"""Sheets of Excel workbooks: a title above the header, empty rows and columns and merged cells are understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

from tunesmith.data.documents.formats.zip_xml import open_zip
from tunesmith.data.readers.row import Row, reason, unreadable
from tunesmith.data.readers.text_file import FileSource
from tunesmith.errors import DataError

LOOKED_AT = 50  # rows in which the header is looked for
HEADER_SHARE = 0.8  # of the usual number of cells; a title has fewer
ERRORS = frozenset(["#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!"])

Cells = list[object]


def read_excel(source: FileSource) -> tuple[list[Row], str]:
    """Load a sheet of a workbook: the named one, or the first with rows.

    Args:
        source: the file; its part is the name of a sheet.

    Returns:
        The rows, and a note with the sheet and what was skipped.

    Raises:
        DataError: the workbook cannot be read, or has no such sheet or no rows.
    """
    book = _workbook(source)
    names = [sheet.title for sheet in book.worksheets]
    if source.part and source.part not in names:
        raise DataError(f"{source.path}: no sheet {source.part!r}; sheets here: {names}")
    visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    sheets = [book[source.part]] if source.part else visible or book.worksheets
    for sheet in sheets:
        rows, skipped = _rows(grid, source.name) if (grid := _grid(sheet)) else ([], 0)
        if rows:  # a sheet with a single line is a note, not a table
            others = [name for name in names if name != sheet.title]
            notes = [f"sheet {sheet.title!r}"]
            notes += [f"{skipped} row{'s' * (skipped > 1)} above the header skipped"] if skipped else []
            notes.append(f"other sheets: {', '.join(others)} (name one as '{source.path}#SHEET')" if others else "")
            return rows, ", ".join(filter(None, notes))
    raise DataError(
        f"{source.path}: no rows in {[sheet.title for sheet in sheets]}; give a sheet with a header and rows"
    )


def _workbook(source: FileSource) -> Any:
    """Open a workbook; formulas have the values that were saved with them."""
    import openpyxl

    try:
        open_zip(source.path.read_bytes())  # bounds what it unpacks to
        return openpyxl.load_workbook(source.path, data_only=True)
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from error
    except OSError as error:
        raise unreadable(source.path, error) from error
    except Exception as error:  # openpyxl raises whatever its parsers raise
        raise DataError(f"{source.path}: invalid workbook ({reason(error)}); save the sheet as csv") from error


def _grid(sheet: Any) -> list[tuple[int, Cells]]:
    """Return row number and cells of the rows that are not empty, without empty columns.

    A cell merged over several rows has its value in each of them; one merged over several columns only in the first.
    """
    rows = [[_value(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
    top, left = sheet.min_row, sheet.min_column
    for area in sheet.merged_cells.ranges:
        row, column = area.min_row - top, area.min_col - left
        for below in range(row + 1, min(area.max_row - top + 1, len(rows))):
            rows[below][column] = rows[row][column]
    used = [column for column in range(max(map(len, rows), default=0)) if any(row[column] != "" for row in rows)]
    return [
        (number, [row[column] for column in used])
        for number, row in enumerate(rows, top)
        if any(cell != "" for cell in row)
    ]


def _value(cell: object) -> object:
    """Return a cell as rows have it: dates as ISO text, integers without a point, errors and blanks as ""."""
    if cell is None or (isinstance(cell, str) and cell.strip() in ERRORS):
        return ""
    if isinstance(cell, datetime):
        midnight = (cell.hour, cell.minute, cell.second) == (0, 0, 0)
        return cell.date().isoformat() if midnight else cell.isoformat(sep=" ", timespec="seconds")
    if isinstance(cell, date | time | timedelta):
        return str(cell)
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _rows(grid: Sequence[tuple[int, Cells]], name: str) -> tuple[list[Row], int]:
    """Return the rows below the header, and the number of rows above it."""
    start = _header(grid)
    first, cells = grid[start]
    header = [str(cell).strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    if twice := sorted(column for column, count in Counter(header).items() if count > 1):
        raise DataError(f"{name}:{first}: duplicate column names {twice}; give each column its own name")
    below = grid[start + 1 :]
    texts = {i for i in range(len(header)) if any(isinstance(cells[i], str) and cells[i] != "" for _, cells in below)}
    return [
        Row(
            f"{name}:{number}",
            {
                column: str(cell) if i in texts else cell
                for i, (column, cell) in enumerate(zip(header, cells, strict=True))
            },
        )
        for number, cells in below
    ], start


def _header(grid: Sequence[tuple[int, Cells]]) -> int:
    """Return the index of the header: the first row with almost as many cells as most, all of them text."""
    filled = [sum(cell != "" for cell in cells) for _, cells in grid[:LOOKED_AT]]
    usual = Counter(filled[1:] or filled).most_common(1)[0][0]
    wide = [index for index, count in enumerate(filled) if count >= HEADER_SHARE * usual]
    texts = [index for index in wide if all(isinstance(cell, str) for cell in grid[index][1])]
    return next(iter(texts or wide), 0)
