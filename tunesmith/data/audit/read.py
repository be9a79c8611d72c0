"""A file as a table: every chunk scanned, on one core or on several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.ask import AuditSource, Tools
from tunesmith.data.audit.pool import in_order
from tunesmith.data.audit.runs import HeldOutRuns, QuotationRule, held
from tunesmith.data.audit.scan import ScanPlan, digest_of, scan
from tunesmith.data.audit.stream import chunks, has_column, head, name_of
from tunesmith.data.audit.table import RowTable
from tunesmith.data.rows import keep, missing_column
from tunesmith.errors import DataError

TOLD_EVERY = 100_000
# Rows that are looked at for a column before the whole file is, and for the values that `where` should have named.
FEW, MANY = 200, 100_000


def read_held(source: str, table: RowTable, ask: AuditSource, tools: Tools) -> HeldOutRuns:
    """Fill `table` with the test file; the index of its runs of 13 words comes back. Raises DataError without rows."""
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
    """Fill `table` with the file. Raises DataError where it has no rows."""
    _check_where(ask.source, ask, tools)
    plan = ScanPlan(table.name, ask, tuple(indices))
    told = 0
    pieces = chunks(ask.source, offline=tools.offline)
    for digest in in_order(digest_of, plan, pieces, workers=tools.workers):
        table.add(digest)
        if table.rows - told >= TOLD_EVERY:
            told = table.rows
            tools.tell(f"{table.rows} rows read")
    table.close()
    _check_rows(ask.source, table, ask, tools)


def _check_where(source: str, ask: AuditSource, tools: Tools) -> None:
    """Raise DataError where no row has a column of `where`."""
    rows = head(source, FEW, offline=tools.offline) if ask.where else []
    for column in ask.where:
        here = any(column in row.fields for row in rows)
        if not here and not has_column(source, column, offline=tools.offline):
            raise DataError(missing_column(rows, column))


def _check_rows(source: str, table: RowTable, ask: AuditSource, tools: Tools) -> None:
    """Raise DataError where no row came; where `where` left none, with the values that are there."""
    if table.rows:
        return
    if ask.where:
        keep(head(source, MANY, offline=tools.offline), ask.where)
    raise DataError(f"{name_of(source)}: no rows; give a file with at least one")
