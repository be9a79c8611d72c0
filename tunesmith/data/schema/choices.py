"""Questions with choices: the choices of a row, and which of them an answer column names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from tunesmith.data.readers.row import Row, as_word, file_of
from tunesmith.data.schema.cells import PLUS, cell
from tunesmith.data.schema.values import listed
from tunesmith.errors import DataError

# `A`, `option_b`, `choice 3`, `opt1`: columns with one choice each.
ONE_CHOICE = re.compile(r"^(?:option|choice|opt|answer|ending)?[ _-]?([a-h]|\d)$", re.IGNORECASE)
FEWEST = 2


def choice_columns(names: Sequence[str]) -> list[str]:
    """Return the columns that contain one choice each, in order; empty with fewer than two."""
    found: dict[str, list[str]] = {}
    for name in names:
        if match := ONE_CHOICE.fullmatch(name.strip()):
            found.setdefault(name[: match.start(1)].strip().lower(), []).append(name)
    columns = max(found.values(), key=len, default=[])
    return sorted(columns) if len(columns) >= FEWEST else []


def choices_of(row: Row, column: str) -> dict[str, str]:
    """Return the choices of a row: key -> text, the keys being the letters A, B, C, ... unless the row has others.

    Args:
        row: the row.
        column: column with a list, or with `{"text": [...], "label": [...]}`; or one column per choice, joined by
            ` + `.
    """
    if PLUS in column and column not in row.fields:
        names = column.split(PLUS)
        texts = [as_word(cell(row, name)) or "" for name in names]
        keys = [name.strip()[-1].upper() for name in names]
        return {key: text for key, text in zip(keys, texts, strict=True) if text.strip()}
    value = cell(row, column)
    own_keys: list[object] = []
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), list):
            own_keys = list(value.get("label") or [])
            value = value["text"]
        else:
            own_keys, value = list(value), list(value.values())
    texts = [as_word(item) or "" for item in listed(value)]
    letters = own_keys if len(own_keys) == len(texts) else ascii_uppercase[: len(texts)]
    return {str(key).strip(): text for key, text in zip(letters, texts, strict=False)}


def named_choice(row: Row, column: str, answer: str, *, from_one: bool) -> str:
    """Return the key of the choice that the answer names: by key, letter, text or position; empty if by none.

    Args:
        row: the row.
        column: see `choices_of`.
        answer: column with the answer.
        from_one: whether positions count from 1.
    """
    choices = choices_of(row, column)
    word = (as_word(cell(row, answer)) or "").strip()
    keys = list(choices)
    if word in choices:
        return word
    bare = word.strip("().: ").upper()
    if key := next((key for key in keys if key.upper() == bare), ""):
        return key
    if key := next((key for key, text in choices.items() if text.strip().lower() == word.lower()), ""):
        return key
    if bare.isdigit() and 0 <= int(bare) - from_one < len(keys):
        return keys[int(bare) - from_one]
    return keys[ascii_uppercase.index(bare)] if len(bare) == 1 and bare in ascii_uppercase[: len(keys)] else ""


def names_a_choice(row: Row, column: str, answer: str) -> bool:
    """Return whether a row has two or more choices and its answer names one of them, counted from 0 or 1."""
    if len(choices_of(row, column)) < FEWEST:
        return False
    return any(named_choice(row, column, answer, from_one=first) for first in (False, True))


def counts_from_one(rows: Sequence[Row], column: str, answer: str) -> bool:
    """Return whether positions in the answer column count from 1 rather than from 0.

    Args:
        rows: rows of one file.
        column: see `choices_of`.
        answer: column with the answer.

    Raises:
        DataError: the positions fit both.
    """
    ends = [
        (int(word), len(choices))
        for row in rows
        if (word := (as_word(cell(row, answer)) or "").strip()).isdigit()
        and word not in (choices := choices_of(row, column))
        and word not in choices.values()
    ]
    if not ends or any(position == 0 for position, _ in ends):
        return False
    if any(position == count for position, count in ends):
        return True
    if len(rows) == 1:
        return False
    positions = sorted({position for position, _ in ends})
    raise DataError(
        f"{file_of(rows)}: {answer} contains the positions {positions[0]} to {positions[-1]}, which may count "
        "from 0 or from 1; write the letters of the right choices (A, B, ...) in it"
    )
