"""Rows of several files read by the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.examples import Example
from tunesmith.data.rows import Row, columns_of
from tunesmith.recipe import AnyObjective


class Reader:
    """Reads rows by the columns of the first file, which is the train file, where they have them."""

    def __init__(self, objective: AnyObjective, group: str) -> None:
        self._objective, self._group = objective, group
        self._columns: Mapping[str, str] = {}

    def __call__(self, rows: Sequence[Row]) -> list[Example]:
        """Their examples. Raises DataError."""
        columns = self._columns
        if not columns or not set(columns.values()) <= set(columns_of(rows)):
            columns = self._objective.columns(rows)
        self._columns = self._columns or columns
        return self._objective.examples(rows, group=self._group, columns=columns)
