"""Documents that hold much of a held-out document: copies with other words here and there, extracts, wholes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from tunesmith.data.examples import Example, Text
from tunesmith.data.split import Split
from tunesmith.errors import DataError

# Runs of eight words are seldom written twice; half of a document's runs in another is no chance.
RUN, SHARE = 8, 0.5
# Fewer runs in common are a heading or a notice.
FEWEST = 8
WORD = re.compile(r"\w+")


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
    for name, held in (("validation", split.test), ("train", [*split.validation, *split.test])):
        near = near_copies(parts[name], held)
        parts[name] = [example for i, example in enumerate(parts[name]) if i not in near]
        removed += len(near)
        if near:
            other = "test" if name == "validation" else "a held-out part"
            notes.append(f"{len(near)} documents left out of {name}: {other} has most of the same text")
    if len(parts["train"]) < 2:
        left = len(parts["train"])
        raise DataError(f"train: {left} documents are left beside near-copies of held-out ones; give more documents")
    return replace(split, **parts, removed=split.removed + removed, notes=tuple(notes))


def near_copies(documents: Sequence[Example], held: Sequence[Example]) -> set[int]:
    """Numbers of the documents that share half of their runs of eight words, or of its, with a held-out document."""
    holders: dict[int, list[int]] = defaultdict(list)
    sizes = []
    for number, example in enumerate(held):
        found = runs(_text(example))
        sizes.append(len(found))
        for run in found:
            holders[run].append(number)
    near = set()
    for number, example in enumerate(documents):
        found = runs(_text(example))
        shared = Counter(i for run in found for i in holders.get(run, ()))
        if any(n >= FEWEST and n >= SHARE * min(len(found), sizes[i]) for i, n in shared.items()):
            near.add(number)
    return near


def runs(text: str) -> set[int]:
    """Hashes of all runs of eight words, letter case and marks aside."""
    words = WORD.findall(text.casefold())
    return {crc32(" ".join(words[i : i + RUN]).encode("utf-8", "replace")) for i in range(len(words) - RUN + 1)}


def _text(example: Example) -> str:
    return example.text if isinstance(example, Text) else ""
