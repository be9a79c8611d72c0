"""Load the data section of a recipe: files to train, validation and test examples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.parsers import fingerprint, group_of, prompt_of
from tunesmith.data.examples.stored import StoredExamples
from tunesmith.data.examples.types import Example, Pair, UnpairedPreference
from tunesmith.data.examples.usable import answer_notes
from tunesmith.data.readers.read import RowStream, read_file
from tunesmith.data.readers.row import Row, columns_of, file_of, keep, missing_column
from tunesmith.data.readers.text_file import locate
from tunesmith.data.schema.split_names import DEFAULT_SPLIT, part_of, split_parts
from tunesmith.data.splits.near_duplicates import without_near_copies
from tunesmith.data.splits.split import FEWEST_PROMPTS, PARTS, Split, by_prompt, label_notes, separate, split
from tunesmith.data.stored import array_of, joined, take
from tunesmith.errors import DataError
from tunesmith.progress import track

# Rows by which the columns of a large file are detected; they are parsed together, so that a missing value in all of
# them is an error.
FIRST_ROWS = 20_000


SHOWN_VALUES = 5
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

    def save(self, folder: Path) -> None:
        """Save the choice of rows in the folder of `load`, for `open`."""
        stored = {}
        for name in PARTS:
            part = getattr(self.split, name)
            stored[name] = part.folder.name
            part.save(folder / f"{name}.rows")
        facts = {"rows": self.rows, "sha256": self.sha256, "removed": self.split.removed, "notes": self.split.notes}
        (folder / "facts.json").write_text(json.dumps({**facts, "stored": stored}), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> DatasetSplits:
        """Return the saved examples; they are read from their files when they are used."""
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        parts = {
            name: StoredExamples(folder / stored, folder / f"{name}.rows") for name, stored in facts["stored"].items()
        }
        return cls(
            Split(**parts, removed=facts["removed"], notes=tuple(facts["notes"])), facts["rows"], facts["sha256"]
        )


def load(
    sources: Sources,
    parse: Parse,
    *,
    seed: int,
    offline: bool = False,
    folder: Path | None = None,
    parser_of: Callable[[list[Row]], Parse] | None = None,
) -> DatasetSplits:
    """Read, parse and split all files. No prompt and no group occurs in two parts.

    Args:
        sources: files and fractions.
        parse: converts the rows of a file into examples.
        seed: seed of the split.
        offline: do not download datasets.
        folder: folder for the examples, which then do not stay in memory; every source must be a file.
        parser_of: with a folder, returns what converts the parts of a file, given the first part.

    Raises:
        DataError: if rows are invalid, or no training rows remain.
        Refused: if a held-out file repeats the training file.
    """
    inputs = {"train": sources.train, "validation": sources.validation, "test": sources.test}
    fractions = {name: fraction for name, fraction in inputs.items() if not isinstance(fraction, str)}
    row_count = 0
    parts: dict[str, Sequence[Example]] = {}
    notes: list[str] = []
    for name, source in inputs.items():
        if isinstance(source, str):
            file = RowStream(source, sources.where) if folder else read_file(source, offline=offline)
            rows = file if isinstance(file, RowStream) else keep(file.rows, sources.where)
            start = (parser_of if folder else None) or (lambda _: parse)
            read = _examples(rows, start, sources, train=name == "train", folder=folder and folder / name)
            row_count += read.rows
            parts |= _by_column(read, sources) if name == "train" else {name: read.examples}
            notes += [*file.notes, *read.notes]
    fractions = {name: fraction for name, fraction in fractions.items() if name not in parts}
    if len(parts) > 1:  # `split` groups a single file
        _group_by_prompt(parts, split_train=any(fractions.values()))
    notes += answer_notes(joined(*parts.values()))
    size = sum(map(len, parts.values()))
    files = [name for name, source in inputs.items() if isinstance(source, str)]
    notes += _set_apart(parts, files)
    removed = size - sum(map(len, parts.values()))
    train_split = split(
        parts["train"], validation=fractions.get("validation", 0.0), test=fractions.get("test", 0.0), seed=seed
    )
    parts = {"validation": train_split.validation, "test": train_split.test, **parts, "train": train_split.train}
    notes += [*train_split.notes, *(note for note in label_notes(parts) if note not in train_split.notes)]
    result = without_near_copies(Split(**parts, removed=removed + train_split.removed, notes=tuple(notes)))
    digests = {name: _digest(getattr(result, name)) for name in PARTS}
    return DatasetSplits(result, row_count, digests)


def _digest(examples: Sequence[Example]) -> str:
    """Return a digest of the contents, independent of their order; of stored examples, a digest of their hashes."""
    contents = (fingerprint(example).encode(errors="surrogatepass") for example in examples)
    if isinstance(examples, StoredExamples):
        digests = (int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) for content in contents)
        hashes = array_of(len(examples), "<u8", digests)
        hashes.sort()
        return hashlib.sha256(hashes.byteswap(inplace=True).data).hexdigest()
    return hashlib.sha256(b"\n".join(sorted(contents))).hexdigest()


@dataclass(frozen=True, slots=True)
class FileExamples:
    """The examples of one file.

    Attributes:
        examples: in file order.
        rows: number of rows after filtering.
        parts: index in `PARTS` of the part that the split column names for each example; empty if it is not used.
        notes: remarks for the report, the last one on the split column if there is any.
    """

    examples: Sequence[Example]
    rows: int
    parts: NDArray[np.uint8]
    notes: list[str]


def _examples(
    rows: Iterable[Row], start: Callable[[list[Row]], Parse], sources: Sources, *, train: bool, folder: Path | None
) -> FileExamples:
    """Parse the rows of a file: at once into memory, or part by part into a folder."""
    first = list(islice(rows, None if folder is None else FIRST_ROWS))
    parse = start(first)
    column = sources.split or DEFAULT_SPLIT
    counts, notes = dict[str, int](), list[str]()
    if train:
        counts = split_parts(row.fields.get(column) for row in rows) if column in columns_of(first) else {}
        notes += filter(None, [_column_note(first, sources.split, counts)])
    row_count, named = 0, bytearray()

    def examples() -> Iterator[Example]:
        nonlocal row_count
        rest = iter(rows)
        while part := list(islice(rest, len(first))):
            made = list(parse(part))
            made = _grouped(made, part, sources.group) if folder is None else made  # stored kinds have their group
            row_count += len(part)
            if counts and sources.split:
                parts = {row.where: PARTS.index(part_of(row.fields.get(column)) or "train") for row in part}
                named.extend(parts[example.where] for example in made)
            yield from made

    if isinstance(rows, RowStream) and folder is not None:
        tracked = track(examples(), "reading", unit="rows", total=rows.about())
        parsed: Sequence[Example] = StoredExamples.write(folder, tracked)
    else:
        parsed = list(examples())
    return FileExamples(parsed, row_count, np.frombuffer(named, np.uint8), notes)


def _column_note(rows: Sequence[Row], column: str, counts: Mapping[str, int]) -> str:
    """Return a note on what of the split column of a train file is used or ignored; empty if it has no such column.

    `counts` are the rows of each part over the whole file, `rows` the first ones; an empty `column` uses none.
    """
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    if not column:
        fix = f"set data.split: {DEFAULT_SPLIT} to use it"
        return f"{file_of(rows)}: column {DEFAULT_SPLIT!r} ({listed}) is not used; {fix}" if counts else ""
    if counts:
        return f'{file_of(rows)}: split by the column {column!r}: {listed} rows (data.split: "" to ignore it)'
    if column not in columns_of(rows):
        if column != DEFAULT_SPLIT:
            raise DataError(f"data.split: {missing_column(rows, column)}")
        return ""
    values = Counter(str(row.fields.get(column)) for row in rows)
    found = f"column {column!r} contains {', '.join(value for value, _ in values.most_common(SHOWN_VALUES))}"
    unknown = [value for value in values if value not in ("", "None") and not part_of(value)]
    if unknown and {*map(part_of, values)} & {"validation", "test"}:
        # Ignored, the column would let rows that it holds out be trained on.
        fix = 'use train, validation or test, or set data.split: "" to ignore the column'
        raise DataError(f"{file_of(rows)}: {found}; {unknown[0]!r} names no split; {fix}")
    if column != DEFAULT_SPLIT:
        raise DataError(f"{file_of(rows)}: {found}; data.split needs train, validation or test, and held-out rows")
    return f"{file_of(rows)}: {found}, which hold out no rows or all; not used for the split"


def _by_column(read: FileExamples, sources: Sources) -> dict[str, Sequence[Example]]:
    """Return the parts that the split column of the train file names.

    A part with a separate file contains only the rows of that file; rows that the column assigns to it are dropped.
    """
    if not len(read.parts):
        return {"train": read.examples}
    parts: dict[str, Sequence[Example]] = {}
    for number, name in enumerate(PARTS):
        own = read.parts == number
        if own.any() and name != "train" and isinstance(getattr(sources, name), str):
            read.notes[-1] += f"; its {own.sum()} {name} rows are left out, because data.{name} is a file"
        elif own.any() or name == "train":
            parts[name] = take(read.examples, own)
    return parts


def check_names(given: Iterable[float | str]) -> None:
    """Check that no two files have the same name: rows are looked up by `name:line`.

    Args:
        given: files, or parts of them, or fractions, which are ignored.

    Raises:
        DataError: if two files share a name, or a file cannot be reached.
    """
    files = filter(None, [locate(source) for source in given if isinstance(source, str)])
    names = {(file.path.resolve(), file.name): file.name for file in files}
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


def _group_by_prompt(parts: dict[str, Sequence[Example]], *, split_train: bool) -> None:
    """Group preference examples by prompt across files, in place.

    A train file that will be split and has too few prompts for a split by prompt is not grouped.
    """
    train = parts["train"]
    if not isinstance(next(iter(train), None), Pair | UnpairedPreference):
        return
    prompts = {prompt_of(example) for example in train if isinstance(example, Pair | UnpairedPreference)}
    if split_train and len(prompts) < FEWEST_PROMPTS:
        parts.update({name: [*by_prompt(part)] for name, part in parts.items() if name != "train"})
        return
    grouped = iter(by_prompt([example for part in parts.values() for example in part]))
    for name, part in parts.items():
        parts[name] = [next(grouped) for _ in part]


def _set_apart(parts: dict[str, Sequence[Example]], files: Collection[str]) -> list[str]:
    """Remove held-out rows and groups from the other files, in place (test first); return notes on the removals.

    `files` are the parts with a file of their own; the split column of the train file names the others.
    """
    notes: list[str] = []
    for held_out, other in (("test", "validation"), ("test", "train"), ("validation", "train")):
        if held_out not in parts or other not in parts:
            continue
        file = file_of(parts[other])
        held_file = file_of(parts[held_out])
        fix = f"give another {held_out} file, or remove data.{held_out}"
        if held_out not in files and (other == "train" or other not in files):  # parts of one file
            file, held_file = f"{file} ({other})", f"its {held_out} part"
            fix = 'set data.split: "" to split by row'
        remaining, copies = separate(parts[other], parts[held_out], what=held_out, fix=fix)
        groups = {example.group for example in parts[held_out]} - {""}
        parts[other] = remaining
        if groups:
            outside = (example.group not in groups for example in remaining)
            parts[other] = take(remaining, array_of(len(remaining), "?", outside))
        if not parts[other]:
            raise DataError(f"{file}: every row or its group also appears in {held_file}; {fix}")
        if copies:
            notes.append(f"{copies} rows of {file} removed: {held_file} contains the same prompt")
        if grouped := len(remaining) - len(parts[other]):
            notes.append(f"{grouped} rows of {file} removed: their group also appears in {held_file}")
    return notes


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Counts over the rows of a run, and the locations of rows that were shortened or contain no learned token."""

    rows: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0
    copies_removed: int = 0
    learned_tokens: int = 0
    longest: int = 0
    truncated: tuple[str, ...] = ()
    zero_label: tuple[str, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
