"""Documents that hold much of a held-out document: copies with other words here and there, extracts, wholes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.audit.runs import QuotationRule, held, leaked
from tunesmith.data.audit.shingles import slots
from tunesmith.data.examples import Example, Text
from tunesmith.data.split import Split
from tunesmith.data.words import words_of
from tunesmith.errors import DataError

# Runs of eight words are seldom written twice; half of a document's runs in another is no chance. Fewer than eight runs
# in common are a heading or a notice. Chosen, not measured.
RULE = QuotationRule(run=8, fewest=8, most_owners=0)
# Texts of fewer words have no eight runs.
SHORT = RULE.run + RULE.fewest - 1


def without_near_copies(split: Split) -> Split:
    """The split of texts without training documents that are near to held-out ones, nor validation near to test.

    The removed ones are counted and said. Splits of other rows come back as they are. Raises DataError where no two
    documents are left to train on.
    """
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    if not all(isinstance(example, Text) for part in parts.values() for example in part):
        return split
    notes = list(split.notes)
    removed = 0
    for name, against in (("validation", split.test), ("train", [*split.validation, *split.test])):
        near = near_copies(parts[name], against)
        parts[name] = [example for i, example in enumerate(parts[name]) if i not in near]
        removed += len(near)
        if near:
            other = "test" if name == "validation" else "a held-out part"
            notes.append(f"{len(near)} documents left out of {name}: {other} has most of the same text")
    if len(parts["train"]) < 2:
        left = len(parts["train"])
        raise DataError(f"train: {left} documents are left beside near-copies of held-out ones; give more documents")
    return replace(split, **parts, removed=split.removed + removed, notes=tuple(notes))


def near_copies(documents: Sequence[Example], others: Sequence[Example]) -> set[int]:
    """Numbers of the documents that share half of their runs of eight words, or of its, with a held-out document.

    Of those that are too short for that, the ones of the very same words.
    """
    index = held([slots(_words(example)) for example in others], RULE)
    short = {tuple(words) for example in others if 0 < len(words := _words(example)) < SHORT}
    return {
        number
        for number, example in enumerate(documents)
        if tuple(words := _words(example)) in short or leaked([slots(words)], index)
    }


def _words(example: Example) -> list[str]:
    return words_of(example.text if isinstance(example, Text) else "")
