"""A file as a table: every chunk scanned, on one core or on several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.ask import Ask, Tools
from tunesmith.data.audit.pool import in_order
from tunesmith.data.audit.scan import Held, Plan, digest_of, held, scan
from tunesmith.data.audit.stream import chunks, name_of
from tunesmith.data.audit.table import Table
from tunesmith.errors import DataError

TOLD_EVERY = 100_000


def read_held(source: str, table: Table, ask: Ask, tools: Tools) -> Held:
    """Fill `table` with the test file; the index of its runs of 13 words comes back."""
    plan = Plan(table.name, ask.columns, ask.where)
    questions: list[NDArray[np.uint32]] = []
    for chunk in chunks(source, offline=tools.offline):
        digest, slots = scan(plan, chunk)
        table.add(digest)
        questions += slots
    table.close()
    return held(questions)


def read_table(table: Table, ask: Ask, indices: list[Held], tools: Tools) -> None:
    """Fill `table` with the file. Raises DataError where it has no rows."""
    plan = Plan(table.name, ask.columns, ask.where, tuple(indices))
    told = 0
    pieces = chunks(ask.source, offline=tools.offline)
    for digest in in_order(digest_of, plan, pieces, workers=tools.workers):
        table.add(digest)
        if table.rows - told >= TOLD_EVERY:
            told = table.rows
            tools.tell(f"{table.rows} rows read")
    table.close()
    if not table.rows:
        raise DataError(f"{name_of(ask.source)}: no rows; give a file with at least one")
