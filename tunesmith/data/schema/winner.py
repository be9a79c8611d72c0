"""Find which of two compared answers a row prefers."""

from __future__ import annotations

import re
from typing import Literal

from tunesmith.data.readers.row import as_word

Side = Literal["first", "second", "tie", ""]
TIES = ("tie", "draw", "both", "equal", "same", "neither", "none", "bothbad", "tied")
ORDINALS = {"first": "first", "left": "first", "second": "second", "right": "second"}
LETTERS = {"a": "first", "b": "second"}


def side(value: object, first: str, second: str) -> Side:
    """Return which of two answer columns a value names, or a tie.

    A value is the name of a column, or its letter or number, as in `response_a`, `a`, `A`, `model_a`, `1`. The side is
    empty for anything else, such as 0 and 1 if the columns are named by letters.
    """
    word = (as_word(value) or "").strip().lower()
    if word in (first.strip().lower(), second.strip().lower()):
        return "first" if word == first.strip().lower() else "second"
    parts = re.findall(r"[a-z]+|\d+", word)
    if set(parts) & set(TIES):
        return "tie"
    if not parts or len(parts) > 3:
        return ""
    last = parts[-1]
    ends = [_end(column) for column in (first, second)]
    if last in ends and ends[0] != ends[1]:
        return "first" if last == ends[0] else "second"
    by_word = ORDINALS.get(last) or (LETTERS.get(last) if {*ends} == {"1", "2"} else None)
    if by_word is None and last in ("1", "2") and {*ends} == {"a", "b"}:
        by_word = "first" if last == "1" else "second"
    return "first" if by_word == "first" else "second" if by_word == "second" else ""


def _end(column: str) -> str:
    """Return the letter or number at the end of a name."""
    parts = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).lower())
    return parts[-1] if parts else ""
