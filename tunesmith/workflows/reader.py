"""Rows of several files read by the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.examples import Example
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe import AnyObjective


class Reader:
    """Reads rows by the columns of the first file, which is the train file, where they have them.

    What a file has beside these (`input`, `system`) is read too, where its own columns say the same kind of rows.
    """

    def __init__(self, objective: AnyObjective, group: str) -> None:
        self._objective, self._group = objective, group
        self._columns: Mapping[str, str] = {}

    def __call__(self, rows: Sequence[Row]) -> list[Example]:
        """Their examples. Raises DataError."""
        columns = self._objective.columns(rows) if not self._columns else self._as_before(rows)
        self._columns = self._columns or columns
        return self._objective.examples(rows, group=self._group, columns=columns)

    def _as_before(self, rows: Sequence[Row]) -> Mapping[str, str]:
        first = self._columns
        there = {column for row in rows for column, value in row.fields.items() if value not in (None, "")}
        if not set(first.values()) <= there:
            return self._objective.columns(rows)
        try:
            own = self._objective.columns(rows)
        except DataError:  # clear by the first file alone
            return first
        more = {part: column for part, column in own.items() if column not in first.values()}
        return {**more, **first} if set(first) <= set(own) else first
