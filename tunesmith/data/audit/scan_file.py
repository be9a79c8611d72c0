"""Read a file into a table: every chunk is scanned, in one process or several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.chunks import chunks, has_column, head, name_of
from tunesmith.data.audit.options import AuditSource, Tools
from tunesmith.data.audit.row_table import RowTable
from tunesmith.data.audit.scan_chunk import ScanPlan, digest_of, scan
from tunesmith.data.parallel import in_order
from tunesmith.data.readers.row import keep, missing_column
from tunesmith.data.schema.cells import has_column as has_cells
from tunesmith.data.text.overlap import HeldOutRuns, QuotationRule, held
from tunesmith.errors import DataError

TOLD_EVERY = 100_000  # rows between progress messages
FEW = 200  # rows checked for a column before the whole file is read
MANY = 100_000  # rows whose values are listed if `where` matches nothing


def read_held(source: str, table: RowTable, ask: AuditSource, tools: Tools) -> HeldOutRuns:
    """Fill `table` with a test file and return the index of its runs of 13 words. Raise DataError without rows."""
    _check_where(source, ask, tools)
    plan = ScanPlan(table.name, ask)
    questions: list[NDArray[np.uint32]] = []
    for chunk in chunks(source, offline=tools.offline):
        digest, slots = scan(plan, chunk)
        table.add(digest)
        questions += slots
    table.close()
    _check_rows(source, table, ask, tools)
    return held(questions, QuotationRule())


def read_table(table: RowTable, ask: AuditSource, indices: list[HeldOutRuns], tools: Tools) -> None:
    """Fill `table` with the audited file. Raise DataError without rows."""
    _check_where(ask.source, ask, tools)
    plan = ScanPlan(table.name, ask, tuple(indices))
    reported = 0
    pieces = chunks(ask.source, offline=tools.offline)
    for digest in in_order(digest_of, plan, pieces, workers=tools.workers):
        table.add(digest)
        if table.rows - reported >= TOLD_EVERY:
            reported = table.rows
            tools.log(f"{table.rows} rows read")
    table.close()
    _check_rows(ask.source, table, ask, tools)


def _check_where(source: str, ask: AuditSource, tools: Tools) -> None:
    """Raise DataError if no row has a column of `where`."""
    rows = head(source, FEW, offline=tools.offline) if ask.where else []
    for column in ask.where:
        present = has_cells(rows, column)
        if not present and not has_column(source, column, offline=tools.offline):
            raise DataError(missing_column(rows, column))


def _check_rows(source: str, table: RowTable, ask: AuditSource, tools: Tools) -> None:
    """Raise DataError if the table is empty; if `where` matched nothing, list the values in the file."""
    if table.rows:
        return
    if ask.where:
        keep(head(source, MANY, offline=tools.offline), ask.where)
    raise DataError(f"{name_of(source)}: no rows; give a file with at least one")
