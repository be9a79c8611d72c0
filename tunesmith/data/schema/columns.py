"""Statistics of columns and the words in their names, for detecting formats."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from statistics import median

from tunesmith.data.readers.row import Row, as_word, columns_of
from tunesmith.data.schema.cells import PLUS
from tunesmith.data.schema.split_names import DEFAULT_SPLIT, split_parts
from tunesmith.data.schema.values import LONGEST_LABEL, is_nothing, is_scale, is_thumb
from tunesmith.data.text.words import unspaced

LOOKED_AT = 200  # rows
ENOUGH = 0.9  # share of rows with a value
# Names of metadata columns, which are neither texts nor labels.
NOTED = {
    "split", "lang", "language", "source", "license", "licence", "url", "date", "year", "version", "page", "section",
    "chapter", "doc", "document", "author", "id", "group", "book", "file", "path", "part", "subset", "format",
}  # fmt: skip
# Columns that a run uses as the group of a row; the note on the split names them.
GROUPS = ("group", "thread", "doc_id", "source_id")
SHOWN_COLUMNS = 8
MOST_LABELS = 50
ROWS_A_LABEL = 3
DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ,]+[\d:.,+Z]+( ?[AP]M)?)?|\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AP]M)?",
    re.IGNORECASE,
)


class Column:
    """Statistics of one column over sampled rows.

    Attributes:
        name: name in the file.
        called: lower-case words of the name.
        nested: the first value that is an object, or None.
        listed: whether any value is a list.
        distinct: distinct non-blank values as words.
        values: number of distinct values as words, which fractions are not.
        kinds: number of distinct values of any type.
        thumbs: whether all values are ratings.
        words: median number of words per value.
        text: whether at least 90 % of the rows have a value and not all values are integers or dates.
        few: whether the column can be a label: few distinct short values that are not dates or times.
        scale: whether the values are on a numeric scale: many, with fractions.
    """

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name = name
        parts = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        # Single letters count only alone: `Q` and `A`, but not the "a" of "is it a dog".
        self.called = {part for part in parts if len(part) > 1 or len(parts) == 1}
        cells = [row.fields.get(name) for row in rows]
        values = [word.strip() for word in map(as_word, cells) if word is not None and word.strip()]
        self.nested = next((cell for cell in cells if isinstance(cell, dict)), None)
        self.listed = any(isinstance(cell, list) for cell in cells)
        self.distinct = set(values)
        self.values = len(self.distinct)
        self.thumbs = bool(self.distinct) and all(map(is_thumb, self.distinct))
        # In scripts without spaces a word has about two characters.
        self.words = median(len(value.split()) + unspaced(value) / 2 for value in values) if values else 0
        full = len(values) >= ENOUGH * len(rows)
        dates = all(DATE.fullmatch(value) for value in values)
        self.text = full and not all(value.isdigit() or DATE.fullmatch(value) for value in values)
        short = max(map(len, values), default=0) <= LONGEST_LABEL
        held = [cell for cell in cells if not is_nothing(cell) and str(cell).strip()]
        self.kinds = len({str(cell).strip() for cell in held})
        self.scale = len(held) >= ENOUGH * len(rows) and is_scale(held)
        self.few = not self.scale and (
            full and short and not dates and 2 <= self.values <= min(MOST_LABELS, max(2, len(rows) // ROWS_A_LABEL))
        )


def columns_held(rows: Sequence[Row]) -> list[Column]:
    """Return statistics of all named columns over 200 rows.

    The rows are a fixed random sample of the whole file, because files may be sorted by a column.
    """
    indices = sorted(random.Random(0).sample(range(len(rows)), min(LOOKED_AT, len(rows))))
    sample = [rows[index] for index in indices]
    return [Column(name, sample) for name in columns_of(rows) if name.strip()]


def left_over(rows: Sequence[Row], used: Collection[str]) -> dict[str, str]:
    """Return the columns that are not used, each with the reason; columns that group rows are left out."""
    taken = {name for column in used for name in (column, *column.split(PLUS))}
    roots = {name.partition(".")[0] for name in taken}
    reasons: dict[str, str] = {}
    for column in columns_held(rows):
        inner = "." in column.name or (column.name in roots and column.name not in taken)
        if column.name in taken or inner or column.name.strip().lower() in GROUPS:
            continue
        reasons[column.name] = _why_unused(column, rows)
    return reasons


def _why_unused(column: Column, rows: Sequence[Row]) -> str:
    if column.name == DEFAULT_SPLIT and split_parts([row.fields.get(column.name) for row in rows]):
        return "names the split"
    if column.kinds <= 1:
        return "blank" if not column.kinds else "one value"
    plain = not column.listed and not column.nested and (column.words <= 1 or "id" in column.called)
    if plain and column.kinds == min(len(rows), LOOKED_AT):
        return "unique values"
    return f"{column.values} values" if column.few else "text" if column.words > 1 else "other values"


def ignored_columns(reasons: Mapping[str, str]) -> str:
    """Return `; ignored columns: ...`; empty if there are none."""
    listed = [f"{name} ({reason})" for name, reason in list(reasons.items())[:SHOWN_COLUMNS]]
    more = f", and {len(reasons) - SHOWN_COLUMNS} more" if len(reasons) > SHOWN_COLUMNS else ""
    return f"; ignored columns: {', '.join(listed)}{more}" if listed else ""


def beside(rows: Sequence[Row], taken: Collection[str], **parts: Sequence[str]) -> dict[str, str]:
    """Return role -> column for optional columns, which are found by their exact names.

    Args:
        rows: rows of one file.
        taken: columns that already have a role.
        **parts: role -> possible names, in order of preference.
    """
    free = set(columns_of(rows)) - {*taken}
    columns = {part: next((name for name in names if name in free), "") for part, names in parts.items()}
    return {part: column for part, column in columns.items() if column}


def named(columns: Sequence[Column], words: Collection[str]) -> Column | None:
    """Return the column whose name matches one of the words best; of equal matches the one with the longest texts."""
    candidates = [column for column in columns if column.called & set(words)]
    return min(candidates, key=lambda column: (len(column.called - set(words)), -column.words), default=None)
