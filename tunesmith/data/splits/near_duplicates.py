"""Near-duplicates between training and held-out documents: edited copies, extracts and containing documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from tunesmith.data.examples.types import Example, Text
from tunesmith.data.splits.split import Split
from tunesmith.data.stored import joined, take
from tunesmith.data.text.minhash import slots
from tunesmith.data.text.overlap import QuotationRule, held, leaked
from tunesmith.data.text.words import words_of
from tunesmith.errors import DataError
from tunesmith.progress import track

# Runs of eight words rarely occur twice by chance; half of a document's runs in another document is a copy. Fewer than
# eight common runs are a heading or a notice. Chosen, not measured.
RULE = QuotationRule(run=8, fewest=8, most_owners=0)
# Prompts share instructions: runs of more than two held-out ones are common phrases.
PROMPT_RULE = replace(RULE, most_owners=2)
# Texts with fewer words do not contain eight runs.
SHORT = RULE.run + RULE.fewest - 1
AT_ONCE = 1000  # documents compared in one array operation


def without_near_copies(split: Split) -> Split:
    """Remove training documents that are near-duplicates of held-out ones, and validation documents of test ones.

    Removals are counted in the notes. Splits of other examples are returned unchanged. Raise DataError if fewer than
    two training documents remain.
    """
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    if not all(isinstance(example, Text) for part in parts.values() for example in part[:1]):
        return split
    notes = list(split.notes)
    removed = 0
    for name, against in (("validation", split.test), ("train", joined(split.validation, split.test))):
        near = near_copies(parts[name], against)
        removed += len(near)
        if near:
            kept = np.ones(len(parts[name]), bool)
            kept[list(near)] = False
            parts[name] = take(parts[name], kept)
            other = "test" if name == "validation" else "a held-out part"
            notes.append(f"{len(near)} documents removed from {name}: {other} contains most of the same text")
    if len(parts["train"]) < 2:
        raise DataError(
            f"train: {len(parts['train'])} documents remain after removing near-duplicates of held-out documents; "
            "add more documents"
        )
    return replace(split, **parts, removed=split.removed + removed, notes=tuple(notes))


def near_copies(documents: Sequence[Example], others: Sequence[Example], rule: QuotationRule = RULE) -> set[int]:
    """Find documents that share half of their runs of eight words, or of its runs, with a held-out document.

    Documents too short for that match only if all words are equal.

    Args:
        documents: candidates.
        others: held-out documents.
        rule: how long the runs are, and which of them count.

    Returns:
        Indices into `documents`.
    """
    text = "looking for near-duplicates"
    index = held([slots(_words(example)) for example in track(others, text, unit="documents", total=len(others))], rule)
    short = {tuple(words) for example in others if 0 < len(words := _words(example)) < SHORT}
    near: set[int] = set()
    rest = iter(track(documents, text, unit="documents", total=len(documents)))
    for start in range(0, len(documents), AT_ONCE):
        words_of_each = [_words(example) for example in islice(rest, AT_ONCE)]
        near |= {start + i for i, words in enumerate(words_of_each) if tuple(words) in short}
        near |= {start + i for i in leaked(list(map(slots, words_of_each)), index)}
    return near


def _words(example: Example) -> list[str]:
    return words_of(example.text if isinstance(example, Text) else "")
