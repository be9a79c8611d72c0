"""Values that name the part of a row: train, validation and test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tunesmith.data.readers.row import as_word

DEFAULT_SPLIT = "split"  # used if the file has it
# First word of a value, lower case -> part. `train_sft` and `test-1` begin with such a word.
PART_NAMES = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}


def part_of(value: object) -> str:
    """Return `train`, `validation` or `test` for a value of a split column; empty if it names none of them."""
    words = re.findall(r"[^\W\d_]+", (as_word(value) or "").lower())
    return PART_NAMES.get(words[0], "") if words else ""


def split_parts(values: Iterable[object]) -> dict[str, int]:
    """Count the rows of each part that the values of a column name, blank ones as train.

    The result is empty if there are other values, or no or all rows are held out.
    """
    parts: Counter[str] = Counter()
    for value in values:
        part = "train" if value in (None, "") else part_of(value)
        if not part:
            return {}
        parts[part] += 1
    if not parts["train"] or len(parts) == 1:
        return {}
    return {part: parts[part] for part in ("train", "validation", "test") if parts[part]}
