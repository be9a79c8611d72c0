"""Split one list of examples into train, validation and test without overlap."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.parsers import prompt_of, question
from tunesmith.data.examples.types import Example, LabelledText, Pair, Text, UnpairedPreference
from tunesmith.data.readers.row import file_of
from tunesmith.data.stored import joined, take
from tunesmith.errors import DataError, Refused

Keys = NDArray[np.uint64]
TOO_MANY_COPIES = 0.95
# Below this number of prompts, preference rows are not split by prompt.
FEWEST_PROMPTS = 10
PASSAGES = "tunesmith collect FOLDER --as domain --out FILE.jsonl"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """Train, validation and test examples.

    Attributes:
        train: training examples, in file order.
        validation: validation examples, in file order.
        test: test examples, in file order.
        removed: number of rows in no part, because a held-out part contains a duplicate.
        notes: remarks for the log and the report.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    removed: int
    notes: tuple[str, ...]

    def examples(self) -> Sequence[Example]:
        """Return the examples of all parts."""
        return joined(self.train, self.validation, self.test)


def split(examples: Sequence[Example], *, validation: float, test: float, seed: int) -> Split:
    """Split examples by group, else stratified by label; the same seed gives the same split.

    Rows are ordered by a hash of the seed and their group or prompt, so that appending rows moves few others. Test is
    taken first and does not depend on `validation`. Then duplicates of held-out prompts are removed from the other
    parts. Without groups, preference rows are grouped by prompt.

    Args:
        examples: examples of one file.
        validation: fraction of all rows, in [0, 1), or a number of rows.
        test: fraction of all rows, in [0, 1), or a number of rows.
        seed: seed of the order.

    Raises:
        DataError: if a fraction is invalid, a requested part is empty or fewer than two training rows remain.
    """
    ungrouped = examples
    examples = by_prompt(examples, fewest=FEWEST_PROMPTS)
    unit = "groups" if examples is ungrouped else "prompts"
    fractions = {"test": test, "validation": validation}
    sizes = {name: _size(name, amount, len(examples)) for name, amount in fractions.items()}
    counted = any(isinstance(amount, int) and amount for amount in fractions.values())
    if counted and sum(sizes.values()) >= len(examples):
        rows = f"{file_of(examples)}: {len(examples)} rows"
        raise DataError(f"{rows}, so test {test} and validation {validation} leave no training rows; lower them")
    if not counted and test + validation >= 1:
        raise DataError(f"test {test} and validation {validation} leave no training rows; lower them")
    prompts = _prompts(examples, seed)
    grouped = np.fromiter((bool(example.group) for example in examples), bool, len(examples))
    single = len(examples) - int(grouped.sum())
    group_keys = _groups(examples, seed) if grouped.any() else prompts[:0]
    groups = len(np.unique(group_keys[grouped])) if grouped.any() else 0
    assignment = _by_group(group_keys, sizes) if groups else _by_label(examples, prompts, sizes)
    parts = _without_copies(examples, prompts, assignment)
    removed = len(examples) - sum(map(len, parts.values()))
    _check_parts(examples, parts, fractions, groups=groups)
    notes = []
    if test or validation:
        without_group = f" ({single} rows have no group; each is its own group)" if single else ""
        method = f"{groups} {unit}, none in two parts{without_group}" if groups else "by row, without groups"
        counts = ", ".join(f"{name} {len(parts[name])}" for name in PARTS if fractions.get(name, 1))
        notes.append(f"{file_of(examples)}: split into {counts} rows; {method}")
    if removed:
        notes.append(f"{removed} rows removed: a held-out part contains the same prompt")
    return Split(**parts, removed=removed, notes=(*notes, *unlearned_labels(parts)))


