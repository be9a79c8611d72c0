"""Train, validation and test parts of one list of examples, with nothing of one in another."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.examples import Example, Labelled, Pair, Text, Thumb, prompt_of, question
from tunesmith.data.rows import file_of
from tunesmith.errors import DataError, Refused

TOO_MANY_COPIES = 0.95
# Answers to fewer prompts cannot be cut into three parts by them.
FEWEST_PROMPTS = 10
PASSAGES = "tunesmith collect FOLDER --as domain --out FILE.jsonl"
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """The parts, each in file order; `removed` rows stand in none, because a held-out part has their like."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    removed: int
    notes: tuple[str, ...]


def split(examples: Sequence[Example], *, validation: float, test: float, seed: int) -> Split:
    """The examples cut by group, else by label, else by row, the same for the same seed.

    Rows are drawn by a hash of the seed and their group or question, so that appended rows move few others.
    Test is drawn first and does not depend on `validation`. Copies of held-out questions are then removed.
    Where no group is named, judged answers to the same prompt are one.
    """
    bare, examples = examples, by_prompt(examples, fewest=FEWEST_PROMPTS)
    unit = "groups" if examples is bare else "prompts"
    shares = {"test": test, "validation": validation}
    _check_shares(shares)
    wanted = {name: int(len(examples) * share + 0.5) for name, share in shares.items()}
    groups = len({example.group for example in examples} - {""})
    asked = [question(example) for example in examples]
    places = _by_group(examples, wanted, seed) if groups else _by_label(examples, asked, wanted, seed=seed)
    parts = _without_copies(examples, asked, places)
    removed = len(examples) - sum(map(len, parts.values()))
    _check_parts(examples, parts, shares)
    notes = []
    if test or validation:
        alone = sum(not example.group for example in examples)
        own = f" ({alone} rows name no group: each is cut alone)" if alone else ""
        how = f"{groups} {unit}, none in two parts{own}" if groups else "cut by row, without groups"
        sizes = ", ".join(f"{name} {len(parts[name])}" for name in PARTS if shares.get(name, 1))
        notes.append(f"{file_of(examples)}: cut into {sizes} rows; {how}")
    if removed:
        notes.append(f"{removed} rows left out: a held-out part has the same question")
    return Split(**parts, removed=removed, notes=(*notes, *unlearned_labels(parts)))


def separate(train: Sequence[Example], held_out: Sequence[Example], *, what: str = "test") -> tuple[list[Example], int]:
    """`train` without the questions of `held_out`, and how many rows that took.

    Raises Refused if 95 % of the held-out rows stand in train: then it is the same file, not a test.
    """
    asked = [question(example) for example in train]
    in_train, held = set(asked), [question(example) for example in held_out]
    found = sum(text in in_train for text in held)
    if held and found >= TOO_MANY_COPIES * len(held):
        finding = f"{found} of {len(held)} {what} rows also stand in {file_of(train)}"
        raise Refused(f"{file_of(held_out)}: {finding}; give a {what} file of other rows")
    unwanted = set(held)
    kept = [example for example, text in zip(train, asked, strict=True) if text not in unwanted]
    return kept, len(train) - len(kept)


def by_prompt(examples: Sequence[Example], *, fewest: int = 2) -> Sequence[Example]:
    """The examples, judged answers grouped by their prompts where none names a group and some share a prompt.

    They stay as they are where there are fewer prompts than `fewest`.
    """
    judged = [example for example in examples if isinstance(example, Pair | Thumb) and not example.group]
    prompts = [_lot(prompt_of(example), 0).hex() for example in judged]
    if len(judged) < len(examples) or not fewest <= len(set(prompts)) < len(prompts):
        return examples
    return [replace(example, group=prompt) for example, prompt in zip(judged, prompts, strict=True)]


def unlearned_labels(parts: Mapping[str, Sequence[Example]]) -> list[str]:
    """A note for each label that a held-out part has and train does not."""
    learned = _labels(parts["train"])
    return [
        f"label {label!r} stands in {name} ({count} rows) and not in train: it cannot be learned"
        for name in PARTS[1:]
        for label, count in _labels(parts[name]).items()
        if label not in learned
    ]


