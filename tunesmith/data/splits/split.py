"""Split one list of examples into train, validation and test without overlap."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.parsers import prompt_of, question
from tunesmith.data.examples.types import Example, LabelledText, Pair, Text, UnpairedPreference
from tunesmith.data.readers.row import file_of
from tunesmith.data.schema.cells import same_flags
from tunesmith.data.stored import array_of, joined, slices, take
from tunesmith.errors import DataError, Refused

Keys = NDArray[np.uint64]
# Rows that are sorted at a time: what is held in memory does not grow with the file.
SORTED = 1 << 20
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
    keys = array_of(len(examples), "<u8,?", ((_key(example, seed), bool(example.group)) for example in examples))
    prompts, grouped = keys["f0"], keys["f1"]
    single = len(examples) - int(grouped.sum())
    group_keys = _groups(examples, seed) if grouped.any() else prompts[:0]
    groups = sum(len(np.unique(group_keys[rows][grouped[rows]])) for rows in key_ranges(group_keys))
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
    return Split(**parts, removed=removed, notes=(*notes, *label_notes(parts)))


def separate(
    train: Sequence[Example], held_out: Sequence[Example], *, what: str = "test", fix: str = "give another test file"
) -> tuple[Sequence[Example], int]:
    """Remove the prompts of `held_out` from `train`; return the remaining rows and the number removed.

    Raise Refused if 95 % of the held-out rows appear in train: then the file is a copy, not a test.
    """
    train_prompts, held_out_prompts = _prompts(train, 0), _prompts(held_out, 0)
    in_both = _among(train_prompts, held_out_prompts)
    copies = int(_among(held_out_prompts, train_prompts[in_both]).sum())
    if len(held_out) and copies >= TOO_MANY_COPIES * len(held_out):
        problem = f"{copies} of {len(held_out)} {what} rows also appear in {file_of(train)}"
        raise Refused(f"{file_of(held_out)}: {problem}; {fix}")
    remaining = take(train, ~in_both)
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


def label_notes(parts: Mapping[str, Sequence[Example]]) -> list[str]:
    """Return notes on labels that mean the same, and on those that a held-out part has and train does not.

    Args:
        parts: train, validation and test examples by name.
    """
    learned = _labels(parts["train"])
    return same_flags(learned) + [
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
    return array_of(len(examples), "<u8", (_key(example, seed) for example in examples))


def _key(example: Example, seed: int) -> int:
    return _seeded_hash(question(example), seed)


def _among(keys: Keys, others: Keys) -> NDArray[np.bool_]:
    """Return whether each key is one of others, as `np.isin` does, without sorting both together."""
    others = np.unique(others)
    found = np.zeros(len(keys), bool)
    for part in slices(len(keys)) if len(others) else ():
        found[part] = others[np.searchsorted(others, keys[part]).clip(max=len(others) - 1)] == keys[part]
    return found


def key_ranges(keys: Keys) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of keys, equal ones together: in ascending ranges of keys, those of one range in order."""
    count = -(-len(keys) // SORTED)
    for number in range(count):
        hits = (((keys[part] >> 32) * count >> 32 == number, part.start) for part in slices(len(keys)))
        yield np.concatenate([start + np.flatnonzero(hit) for hit, start in hits])


def _groups(examples: Sequence[Example], seed: int) -> Keys:
    """Return the hash of each group; a row without a group is its own group."""
    names = (example.group or f"\x1f{index}" for index, example in enumerate(examples))
    return array_of(len(examples), "<u8", (_seeded_hash(name, seed) for name in names))


def _by_group(groups: Keys, sizes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Assign whole groups to held-out parts while they bring the part closer to its size.

    Returns:
        The index in `PARTS` of the part of each row.
    """
    assignment = array_of(len(groups), "|u1")
    taken = dict.fromkeys(sizes, 0)
    for rows in key_ranges(groups):
        _, members, counts = np.unique(groups[rows], return_inverse=True, return_counts=True)
        part_of_group = np.zeros(len(counts), np.uint8)
        for group, count in enumerate(counts.tolist()):
            for name, size in sizes.items():
                if abs(taken[name] + count - size) < abs(taken[name] - size):
                    part_of_group[group] = PARTS.index(name)
                    taken[name] += count
                    break
        assignment[rows] = part_of_group[members]
    return assignment


def _by_label(examples: Sequence[Example], prompts: Keys, sizes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Assign rows to held-out parts in proportion to labels; one row of each label stays in train.

    Returns:
        The index in `PARTS` of the part of each row.
    """
    known: dict[tuple[str, ...], int] = {}
    labelled = isinstance(next(iter(examples), None), LabelledText)
    labels = (tuple(sorted(e.labels)) for e in examples if isinstance(e, LabelledText))
    combinations = labels if labelled else repeat((), len(examples))
    strata = array_of(len(examples), "<i4", (known.setdefault(label, len(known)) for label in combinations))
    seen = np.zeros(len(known), np.int64)
    rows_of = sum((np.bincount(strata[part], minlength=len(seen)) for part in slices(len(strata))), seen)
    merged = np.arange(len(seen))
    if labelled and any(isinstance(e, LabelledText) and e.multi for e in examples):
        # Multi-label: combinations of labels that occur once form one stratum, in the place of the first of them.
        once = np.flatnonzero(rows_of == 1)
        merged[once] = once[:1]
    stratum_sizes = np.bincount(merged, rows_of).astype(int).tolist()
    limits = [max(0, size - 1) for size in stratum_sizes]
    ends: list[tuple[int, NDArray[np.int64]]] = []  # by part, the rank in its stratum where the part ends
    for name, size in sizes.items():
        counts = _apportioned(size, stratum_sizes, limits=limits)
        limits = [limit - count for limit, count in zip(limits, counts, strict=True)]
        ends.append((PARTS.index(name), np.array(counts, np.int64) + (ends[-1][1] if ends else 0)))
    assignment = array_of(len(examples), "|u1")
    for rows in key_ranges(prompts):
        rows = rows[np.lexsort((prompts[rows], merged[strata[rows]]))]
        own = merged[strata[rows]]
        ranks = seen[own] + np.arange(len(own)) - np.searchsorted(own, own)
        for part, end in reversed(ends):
            assignment[rows[ranks < end[own]]] = part
        seen += np.bincount(own, minlength=len(seen))
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
    for rows in key_ranges(prompts):
        keys, parts = prompts[rows], assignment[rows]
        for number in range(len(PARTS)):  # a later part keeps what an earlier one repeats
            assignment[rows[(parts == number) & _among(keys, keys[parts > number])]] = len(PARTS)
    return {name: take(examples, assignment == number) for number, name in enumerate(PARTS)}


def _labels(examples: Iterable[Example]) -> Counter[str]:
    labelled = isinstance(next(iter(examples), None), LabelledText)
    return Counter(label for e in (examples if labelled else ()) if isinstance(e, LabelledText) for label in e.labels)


def _seeded_hash(text: str, seed: int) -> int:
    """Return 64 bits that order rows at random; the order depends on the seed and the text only."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1e{text}".encode(errors="surrogatepass"), digest_size=8).digest())
