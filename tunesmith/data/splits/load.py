"""Load the data section of a recipe: files to train, validation and test examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.data.examples.accepted import answer_notes
from tunesmith.data.examples.parsers import fingerprint, group_of, prompt_of
from tunesmith.data.examples.types import Example, Pair, UnpairedPreference
from tunesmith.data.readers.read import read_file
from tunesmith.data.readers.row import Row, file_of, keep
from tunesmith.data.splits.near_duplicates import without_near_copies
from tunesmith.data.splits.split import FEWEST_PROMPTS, Split, by_prompt, separate, split, unlearned_labels
from tunesmith.data.splits.split_column import assigned
from tunesmith.errors import DataError

Parse = Callable[[list[Row]], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Sources:
    """Files of a run, or fractions or numbers of rows of `train`.

    Attributes:
        train: file, folder or Hub dataset.
        validation: file, or fraction or number of the rows of `train`.
        test: file, or fraction or number of the rows of `train`.
        group: column that names the source of a row; a group stays in one split.
        where: column -> allowed values; filters the rows of every file.
        split: column of `train` that names the part of each row; empty: not used.
    """

    train: str
    validation: float | str = 0.1
    test: float | str = 0.2
    group: str = ""
    where: Mapping[str, Sequence[object]] = field(default_factory=dict)
    split: str = ""


@dataclass(frozen=True, slots=True)
class DatasetSplits:
    """Examples of a run.

    Attributes:
        split: train, validation and test examples.
        rows: number of rows of all files after filtering.
        sha256: digest of each part's contents, independent of row order.
    """

    split: Split
    rows: int
    sha256: dict[str, str]


def load(sources: Sources, parse: Parse, *, seed: int, offline: bool = False) -> DatasetSplits:
    """Read, parse and split all files. No prompt and no group occurs in two parts.

    Args:
        sources: files and fractions.
        parse: converts rows into examples.
        seed: seed of the split.
        offline: do not download datasets.

    Raises:
        DataError: if rows are invalid, or no training rows remain.
        Refused: if a held-out file repeats the training file.
    """
    inputs = {"train": sources.train, "validation": sources.validation, "test": sources.test}
    fractions = {name: fraction for name, fraction in inputs.items() if not isinstance(fraction, str)}
    row_count = 0
    parts: dict[str, list[Example]] = {}
    notes: list[str] = []
    for name, source in inputs.items():
        if isinstance(source, str):
            file = read_file(source, offline=offline)
            rows = keep(file.rows, sources.where)
            parts[name] = _grouped(list(parse(rows)), rows, sources.group)
            row_count += len(rows)
            notes += file.notes
            if name == "train":
                parts, note = _by_column(parts["train"], rows, sources)
                notes += filter(None, [note])
    fractions = {name: fraction for name, fraction in fractions.items() if name not in parts}
    if len(parts) > 1:  # `split` groups a single file
        _group_by_prompt(parts, split_train=any(fractions.values()))
    notes += answer_notes([example for part in parts.values() for example in part])
    size = sum(map(len, parts.values()))
    notes += _set_apart(parts)
    removed = size - sum(map(len, parts.values()))
    train_split = split(
        parts["train"], validation=fractions.get("validation", 0.0), test=fractions.get("test", 0.0), seed=seed
    )
    parts = {"validation": train_split.validation, "test": train_split.test, **parts, "train": train_split.train}
    notes += [*train_split.notes, *(note for note in unlearned_labels(parts) if note not in train_split.notes)]
    result = without_near_copies(Split(**parts, removed=removed + train_split.removed, notes=tuple(notes)))
    digests: dict[str, str] = {}
    for name, part in (("train", result.train), ("validation", result.validation), ("test", result.test)):
        contents = sorted(fingerprint(example).encode(errors="surrogatepass") for example in part)
        digests[name] = hashlib.sha256(b"\n".join(contents)).hexdigest()
    return DatasetSplits(result, row_count, digests)


def _by_column(examples: list[Example], rows: Sequence[Row], sources: Sources) -> tuple[dict[str, list[Example]], str]:
    """Return the parts that the split column of the train file names, and a note on it.

    A part with a separate file contains only the rows of that file; rows that the column assigns to it are dropped.
    """
    assignment, note = assigned(rows, sources.split)
    parts = {"train": [example for example in examples if assignment.get(example.where, "train") == "train"]}
    for name, source in (("validation", sources.validation), ("test", sources.test)):
        selected = [example for example in examples if assignment.get(example.where) == name]
        if selected and isinstance(source, str):
            note += f"; its {len(selected)} {name} rows are left out, because data.{name} is a file"
        elif selected:
            parts[name] = selected
    return parts, note


def check_names(given: Iterable[float | str]) -> None:
    """Check that no two files have the same name: rows are looked up by `name:line`.

    Args:
        given: files or fractions; fractions are ignored.

    Raises:
        DataError: if two files share a name.
    """
    files = [Path(source) for source in given if isinstance(source, str) and Path(source).is_file()]
    names = {file.resolve(): file.name for file in files}
    if duplicates := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise DataError(
            f"{duplicates[0]}: two files have this name, so row locations are ambiguous; rename one of them"
        )


def _grouped(examples: list[Example], rows: Sequence[Row], column: str) -> list[Example]:
    """Return the examples with the group of their row where the parser did not set one."""
    if not column or all(example.group for example in examples):
        return examples
    groups = {row.where: group_of(row, column) for row in rows}
    if not any(groups.values()):
        fix = "give the column that identifies the source of each row, or omit `group`"
        raise DataError(f"{file_of(examples)}: the group column {column!r} is blank in every row; {fix}")
    return [example if example.group else replace(example, group=groups[example.where]) for example in examples]


def _group_by_prompt(parts: dict[str, list[Example]], *, split_train: bool) -> None:
    """Group preference examples by prompt across files, in place.

    A train file that will be split and has too few prompts for a split by prompt is not grouped.
    """
    train = parts["train"]
    prompts = {prompt_of(example) for example in train if isinstance(example, Pair | UnpairedPreference)}
    if split_train and len(prompts) < FEWEST_PROMPTS:
        parts.update({name: [*by_prompt(part)] for name, part in parts.items() if name != "train"})
        return
    grouped = iter(by_prompt([example for part in parts.values() for example in part]))
    for name, part in parts.items():
        parts[name] = [next(grouped) for _ in part]


def _set_apart(parts: dict[str, list[Example]]) -> list[str]:
    """Remove held-out rows and groups from the other files, in place (test first); return notes on the removals."""
    notes: list[str] = []
    for held_out, other in (("test", "validation"), ("test", "train"), ("validation", "train")):
        if held_out not in parts or other not in parts:
            continue
        file = file_of(parts[other])
        held_file = file_of(parts[held_out])
        fix = f"give a {held_out} file with other rows"
        if file == held_file:  # parts of one file
            file, held_file = f"{file} ({other})", f"its {held_out} part"
            fix = 'set data.split: "" to split by row'
        remaining, copies = separate(parts[other], parts[held_out], what=held_out, fix=fix)
        groups = {example.group for example in parts[held_out]} - {""}
        parts[other] = [example for example in remaining if example.group not in groups]
        if not parts[other]:
            fix = fix.replace("with other rows", "from other sources")
            raise DataError(f"{file}: every row or its group also appears in {held_file}; {fix}")
        if copies:
            notes.append(f"{copies} rows of {file} removed: {held_file} contains the same prompt")
        if grouped := len(remaining) - len(parts[other]):
            notes.append(f"{grouped} rows of {file} removed: their group also appears in {held_file}")
    return notes


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Counts over the rows of a run, and the locations of rows that were shortened or contain no learned token."""

    rows: int
    train: int
    validation: int
    test: int
    copies_removed: int
    learned_tokens: int
    longest: int
    truncated: tuple[str, ...]
    zero_label: tuple[str, ...]
    sha256: dict[str, str]
    notes: tuple[str, ...]
