"""Split one list of examples into train, validation and test without overlap."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.examples.parsers import prompt_of, question
from tunesmith.data.examples.types import Example, LabelledText, Pair, Text, UnpairedPreference
from tunesmith.data.readers.row import file_of
from tunesmith.errors import DataError, Refused

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

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    removed: int
    notes: tuple[str, ...]

    def examples(self) -> list[Example]:
        """Return the examples of all parts."""
        return [*self.train, *self.validation, *self.test]


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
    groups = len({example.group for example in examples} - {""})
    prompts = [question(example) for example in examples]
    assignment = _by_group(examples, sizes, seed) if groups else _by_label(examples, prompts, sizes, seed=seed)
    parts = _without_copies(examples, prompts, assignment)
    removed = len(examples) - sum(map(len, parts.values()))
    _check_parts(examples, parts, fractions)
    notes = []
    if test or validation:
        single = sum(not example.group for example in examples)
        without_group = f" ({single} rows have no group; each is its own group)" if single else ""
        method = f"{groups} {unit}, none in two parts{without_group}" if groups else "by row, without groups"
        counts = ", ".join(f"{name} {len(parts[name])}" for name in PARTS if fractions.get(name, 1))
        notes.append(f"{file_of(examples)}: split into {counts} rows; {method}")
    if removed:
        notes.append(f"{removed} rows removed: a held-out part contains the same prompt")
    return Split(**parts, removed=removed, notes=(*notes, *unlearned_labels(parts)))


def separate(
    train: Sequence[Example], held_out: Sequence[Example], *, what: str = "test", fix: str = ""
) -> tuple[list[Example], int]:
    """Remove the prompts of `held_out` from `train`; return the remaining rows and the number removed.

    Raise Refused if 95 % of the held-out rows appear in train: then the file is a copy, not a test.
    """
    train_prompts = [question(example) for example in train]
    held_out_prompts = [question(example) for example in held_out]
    known = set(train_prompts)
    copies = sum(prompt in known for prompt in held_out_prompts)
    if held_out and copies >= TOO_MANY_COPIES * len(held_out):
        problem = f"{copies} of {len(held_out)} {what} rows also appear in {file_of(train)}"
        raise Refused(f"{file_of(held_out)}: {problem}; {fix or f'give a {what} file with other rows'}")
    excluded = set(held_out_prompts)
    remaining = [example for example, prompt in zip(train, train_prompts, strict=True) if prompt not in excluded]
    return remaining, len(train) - len(remaining)


def by_prompt(examples: Sequence[Example], *, fewest: int = 2) -> Sequence[Example]:
    """Group preference rows by prompt if none has a group and some share a prompt.

    Args:
        examples: examples of any type.
        fewest: minimum number of prompts; with fewer, the rows stay ungrouped.

    Returns:
        The grouped rows, or `examples` itself if nothing was grouped.
    """
    preferences = [
        example for example in examples if isinstance(example, Pair | UnpairedPreference) and not example.group
    ]
    prompts = [_seeded_hash(prompt_of(example), 0).hex() for example in preferences]
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
    examples: Sequence[Example], parts: Mapping[str, Sequence[Example]], fractions: Mapping[str, float]
) -> None:
    """Raise DataError if a requested part is empty or fewer than two training rows remain."""
    groups = len({example.group for example in examples} - {""})
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


def _by_group(examples: Sequence[Example], sizes: Mapping[str, int], seed: int) -> dict[int, str]:
    """Assign whole groups to held-out parts (index -> part) while they bring the part closer to its size."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        members[example.group or f"\x1f{index}"].append(index)  # a row without a group is its own group
    available = sorted(members, key=lambda group: _seeded_hash(group, seed))
    assignment: dict[int, str] = {}
    for name, size in sizes.items():
        taken = 0
        skipped = []
        for group in available:
            if abs(taken + len(members[group]) - size) < abs(taken - size):
                assignment.update(dict.fromkeys(members[group], name))
                taken += len(members[group])
            else:
                skipped.append(group)
        available = skipped
    return assignment


def _by_label(
    examples: Sequence[Example], prompts: Sequence[str], sizes: Mapping[str, int], *, seed: int
) -> dict[int, str]:
    """Assign rows to held-out parts (index -> part) in proportion to labels; one row of each label stays in train."""
    labels = [tuple(sorted(e.labels)) if isinstance(e, LabelledText) else () for e in examples]
    label_counts = Counter(labels)
    multi = any(isinstance(e, LabelledText) and e.multi for e in examples)
    # Multi-label: combinations of labels that occur once form one stratum.
    by_label: dict[tuple[str, ...] | None, list[int]] = defaultdict(list)
    for index, key in enumerate(labels):
        by_label[None if multi and label_counts[key] == 1 else key].append(index)
    strata = list(by_label.values())
    for members in strata:
        members.sort(key=lambda index: _seeded_hash(prompts[index], seed))
    stratum_sizes = [len(members) for members in strata]
    assignment: dict[int, str] = {}
    for name, size in sizes.items():
        counts = _apportioned(size, stratum_sizes, limits=[len(members) - 1 for members in strata])
        for members, count in zip(strata, counts, strict=True):
            assignment.update(dict.fromkeys(members[:count], name))
            del members[:count]
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
    examples: Sequence[Example], prompts: Sequence[str], assignment: Mapping[int, str]
) -> dict[str, list[Example]]:
    """Build the parts without rows that repeat a prompt of test, and in train of validation."""
    held_out = {name: {prompts[i] for i, part in assignment.items() if part == name} for name in PARTS[1:]}
    excluded = {"train": held_out["validation"] | held_out["test"], "validation": held_out["test"], "test": set[str]()}
    parts: dict[str, list[Example]] = {name: [] for name in PARTS}
    for index, example in enumerate(examples):
        name = assignment.get(index, "train")
        if prompts[index] not in excluded[name]:
            parts[name].append(example)
    return parts


def _labels(examples: Iterable[Example]) -> Counter[str]:
    return Counter(label for e in examples if isinstance(e, LabelledText) for label in e.labels)


def _seeded_hash(text: str, seed: int) -> bytes:
    """Return 8 bytes that order rows at random; the order depends on the seed and the text only."""
    return hashlib.blake2b(f"{seed}\x1e{text}".encode(errors="surrogatepass"), digest_size=8).digest()
