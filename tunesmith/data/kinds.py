"""What a single value is, whatever its column is called: a text, turns, an answer, a thumb, a label."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tunesmith.data.rows import as_word
from tunesmith.data.turns import ROLES, turns_in
from tunesmith.errors import DataError

_ITEM = r"""(?:'[^',]*'|"[^",]*"|[-\d.]+)"""
ARRAY = re.compile(rf"\[\s*{_ITEM}(?:\s+{_ITEM})+\s*\]")
LONGEST_LABEL = 60  # characters, also of labels that people write
# What a thumb is called in small letters, and whether it is up.
UP = ("true", "1", "1.0", "yes", "good", "up", "thumbs up", "thumbs_up", "+1", "positive", "like", "👍")
DOWN = ("false", "0", "0.0", "no", "bad", "down", "thumbs down", "thumbs_down", "-1", "negative", "dislike", "👎")
GOOD = {**dict.fromkeys(UP, True), **dict.fromkeys(DOWN, False)}


def thumb_of(value: object) -> bool | None:
    """Whether a thumb is up; None for what is no thumb."""
    return GOOD.get((as_word(value) or "").strip().lower())


def is_thumb(value: object) -> bool:
    """Whether this is a thumb, also as a csv writes it, which has no truth values."""
    return thumb_of(value) is not None


def is_text(value: object) -> bool:
    """Whether this is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def may_be_text(value: object) -> bool:
    """Whether this is a text, or nothing."""
    return isinstance(value, str) or is_nothing(value)


def is_nothing(value: object) -> bool:
    """Whether nothing stands there, as JSON, pandas or a list says it."""
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def are_turns(value: object) -> bool:
    """Whether these are turns of role and content."""
    return _are_turns(value, "role", "content")


def are_shares(value: object) -> bool:
    """Whether these are turns of from and value, as ShareGPT writes them."""
    return _are_turns(value, "from", "value")


def is_dialogue(value: object) -> bool:
    """Whether these are turns of either spelling."""
    return are_turns(value) or are_shares(value)


def is_open(value: object) -> bool:
    """Whether these are turns of which the last waits for an answer."""
    if not is_dialogue(value):
        return False
    try:
        *_, last = turns_in(value, "")
    except DataError:
        return False
    said_by = last.get("role", last.get("from")) if isinstance(last, Mapping) else ""
    return ROLES.get(str(said_by).strip().lower()) != "assistant"


def listed(value: object) -> list[Any]:
    """The items of a list, also of one that was written as text, as JSON or as Python shows it; none of all else."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value if isinstance(value, list) else []
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return listed(read(value))
    return []


def is_array(value: object) -> bool:
    """Whether this is a text in which numpy wrote several items, without commas."""
    return isinstance(value, str) and ARRAY.fullmatch(value.strip()) is not None


def label_items(value: object) -> list[Any]:
    """The labels of a cell: those of a list, also of one that was written as text, or the one that stands there."""
    if isinstance(value, list | tuple):
        return list(value)
    if is_array(value):
        return [value]
    found = listed(value)
    return found if found or (isinstance(value, str) and value.strip() == "[]") else [value]


def is_answer(value: object) -> bool:
    """Whether this is a text that is not blank, or turns."""
    return is_text(value) or is_dialogue(value)


def is_label(value: object) -> bool:
    """Whether this is a short word, a whole number, a truth value or a list of them."""
    words = [None if isinstance(item, list) else as_word(item) for item in label_items(value)]
    return all(word is not None and 0 < len(word.strip()) <= LONGEST_LABEL for word in words)


def _are_turns(value: object, speaker: str, content: str) -> bool:
    try:
        turns = turns_in(value, "")
    except DataError:
        return speaker == "role"  # the parser says what is wrong with them
    return bool(turns) and all(isinstance(turn, Mapping) and speaker in turn and content in turn for turn in turns)
