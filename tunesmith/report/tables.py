"""Tables in a terminal that fit its width: text wraps, and the least important columns are left out first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.report.formatting import clean

GAP = 3  # characters between two columns
NARROWEST = 20  # to which a column of text may shrink


class FittedTable:
    """A table that fits the width of the console it is printed on.

        FittedTable(("arm", "accuracy>", "p95>"), rows, drop=("p95",))

    Args:
        columns: headings; a column whose heading ends in `>` is right-aligned and never wraps.
        rows: cells.
        drop: headings of columns that are left out, one after the other, if the table is too wide.
        caption: text below the table.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, drop: Sequence[str] = (), caption: str = ""
    ) -> None:
        self._names = [column.removesuffix(">") for column in columns]
        self._right = [column.endswith(">") for column in columns]
        self._rows = [[clean(cell) for cell in row] for row in rows]
        self._drop = drop
        self.caption = caption

    def add(self, *cells: str) -> None:
        """Add a row without interpreting text from files as markup."""
        self._rows.append([clean(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table, and the names of the columns that are left out."""
        kept = self.fitting(options.max_width)
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for index in kept:
            table.add_column(
                Text(self._names[index]),
                justify="right" if self._right[index] else "left",
                overflow="fold",
                min_width=self._least(index),
                no_wrap=self._right[index],
            )
        for row in self._rows:
            table.add_row(*(Text(row[index]) for index in kept))
        if self.caption:
            table.caption = Text(self.caption, justify="left")
        yield table
        if omitted := [name for index, name in enumerate(self._names) if index not in kept]:
            yield Text(f"not shown for lack of width: {', '.join(omitted)}; --json has all columns", style="dim")

    def fitting(self, width: int) -> list[int]:
        """Return the indices of the columns that fit into a width; columns that are not in `drop` always stay."""
        kept = list(range(len(self._names)))
        for name in self._drop:
            if sum(map(self._least, kept)) + GAP * (len(kept) - 1) <= width:
                break
            kept = [index for index in kept if self._names[index] != name]
        return kept

    def _least(self, index: int) -> int:
        """Return the least width of a column: that of its longest line, for text at most NARROWEST."""
        lines = [self._names[index], *(line for row in self._rows for line in row[index].split("\n"))]
        longest = max(map(cell_len, lines))
        return longest if self._right[index] else min(longest, NARROWEST)
