"""Values that name the part of a row: train, validation and test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tunesmith.data.readers.row import as_word

DEFAULT_SPLIT = "split"  # used if the file has it
# First word of a value, lower case -> part. `train_sft` and `test-1` begin with such a word.
PART_NAMES = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


def part_of(value: object) -> str:
    """Return `train`, `validation` or `test` for a value of a split column; empty if it names none of them."""
    words = re.findall(r"[^\W\d_]+", (as_word(value) or "").lower())
    return PART_NAMES.get(words[0], "") if words else ""


def split_parts(values: Sequence[object]) -> dict[str, int]:
    """Count the rows of each part that the values of a column name.

    Args:
        values: value of every row.

    Returns:
        Part -> number of rows, blank cells as train; empty if there are other values, or no or all rows are held out.
    """
    filled = [value for value in values if value not in (None, "")]
    parts = Counter(map(part_of, filled))
    if "" in parts or not set(parts) - {"train"}:
        return {}
    parts["train"] += len(values) - len(filled)
    if not parts["train"]:
        return {}
    return {part: parts[part] for part in ("train", "validation", "test") if parts[part]}
