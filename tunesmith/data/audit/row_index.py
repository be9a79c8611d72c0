"""The rows of a file by number: any of them is read without the rest of the file."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tunesmith.data.audit.chunks import line_of, parsed
from tunesmith.data.readers.csv_tsv import BrokenLine, cells_of, dialect_of, rows_of
from tunesmith.data.readers.parquet_hub import parquet_rows, read_parquet
from tunesmith.data.readers.read import LARGE_BYTES, LINES, TABLES, check_kind, read_rows
from tunesmith.data.readers.row import Row
from tunesmith.data.readers.text_file import locate, open_text
from tunesmith.errors import DataError

STEP = 512  # rows between two marks
SECONDS = 0.3  # for which one call indexes further rows, at most
Mark = tuple[int, int]  # bytes and lines of a file before a row


class IndexedRow(NamedTuple):
    """A row: its number from 0, its line from 1, and its fields, or the reason why the line is not a row."""

    number: int
    line: int
    fields: Mapping[str, object] | str


class RowIndex:
    """Rows of a file by number, invalid ones included. Raises DataError if the file cannot be read.

    Of jsonl, csv and tsv it keeps the place of every 512th row, found by reading through the file once, a part with
    each call. Parquet has an index itself; a file of another kind is read at once.

    Attributes:
        rows: number of rows found so far.
        whole: whether these are all.
        problem: why the rest of a table cannot be read; empty if it can.
        note: how the file is written, if not as UTF-8 with commas.
        held_bytes: bytes of the file if it is in memory, else 0.
    """

    def __init__(self, path: Path) -> None:
        file = locate(path)
        if file is None:
            raise DataError(f"{path}: expected a file; give one of the files in it")
        self.rows, self.whole, self.problem, self.note, self.held_bytes = 0, True, "", "", 0
        self._path, self._name, self._kind = path, file.name, check_kind(file).kind
        self._lock = threading.Lock()
        self._held: Sequence[Row] = ()
        self._marks: list[Mark] = []  # of the rows 0, 512, 1024, ...
        if self._kind in (*LINES, *TABLES):
            self._text = open_text(file)
            with self._text.open_bytes() as text:
                start = (text.tell(), 0)  # after a byte order mark
            self.note, self.held_bytes = self._text.note, len(self._text.text or "")
            if self._kind in TABLES:
                self._dialect = dialect_of(self._text, self._kind)
                self.note = ", ".join(filter(None, [self.note, self._dialect.note]))
                line, header, start = next(self._cells(*start, skip=self._dialect.skipped), (1, [""], start))
                self._header = (line, header)
                next(rows_of(iter([self._header]), self._name, self._dialect), None)  # raises the error of a header
            self._marks, self.whole = [start], False
        elif self._kind == ".parquet":
            next(read_parquet(path), None)  # raises the error of a broken file
            self.rows = parquet_rows(path)
        elif file.path.stat().st_size > LARGE_BYTES:
            raise DataError(f"{path}: too large a {self._kind} file to show; convert it to jsonl, csv or parquet")
        else:
            self._held = read_rows(path)
            self.rows, self.held_bytes = len(self._held), file.path.stat().st_size

    def read(self, start: int, count: int, *, wait: bool = False) -> list[IndexedRow]:
        """Return rows by number: fewer at the end, and, unless `wait`, none of a part that is not indexed yet."""
        self._read_on(lambda: self.rows >= start + count, wait=wait)
        count = min(count, self.rows - start)
        if count <= 0:
            return []
        if self._marks:
            raw = islice(self._raw(*self._marks[start // STEP]), start % STEP, start % STEP + count)
            return [IndexedRow(start + n, line, self._fields(line, row)) for n, (line, row, _) in enumerate(raw)]
        rows = self._held[start : start + count] or islice(read_parquet(self._path, start), count)
        return [IndexedRow(start + n, line_of(row), row.fields) for n, row in enumerate(rows)]

    def at_line(self, line: int, *, wait: bool = False) -> IndexedRow | None:
        """Return the row that begins at a line; None if none does, or, unless `wait`, it is not indexed yet."""
        if self._marks:
            self._read_on(lambda: self._marks[-1][1] >= line, wait=wait)
            block = max(0, bisect_right(self._marks, line - 1, key=lambda mark: mark[1]) - 1)
            lines = islice(self._raw(*self._marks[block]), min(STEP, self.rows - block * STEP))
            number = block * STEP + next((n for n, (at, *_) in enumerate(lines) if at >= line), STEP)
        else:
            number = bisect_right(self._held, line, key=line_of) - 1 if self._held else line - 1
        rows = self.read(number, 1)
        return rows[0] if rows and rows[0].line == line else None

    def _read_on(self, enough: Callable[[], bool], *, wait: bool) -> None:
        """Index rows until there are enough, the time of a call is over (without `wait`), or the file ends."""
        end = time.monotonic() + (math.inf if wait else SECONDS)
        with self._lock:
            if self.whole or enough():
                return
            done = (len(self._marks) - 1) * STEP
            try:
                # The file is closed between two calls: Windows neither renames nor deletes an open one.
                for rows, (*_, mark) in enumerate(self._raw(*self._marks[-1]), done + 1):
                    self.rows = rows
                    if rows % STEP == 0:
                        self._marks.append(mark)
                        if enough() or time.monotonic() > end:
                            return
            except DataError as error:
                self.problem = str(error)
            self.whole = True

    def _raw(self, byte: int, before: int) -> Iterator[tuple[int, bytes | list[str], Mark]]:
        """Yield line and content of each row from a mark on, and the mark after it."""
        if self._kind in TABLES:
            yield from self._cells(byte, before)
            return
        with self._text.open_bytes() as file:
            file.seek(byte)
            for line, raw in enumerate(file, before + 1):
                byte += len(raw)
                if raw.strip():
                    yield line, raw, (byte, line)

    def _cells(self, byte: int, before: int, *, skip: int = 0) -> Iterator[tuple[int, list[str], Mark]]:
        end, line = byte, before

        def lines() -> Generator[str, None, None]:
            nonlocal end, line
            with self._text.open_bytes() as file:
                file.seek(byte)
                for part in (part for raw in file for part in raw.splitlines(keepends=True)):  # \r alone ends one, too
                    end, line = end + len(part), line + 1
                    yield part.decode()

        for start, cells in cells_of(lines(), self._name, self._dialect, skip=skip, before=before):
            yield start, cells, (end, line)

    def _fields(self, line: int, raw: bytes | list[str]) -> Mapping[str, object] | str:
        if isinstance(raw, bytes):
            return parsed(raw)
        try:
            row = next(rows_of(iter([self._header, (line, raw)]), self._name, self._dialect))
        except DataError as error:  # values in columns without a name
            return str(error)
        return row.why if isinstance(row, BrokenLine) else row.fields