def separate(
    train: Sequence[Example], held_out: Sequence[Example], *, what: str = "test", fix: str = ""
) -> tuple[Sequence[Example], int]:
    """Remove the prompts of `held_out` from `train`; return the remaining rows and the number removed.

    Raise Refused if 95 % of the held-out rows appear in train: then the file is a copy, not a test.
    """
    train_prompts, held_out_prompts = _prompts(train, 0), _prompts(held_out, 0)
    copies = int(_among(held_out_prompts, train_prompts).sum())
    if len(held_out) and copies >= TOO_MANY_COPIES * len(held_out):
        problem = f"{copies} of {len(held_out)} {what} rows also appear in {file_of(train)}"
        raise Refused(f"{file_of(held_out)}: {problem}; {fix or f'give a {what} file with other rows'}")
    remaining = take(train, np.flatnonzero(~_among(train_prompts, held_out_prompts)))
    return remaining, len(train) - len(remaining)


def by_prompt(examples: Sequence[Example], *, fewest: int = 2) -> Sequence[Example]:
    """Group preference rows by prompt if none has a group and some share a prompt.

    Args:
        examples: examples of any type.
        fewest: minimum number of prompts; with fewer, the rows stay ungrouped.

    Returns:
        The grouped rows, or `examples` itself if nothing was grouped.
    """
    if not isinstance(next(iter(examples), None), Pair | UnpairedPreference):
        return examples
    preferences = [
        example for example in examples if isinstance(example, Pair | UnpairedPreference) and not example.group
    ]
    prompts = [f"{_seeded_hash(prompt_of(example), 0):016x}" for example in preferences]
    if len(preferences) < len(examples) or not fewest <= len(set(prompts)) < len(prompts):
        return examples
    return [replace(example, group=prompt) for example, prompt in zip(preferences, prompts, strict=True)]


def unlearned_labels(parts: Mapping[str, Sequence[Example]]) -> list[str]:
    """Return a note for each label that a held-out part has and train does not.

    Args:
        parts: train, validation and test examples by name.
    """
    learned = _labels(parts["train"])
    return [
        f"label {label!r} occurs in {name} ({count} rows) but not in train: it cannot be learned"
        for name in PARTS[1:]
        for label, count in _labels(parts[name]).items()
        if label not in learned
    ]


def _size(name: str, amount: float, rows: int) -> int:
    """Return the number of rows of a held-out part. Raises DataError."""
    if not (amount >= 0 if isinstance(amount, int) else 0 <= amount < 1):
        problem = f"expected a fraction in [0, 1), a whole number of rows or a file, got {amount}"
        raise DataError(f"{name}: {problem}; use 0.2")
    return amount if isinstance(amount, int) else int(rows * amount + 0.5)


def _check_parts(
    examples: Sequence[Example], parts: Mapping[str, Sequence[Example]], fractions: Mapping[str, float], *, groups: int
) -> None:
    """Raise DataError if a requested part is empty or fewer than two training rows remain."""
    rows = f"{file_of(examples)}: {len(examples)} rows" + (f" in {groups} groups" if groups else "")
    removed = len(examples) - sum(map(len, parts.values()))
    copies = f" after removing {removed} copies of held-out prompts" if removed else ""
    for name, fraction in fractions.items():
        if fraction and not parts[name]:
            fix = f"{_more(examples, groups)}, raise the fraction, or write {name}: 0"
            raise DataError(f"{rows} leave {name} empty at {name}: {fraction}{copies}; {fix}")
    if len(parts["train"]) < 2:
        fix = f"{_more(examples, 0)}, or lower validation and test"
        raise DataError(f"{rows} leave {len(parts['train'])} for training{copies}; {fix}")


def _more(examples: Sequence[Example], groups: int) -> str:
    """Return the fix for too few rows; a document is one row, however long."""
    passages = f", split documents into passages (`{PASSAGES}`)" if isinstance(examples[0], Text) else ""
    return f"give more {'groups' if groups else 'rows'}{passages}"


def _prompts(examples: Sequence[Example], seed: int) -> Keys:
    """Return the hash of each prompt: equal for equal prompts, in random order, and 8 bytes however long they are."""
    return np.fromiter((_seeded_hash(question(example), seed) for example in examples), np.uint64, len(examples))


def _among(keys: Keys, others: Keys) -> NDArray[np.bool_]:
    """Return whether each key is one of others, as `np.isin` does, without sorting both together."""
    others = np.unique(others)
    if not len(others):
        return np.zeros(len(keys), bool)
    found: NDArray[np.bool_] = others[np.searchsorted(others, keys).clip(max=len(others) - 1)] == keys
    return found


