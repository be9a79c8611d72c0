"""Recognize single values, independent of the column name: texts, turns, answers, ratings, labels."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from tunesmith.data.readers.row import PLURALS, Row, as_word
from tunesmith.data.tokenization.messages import ROLES, turns_in
from tunesmith.errors import DataError

_ITEM = r"""(?:'[^',]*'|"[^",]*"|[-\d.]+)"""
ARRAY = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]")
# Of a word in BIO, BIOES or BILOU.
TAG = re.compile(r"([BSU])-(.+)|([IELM])-(.+)")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
# Share of the values of a scale that are numeric, and the distinct ones up to which they may be codes of labels.
MOST_NUMBERS = 0.9
MOST_CODES, FEWEST_CODES = 20, 5
LONGEST_LABEL = 60  # characters
# Types of Label Studio's results that mark spans; only the positions of the first count characters of a plain text.
SPAN_RESULTS = ("labels", "hypertextlabels", "paragraphlabels")
SEPARATORS = (";", "|", ",")  # between several labels of one text
MOST_DISTINCT = 0.5
# Texts in a numeric column that mean a missing value. In other columns, they may be labels or answers.
NO_NUMBER = ("-", "na", "n/a", "#n/a", "nan", "null", "none", "<na>")
# Lower-case spellings of a rating.
UP = ("true", "1", "1.0", "yes", "good", "up", "thumbs up", "thumbs_up", "+1", "positive", "like", "👍")
DOWN = ("false", "0", "0.0", "no", "bad", "down", "thumbs down", "thumbs_down", "-1", "negative", "dislike", "👎")
GOOD = {**dict.fromkeys(UP, True), **dict.fromkeys(DOWN, False)}


def thumb_of(value: object) -> bool | None:
    """Return whether a rating is positive; None if the value is not a rating."""
    return GOOD.get((as_word(value) or "").strip().lower())


def is_thumb(value: object) -> bool:
    """Return whether the value is a rating, also as text from a csv."""
    return thumb_of(value) is not None


def is_text(value: object) -> bool:
    """Return whether the value is a non-blank text."""
    return isinstance(value, str) and bool(value.strip())


def has_letters(value: object) -> bool:
    """Return whether the value is a text with a letter; every value of a csv file is a text."""
    return isinstance(value, str) and any(map(str.isalpha, value))


def may_be_text(value: object) -> bool:
    """Return whether the value is a text or missing."""
    return isinstance(value, str) or is_nothing(value)


def is_nothing(value: object) -> bool:
    """Return whether the value is missing: None, NaN or an empty list."""
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def is_blank(value: object) -> bool:
    """Return whether a cell is missing or only spaces. An empty list is a value: a row may have no labels."""
    return value != [] and (is_nothing(value) or (isinstance(value, str) and not value.strip()))


def lacks_number(value: object) -> bool:
    """Return whether a cell in a numeric column is blank, or a text that means a missing number."""
    return is_blank(value) or (isinstance(value, str) and value.strip().lower() in NO_NUMBER)


def are_turns(value: object) -> bool:
    """Return whether the value is a list of turns with role and content."""
    return _are_turns(value, "role", "content")


def are_shares(value: object) -> bool:
    """Return whether the value is a list of turns with from and value, as in ShareGPT."""
    return _are_turns(value, "from", "value")


def is_dialogue(value: object) -> bool:
    """Return whether the value is a list of turns of either format."""
    return are_turns(value) or are_shares(value)


def is_open(value: object) -> bool:
    """Return whether the value is a list of turns that does not end with an answer."""
    if not is_dialogue(value):
        return False
    try:
        *_, last = turns_in(value, "")
    except DataError:
        return False
    speaker = last.get("role", last.get("from")) if isinstance(last, Mapping) else ""
    return ROLES.get(str(speaker).strip().lower()) != "assistant"


def listed(value: object) -> list[Any]:
    """Return the items of a list, also of one written as JSON or Python text; empty for any other value."""
    return _read_list(value) or []


def _read_list(value: object) -> list[Any] | None:
    """Return a list, also one written as JSON or Python text; None for any other value."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value if isinstance(value, list) else None
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return _read_list(read(value))
    return None


def span_items(value: object) -> list[Any] | None:
    """Return the spans of a cell; None for anything but a list, or if no annotation of Label Studio is one of spans.

    Of several annotations, the results of the first of spans that was not cancelled are returned.
    """
    items = _read_list(value)
    if (annotations := _annotations(items)) is not None:
        items = None if not annotations else [item for item in annotations[0] if item.get("type") == "labels"]
    return items and [
        item["value"] if isinstance(item, Mapping) and isinstance(item.get("value"), Mapping) else item
        for item in items
    ]


def span_results(value: object) -> list[Mapping[str, Any]]:
    """Return the results with spans of Label Studio's annotation that `span_items` reads; empty without annotations."""
    annotations = _annotations(_read_list(value))
    return [item for item in annotations[0] if item.get("type") in SPAN_RESULTS] if annotations else []


