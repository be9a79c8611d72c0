"""What the columns of rows hold, and what their headers are called, for guesses."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from statistics import median

from tunesmith.data.kinds import LONGEST_LABEL, is_thumb
from tunesmith.data.rows import Row, as_word, columns_of
from tunesmith.data.words import unspaced

LOOKED_AT, ENOUGH = 200, 0.9
# What a column is called that notes something about a row, and is not learned.
NOTED = {
    "split", "lang", "language", "source", "license", "licence", "url", "date", "year", "version", "page", "section",
    "chapter", "doc", "document", "author", "id", "group", "book", "file", "path", "part", "subset", "format",
}  # fmt: skip
MOST_LABELS, ROWS_A_LABEL = 50, 3
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ,]+[\d:.+Z]+( ?[AP]M)?)?", re.IGNORECASE)


class Column:
    """What one column holds."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name = name
        called = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
        self.called = {word for word in called if len(word) > 1 or len(called) == 1}  # Q and A, and not "is it a dog"
        found = [row.fields.get(name) for row in rows]
        there = [word.strip() for word in map(as_word, found) if word is not None and word.strip()]
        self.nested = next((value for value in found if isinstance(value, dict)), None)
        self.listed = any(isinstance(value, list) for value in found)
        self.distinct = set(there)
        self.values = len(self.distinct)
        self.thumbs = bool(self.distinct) and all(map(is_thumb, self.distinct))
        self.words = median(map(_words, there)) if there else 0
        full = len(there) >= ENOUGH * len(rows)
        self.text = full and not all(word.isdigit() or DATE.fullmatch(word) for word in there)
        short = max(map(len, there), default=0) <= LONGEST_LABEL
        self.few = full and short and 2 <= self.values <= min(MOST_LABELS, max(2, len(rows) // ROWS_A_LABEL))


def columns_held(rows: Sequence[Row]) -> list[Column]:
    """The columns that have a name, by 200 rows drawn from all of the file, which may be sorted by one of them or take
    turns; the same rows every time."""
    places = sorted(random.Random(0).sample(range(len(rows)), min(LOOKED_AT, len(rows))))
    seen = [rows[place] for place in places]
    return [Column(name, seen) for name in columns_of(rows) if name.strip()]


def beside(rows: Sequence[Row], taken: Collection[str], **parts: Sequence[str]) -> dict[str, str]:
    """Parts that stand beside what a recipe names, in columns that are called so to the letter."""
    there = set(columns_of(rows)) - {*taken}
    found = {part: next((word for word in words if word in there), "") for part, words in parts.items()}
    return {part: column for part, column in found.items() if column}


def named(columns: Sequence[Column], words: Collection[str]) -> Column | None:
    """The column of whose name most is one of these words; of several the one with most in it."""
    found = [column for column in columns if column.called & set(words)]
    return min(found, key=lambda column: (len(column.called - set(words)), -column.words), default=None)


def _words(text: str) -> float:
    """About how many words; of scripts that put no spaces between them each has about two letters."""
    return len(text.split()) + unspaced(text) / 2
