"""The data section of a recipe, turned into the three parts of its examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.data.examples import Example, Pair, Thumb, fingerprint, group_of, prompt_of
from tunesmith.data.folder import passed_over
from tunesmith.data.near import without_near_copies
from tunesmith.data.rows import Row, file_of, keep, read_rows
from tunesmith.data.split import FEWEST_PROMPTS, Split, by_prompt, separate, split, unlearned_labels
from tunesmith.errors import DataError

Parse = Callable[[list[Row]], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the rows come from: files, or shares of `train`; `where` keeps some rows of every file."""

    train: str
    validation: float | str = 0.1
    test: float | str = 0.2
    group: str = ""
    where: Mapping[str, Sequence[object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The split, the rows kept of all files, and for each part a digest of its contents in any order."""

    split: Split
    rows: int
    sha256: dict[str, str]


def load(sources: Sources, parse: Parse, *, seed: int, offline: bool = False) -> Loaded:
    """The examples of all files, parsed and split: no question and no group stands in two parts.

    Raises DataError for faulty rows, and Refused where a held-out file repeats the train file.
    """
    given = {"train": sources.train, "validation": sources.validation, "test": sources.test}
    shares = {name: share for name, share in given.items() if not isinstance(share, str)}
    rows, parts, notes = 0, dict[str, list[Example]](), list[str]()
    for name, source in given.items():
        if isinstance(source, str):
            read = keep(read_rows(source, offline=offline), sources.where)
            parts[name] = _grouped(list(parse(read)), read, sources.group)
            rows += len(read)
            notes += filter(None, [passed_over(source)])
    if len(parts) > 1:  # a single file is grouped as it is cut
        _group_by_prompt(parts, cut=any(shares.values()))
    before = sum(map(len, parts.values()))
    notes += _set_apart(parts)
    removed = before - sum(map(len, parts.values()))
    cut = split(parts["train"], validation=shares.get("validation", 0.0), test=shares.get("test", 0.0), seed=seed)
    parts = {"validation": cut.validation, "test": cut.test, **parts, "train": cut.train}
    notes += [*cut.notes, *(note for note in unlearned_labels(parts) if note not in cut.notes)]
    whole = without_near_copies(Split(**parts, removed=removed + cut.removed, notes=tuple(notes)))
    parts = {"train": whole.train, "validation": whole.validation, "test": whole.test}
    return Loaded(whole, rows, {name: _digest(part) for name, part in parts.items()})


def check_names(given: Iterable[float | str]) -> None:
    """Raise DataError where two files have one name, for what finds a row again by its place."""
    files = [Path(source) for source in given if isinstance(source, str) and Path(source).is_file()]
    names = {file.resolve(): file.name for file in files}
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise DataError(f"{twice[0]}: two files have this name, by which rows are told apart; rename one of them")


def _grouped(examples: list[Example], rows: Sequence[Row], column: str) -> list[Example]:
    """The examples with the group of their row, also where the parser left it out."""
    if not column or all(example.group for example in examples):
        return examples
    groups = {row.where: group_of(row, column) for row in rows}
    if not any(groups.values()):
        cure = "name the column that tells which rows belong together, or leave `group` out"
        raise DataError(f"{file_of(examples)}: the group column {column!r} is blank in every row; {cure}")
    return [example if example.group else replace(example, group=groups[example.where]) for example in examples]


def _group_by_prompt(parts: dict[str, list[Example]], *, cut: bool) -> None:
    """Group judged answers to one prompt, in place, in whichever files they stand; but for train that is to be cut and
    has too few prompts for that."""
    train = parts["train"]
    if cut and len({prompt_of(one) for one in train if isinstance(one, Pair | Thumb)}) < FEWEST_PROMPTS:
        parts.update({name: [*by_prompt(part)] for name, part in parts.items() if name != "train"})
        return
    together = iter(by_prompt([example for part in parts.values() for example in part]))
    for name, part in parts.items():
        parts[name] = [next(together) for _ in part]


def _set_apart(parts: dict[str, list[Example]]) -> list[str]:
    """Take out of the given files, in place, what a file that counts more holds too; say what went."""
    notes: list[str] = []
    for what, other in (("test", "validation"), ("test", "train"), ("validation", "train")):
        if what not in parts or other not in parts:
            continue
        held, file, held_file = parts[what], file_of(parts[other]), file_of(parts[what])
        free, copies = separate(parts[other], held, what=what)
        groups = {example.group for example in held} - {""}
        parts[other] = [example for example in free if example.group not in groups]
        if not parts[other]:
            cure = f"give a {what} file of other sources"
            raise DataError(f"{file}: every row, or its group, also stands in {held_file}; {cure}")
        if copies:
            notes.append(f"{copies} rows of {file} left out: {held_file} has the same question")
        if strays := len(free) - len(parts[other]):
            notes.append(f"{strays} rows of {file} left out: their group stands in {held_file}")
    return notes


def _digest(examples: Sequence[Example]) -> str:
    lines = sorted(fingerprint(example).encode(errors="surrogatepass") for example in examples)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()