def _annotations(items: list[Any] | None) -> list[list[Mapping[str, Any]]] | None:
    """Return the results of each annotation of spans that was not cancelled; None for other items.

    An annotation without any result says that nothing is marked. One that only has results of other kinds, such as
    choices, is not one of spans.
    """
    found = [item for item in items or () if isinstance(item, Mapping) and isinstance(item.get("result"), list)]
    if not found:
        return None
    results = [item["result"] for item in found if not item.get("was_cancelled")]
    objects = [[item for item in result if isinstance(item, Mapping)] for result in results]
    return [result for result in objects if not result or any(item.get("type") in SPAN_RESULTS for item in result)]


def is_spans(value: object) -> bool:
    """Return whether the value is a list of objects with start and end, or of [start, end, label], or empty."""
    return _read_list(value) is not None and all(
        {"start", "end"} <= item.keys()
        if isinstance(item, Mapping)
        else isinstance(item, list | tuple) and [*map(type, item)] == [int, int, str]
        for item in span_items(value) or ()
    )


def is_tag(value: object) -> bool:
    """Return whether the value is the tag of a word: O, or a prefix such as B or I and a label."""
    return isinstance(value, str) and (value == "O" or TAG.fullmatch(value) is not None)


def is_array(value: object) -> bool:
    """Return whether the value is a numpy array written as text, without commas."""
    return isinstance(value, str) and ARRAY.fullmatch(value.strip()) is not None


def number_of(value: object) -> float | None:
    """Return a finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def is_number(value: object) -> bool:
    """Return whether the value is a finite number, also one written as text."""
    return number_of(value) is not None


def is_scale(values: Sequence[object], *, counted: bool = False) -> bool:
    """Return whether values of a column are on a numeric scale rather than the codes of labels.

    Codes are integers, and few. So are stars, which may be learned as labels. Fractions of JSON cannot be labels. If
    `counted`, integers may be a scale, too, as the column has the name of a quantity.
    """
    numbers = [number for number in map(number_of, values) if number is not None]
    distinct = set(numbers)
    fractions = any(number != int(number) for number in distinct)
    no_labels = any(
        isinstance(value, float) and value != int(value) for value in values if number_of(value) is not None
    )
    return (
        len(numbers) >= MOST_NUMBERS * max(1, len(values))
        and (fractions or counted)
        and len(distinct) > (FEWEST_CODES if no_labels else min(MOST_CODES, max(FEWEST_CODES, len(numbers) // 2)))
    )


def label_items(value: object, separator: str = "") -> list[Any]:
    """Return the labels of a cell: the items of a list, also of one written as text, or the single value.

    Args:
        value: the cell.
        separator: what separates the labels in the texts of its column (see `label_separator`); empty for none.
    """
    if separator and isinstance(value, str):
        return [part for part in map(str.strip, value.split(separator)) if part]
    if isinstance(value, list | tuple):
        return list(value)
    if is_array(value):
        return [value]
    items = listed(value)
    return items if items or (isinstance(value, str) and value.strip() == "[]") else [value]


def has_plural_name(column: str) -> bool:
    """Return whether the texts of a column of this name may be several labels."""
    return column.rpartition(".")[2].strip().lower().endswith(PLURALS)


def label_separator(rows: Sequence[Row], column: str, known: Collection[str] = ()) -> str:
    """Return what separates several labels in the texts of a column; empty if each text is one label.

    The column must have a plural name. Its parts must be `known`, or repeat and have no more kinds than whole texts.

    Args:
        rows: rows of one file.
        column: column with the labels.
        known: labels of the training file or of the model.
    """
    if not has_plural_name(column):
        return ""
    texts = [value for row in rows if isinstance(value := row.fields.get(column), str) and value.strip()]
    texts = [text for text in texts if not text.lstrip().startswith("[")]
    for separator in SEPARATORS:
        parts = [part.strip() for text in texts for part in text.split(separator)]
        separated = sum(separator in text for text in texts)
        repeated = len(set(parts)) <= MOST_DISTINCT * len(parts) and len(set(parts)) <= len(set(texts))
        learned = set(parts) <= set(known) and not set(texts) <= set(known)
        if separated and (repeated or learned) and all(0 < len(part) <= LONGEST_LABEL for part in parts):
            return separator
    return ""


def is_answer(value: object) -> bool:
    """Return whether the value is a non-blank text or a list of turns."""
    return is_text(value) or is_dialogue(value)


def is_label(value: object) -> bool:
    """Return whether the value is a short word, whole number or boolean, or a list of them."""
    words = [None if isinstance(item, list) else as_word(item) for item in label_items(value)]
    return all(word is not None and 0 < len(word.strip()) <= LONGEST_LABEL for word in words)


def _are_turns(value: object, speaker: str, content: str) -> bool:
    """Return whether the value is a list of turns with the given keys; a turn of calls may have no content."""
    try:
        turns = turns_in(value, "")
    except DataError:
        return speaker == "role"  # the parser reports the error
    keys = (content, "tool_calls", "function_call")
    return bool(turns) and all(
        isinstance(turn, Mapping) and speaker in turn and any(map(turn.__contains__, keys)) for turn in turns
    )