def _groups(examples: Sequence[Example], seed: int) -> Keys:
    """Return the hash of each group; a row without a group is its own group."""
    names = (example.group or f"\x1f{index}" for index, example in enumerate(examples))
    return np.fromiter((_seeded_hash(name, seed) for name in names), np.uint64, len(examples))


def _by_group(groups: Keys, sizes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Assign whole groups to held-out parts while they bring the part closer to its size.

    Returns:
        The index in `PARTS` of the part of each row.
    """
    keys, members, counts = np.unique(groups, return_inverse=True, return_counts=True)
    part_of_group = np.zeros(len(keys), np.uint8)
    available = np.arange(len(keys))
    for name, size in sizes.items():
        taken = 0
        for group, count in zip(available.tolist(), counts[available].tolist(), strict=True):
            if abs(taken + count - size) < abs(taken - size):
                part_of_group[group] = PARTS.index(name)
                taken += count
        available = np.flatnonzero(part_of_group == 0)
    return part_of_group[members]


def _by_label(examples: Sequence[Example], prompts: Keys, sizes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Assign rows to held-out parts in proportion to labels; one row of each label stays in train.

    Returns:
        The index in `PARTS` of the part of each row.
    """
    known: dict[tuple[str, ...], int] = {}
    labels = (tuple(sorted(e.labels)) if isinstance(e, LabelledText) else () for e in examples)
    strata = np.fromiter((known.setdefault(label, len(known)) for label in labels), np.int32, len(examples))
    if any(isinstance(e, LabelledText) and e.multi for e in examples):
        # Multi-label: combinations of labels that occur once form one stratum, in the place of the first of them.
        once = np.flatnonzero(np.bincount(strata) == 1)
        strata[np.isin(strata, once)] = once[0] if len(once) else 0
    order = np.lexsort((prompts, strata))
    names, starts = np.unique(strata[order], return_index=True)
    members = np.split(order, starts[1:])
    stratum_sizes = [len(rows) for rows in members]
    assignment = np.zeros(len(examples), np.uint8)
    for name, size in sizes.items():
        counts = _apportioned(size, stratum_sizes, limits=[len(rows) - 1 for rows in members])
        for index, count in enumerate(counts):
            assignment[members[index][:count]] = PARTS.index(name)
            members[index] = members[index][count:]
    return assignment


def _apportioned(size: int, strata: Sequence[int], *, limits: Sequence[int]) -> list[int]:
    """Distribute `size` rows over strata in proportion to their sizes, largest remainders first, within the limits.

    Rows beyond a limit are not moved to other strata, which would exceed their share.
    """
    total = max(1, sum(strata))
    counts = [min(stratum * size // total, limit) for stratum, limit in zip(strata, limits, strict=True)]
    order = sorted(range(len(strata)), key=lambda i: -(strata[i] * size % total))
    eligible = [i for i in order if counts[i] < limits[i] and counts[i] == strata[i] * size // total]
    for i in eligible[: size - sum(counts)]:
        counts[i] += 1
    return counts


def _without_copies(
    examples: Sequence[Example], prompts: Keys, assignment: NDArray[np.uint8]
) -> dict[str, Sequence[Example]]:
    """Build the parts without rows that repeat a prompt of test, and in train of validation."""
    held_out = {name: prompts[assignment == PARTS.index(name)] for name in PARTS}
    excluded = {"train": np.concatenate([held_out["validation"], held_out["test"]]), "validation": held_out["test"]}
    parts: dict[str, Sequence[Example]] = {}
    for number, name in enumerate(PARTS):
        rows = np.flatnonzero(assignment == number)
        copies = _among(prompts[rows], excluded.get(name, prompts[:0]))
        parts[name] = take(examples, rows[~copies])
    return parts


def _labels(examples: Iterable[Example]) -> Counter[str]:
    return Counter(label for e in examples if isinstance(e, LabelledText) for label in e.labels)


def _seeded_hash(text: str, seed: int) -> int:
    """Return 64 bits that order rows at random; the order depends on the seed and the text only."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1e{text}".encode(errors="surrogatepass"), digest_size=8).digest())
