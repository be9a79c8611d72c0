"""Several tasks over files of their own: what one holds out, another must not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunesmith.data.examples import Chat, Example, Pair, Thumb
from tunesmith.data.near import near_copies
from tunesmith.data.sources import Loaded
from tunesmith.data.words import folded
from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Asking:
    """How a task asks: the instruction before its texts, and the column that names the source of a row."""

    instruction: str
    group: str


def set_apart(tasks: Mapping[str, Loaded], asking: Mapping[str, Asking]) -> dict[str, Loaded]:
    """The tasks without training rows that another holds out: the same text asked about, the same group, or documents
    that are mostly the same.

    Groups are compared where both tasks name the same column. What went is counted and said. Raises DataError where
    fewer than two rows of a task are left.
    """
    return {name: _without(name, tasks, asking) for name in tasks}


def _without(name: str, tasks: Mapping[str, Loaded], asking: Mapping[str, Asking]) -> Loaded:
    """One task without what the others hold out."""
    loaded, mine = tasks[name], asking[name]
    split, train, notes = loaded.split, loaded.split.train, list[str]()
    for other, theirs in asking.items():
        if other == name:
            continue
        held = [*tasks[other].split.validation, *tasks[other].split.test]
        texts = {_text(example, theirs.instruction) for example in held}
        groups = {example.group for example in held} - {""} if mine.group == theirs.group else set()
        near = near_copies(train, held)
        kept = [
            example
            for number, example in enumerate(train)
            if _text(example, mine.instruction) not in texts and example.group not in groups and number not in near
        ]
        if len(kept) < len(train):
            left_out = f"{len(train) - len(kept)} training rows left out"
            notes.append(f"{left_out}: {other} holds out the same text, most of it, or the same group")
        train = kept
    if len(train) < 2 <= len(split.train):
        raise DataError(
            f"{name}: {len(train)} rows are left beside what other tasks hold out; give more rows or groups"
        )
    gone = len(split.train) - len(train)
    return replace(
        loaded, split=replace(split, train=train, removed=split.removed + gone, notes=(*split.notes, *notes))
    )


def _text(example: Example, instruction: str) -> str:
    """What is asked about, letter case, spacing, roles and the task's instruction aside."""
    if isinstance(example, Chat | Pair | Thumb):
        turns = example.messages if isinstance(example, Chat) else example.prompt
        text = " ".join(turn.content for turn in turns if turn.role == "user").removeprefix(instruction)
    else:
        text = example.text
    return folded(text)
