"""Questions with choices: the choices of a row, and which of them an answer column names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    The column has a list, or `{"text": [...], "label": [...]}`; or there is one column per choice, joined by ` + `.
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


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions of choices in an answer column."""

    from_one: bool = False  # the first choice is 1, not 0
    # a number is a position even where it equals the text of a choice, as in questions of arithmetic
    before_texts: bool = False


FROM_ZERO, FROM_ONE = Positions(), Positions(from_one=True)


def named_choice(row: Row, column: str, answer: str, positions: Positions) -> str:
    """Return the key of the choice that the answer names: by key, letter, text or position; empty if by none."""
    choices = choices_of(row, column)
    word = (as_word(cell(row, answer)) or "").strip()
    keys = list(choices)
    if word in choices:
        return word
    bare = word.strip("().: ").upper()
    if key := next((key for key in keys if key.upper() == bare), ""):
        return key
    by_text = next((key for key, text in choices.items() if text.strip().lower() == word.lower()), "")
    position = int(bare) - positions.from_one if bare.isdecimal() else -1
    by_position = keys[position] if 0 <= position < len(keys) else ""
    if named := (by_position or by_text) if positions.before_texts else (by_text or by_position):
        return named
    return keys[ascii_uppercase.index(bare)] if len(bare) == 1 and bare in ascii_uppercase[: len(keys)] else ""


def names_a_choice(row: Row, column: str, answer: str) -> bool:
    """Return whether a row has two or more choices and its answer names one of them, counted from 0 or 1."""
    if len(choices_of(row, column)) < FEWEST:
        return False
    return any(named_choice(row, column, answer, positions) for positions in (FROM_ZERO, FROM_ONE))


def positions_in(rows: Sequence[Row], column: str, answer: str) -> Positions:
    """Return whether the answer column contains positions of choices, and how they count.

    An integer that is also the text of a choice is a position if the answers are stored as integers and the choices
    as texts, or if more rows can only be read as positions than as texts.

    Raises:
        DataError: the positions fit counting from 0 and from 1.
    """
    numbers: list[tuple[int, int]] = []  # (number, choices of the row)
    texts: list[tuple[int, int]] = []  # the same, where the number is also the text of a choice
    for row in rows:
        word = (as_word(cell(row, answer)) or "").strip()
        if not word.isdecimal() or word in (choices := choices_of(row, column)):
            continue
        equal = word in {text.strip() for text in choices.values()}
        (texts if equal else numbers).append((int(word), len(choices)))
    typed = all(isinstance(cell(row, answer), int) for row in rows) and not any(
        _has_number(row, column) for row in rows
    )
    before_texts = typed or len(numbers) > sum(number > count for number, count in texts)
    if before_texts:
        numbers += [(number, count) for number, count in texts if number <= count]
    if not numbers or any(number == 0 for number, _ in numbers):
        return Positions(before_texts=before_texts)
    if any(number == count for number, count in numbers):
        return Positions(from_one=True, before_texts=before_texts)
    if len(rows) == 1:
        return Positions(before_texts=before_texts)
    found = sorted({number for number, _ in numbers})
    raise DataError(
        f"{file_of(rows)}: {answer} contains the positions {found[0]} to {found[-1]}, which may count "
        "from 0 or from 1; write the letters of the right choices (A, B, ...) in it"
    )


def _has_number(row: Row, column: str) -> bool:
    """Return whether a choice of a row is stored as a number, not as text."""
    value = cell(row, column)
    if isinstance(value, Mapping):
        value = value.get("text", list(value.values()))
    return isinstance(value, list) and any(isinstance(item, int | float) for item in value)