def _check_shares(shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise DataError(f"{name}: {share} is no share of the rows; write a number from 0 to below 1, or a file")
    if sum(shares.values()) >= 1:
        raise DataError(f"test {shares['test']} and validation {shares['validation']} leave no train; lower them")


def _check_parts(
    examples: Sequence[Example], parts: Mapping[str, Sequence[Example]], shares: Mapping[str, float]
) -> None:
    groups = len({example.group for example in examples} - {""})
    rows = f"{file_of(examples)}: {len(examples)} rows" + (f" in {groups} groups" if groups else "")
    removed = len(examples) - sum(map(len, parts.values()))
    copies = f" once {removed} copies of held-out questions are out" if removed else ""
    for name, share in shares.items():
        if share and not parts[name]:
            cure = f"{_more(examples, groups)}, raise the share, or write {name}: 0"
            raise DataError(f"{rows} leave {name} empty at {name}: {share}{copies}; {cure}")
    if len(parts["train"]) < 2:
        cure = f"{_more(examples, 0)}, or lower validation and test"
        raise DataError(f"{rows} leave {len(parts['train'])} to train on{copies}; {cure}")


def _more(examples: Sequence[Example], groups: int) -> str:
    """What to give where there are too few to cut; a document is one, however long it is."""
    passages = f", cut documents into passages (`{PASSAGES}`)" if isinstance(examples[0], Text) else ""
    return f"give more {'groups' if groups else 'rows'}{passages}"


def _by_group(examples: Sequence[Example], wanted: Mapping[str, int], seed: int) -> dict[int, str]:
    """Index -> held-out part: whole groups, as long as they bring the part nearer to its size."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        # A row without a group is a group of its own.
        members[example.group or f"\x1f{i}"].append(i)
    left = sorted(members, key=lambda group: _lot(group, seed))
    places: dict[int, str] = {}
    for name, size in wanted.items():
        taken, passed = 0, []
        for group in left:
            if abs(taken + len(members[group]) - size) < abs(taken - size):
                places.update(dict.fromkeys(members[group], name))
                taken += len(members[group])
            else:
                passed.append(group)
        left = passed
    return places


def _by_label(
    examples: Sequence[Example], asked: Sequence[str], wanted: Mapping[str, int], *, seed: int
) -> dict[int, str]:
    """Index -> held-out part: from each label its share, and never the last row of a label."""
    strata = _strata(examples)
    for members in strata:
        members.sort(key=lambda i: _lot(asked[i], seed))
    sizes = [len(members) for members in strata]
    places: dict[int, str] = {}
    for name, size in wanted.items():
        counts = _apportioned(size, sizes, rooms=[len(members) - 1 for members in strata])
        for members, count in zip(strata, counts, strict=True):
            places.update(dict.fromkeys(members[:count], name))
            del members[:count]
    return places


def _strata(examples: Sequence[Example]) -> list[list[int]]:
    """The rows of each label; combinations of labels that stand once are one stratum."""
    keys = [tuple(sorted(e.labels)) if isinstance(e, Labelled) else () for e in examples]
    counts = Counter(keys)
    multi = any(isinstance(e, Labelled) and e.multi for e in examples)
    strata: dict[tuple[str, ...] | None, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        strata[None if multi and counts[key] == 1 else key].append(i)
    return list(strata.values())


def _apportioned(wanted: int, sizes: Sequence[int], *, rooms: Sequence[int]) -> list[int]:
    """`wanted` rows shared out in proportion to the sizes, largest remainders first, within the rooms.

    What has no room is given up: other labels would have to give more than their share.
    """
    total = max(1, sum(sizes))
    counts = [min(size * wanted // total, room) for size, room in zip(sizes, rooms, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * wanted % total))
    with_room = [i for i in order if counts[i] < rooms[i] and counts[i] == sizes[i] * wanted // total]
    for i in with_room[: wanted - sum(counts)]:
        counts[i] += 1
    return counts


def _without_copies(
    examples: Sequence[Example], asked: Sequence[str], places: Mapping[int, str]
) -> dict[str, list[Example]]:
    """The parts, less what repeats a question of test, and in train of validation."""
    held = {name: {asked[i] for i, place in places.items() if place == name} for name in PARTS[1:]}
    barred = {"train": held["validation"] | held["test"], "validation": held["test"], "test": set[str]()}
    parts: dict[str, list[Example]] = {name: [] for name in PARTS}
    for i, example in enumerate(examples):
        name = places.get(i, "train")
        if asked[i] not in barred[name]:
            parts[name].append(example)
    return parts


def _labels(examples: Iterable[Example]) -> Counter[str]:
    return Counter(label for e in examples if isinstance(e, Labelled) for label in e.labels)


def _lot(text: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\x1e{text}".encode(errors="surrogatepass"), digest_size=8).digest()
