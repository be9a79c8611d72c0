"""Multitask data: remove from each task's training rows what another task holds out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunesmith.data.examples.types import Chat, Example, Pair, UnpairedPreference
from tunesmith.data.splits.load import DatasetSplits
from tunesmith.data.splits.near_duplicates import near_copies
from tunesmith.data.text.words import folded
from tunesmith.errors import DataError


@dataclass(frozen=True, slots=True)
class Asking:
    """Presentation of the rows of a task.

    Attributes:
        instruction: text before its prompts.
        group: column with the source of a row.
    """

    instruction: str
    group: str


def remove_cross_task_leaks(
    tasks: Mapping[str, DatasetSplits], asking: Mapping[str, Asking]
) -> dict[str, DatasetSplits]:
    """Remove training rows that another task holds out: the same text, the same group, or nearly the same document.

    Groups are compared if both tasks use the same group column. Removals are counted in the notes.

    Args:
        tasks: name -> examples of a task.
        asking: name -> instruction and group column of the same tasks.

    Returns:
        The tasks with reduced training rows.

    Raises:
        DataError: if fewer than two training rows of a task remain.
    """
    return {name: _without_held_out(name, tasks, asking) for name in tasks}


def _without_held_out(name: str, tasks: Mapping[str, DatasetSplits], asking: Mapping[str, Asking]) -> DatasetSplits:
    """Remove the held-out rows of the other tasks from the training rows of one."""
    loaded = tasks[name]
    own = asking[name]
    split = loaded.split
    train = split.train
    notes: list[str] = []
    for other, other_task in asking.items():
        if other == name:
            continue
        held_out = [*tasks[other].split.validation, *tasks[other].split.test]
        texts = {_text(example, other_task.instruction) for example in held_out}
        groups = {example.group for example in held_out} - {""} if own.group == other_task.group else set()
        near = near_copies(train, held_out)
        remaining = [
            example
            for index, example in enumerate(train)
            if _text(example, own.instruction) not in texts and example.group not in groups and index not in near
        ]
        if len(remaining) < len(train):
            removed = f"{len(train) - len(remaining)} training rows removed"
            notes.append(f"{removed}: the held-out rows of {other} contain the same or nearly the same text or group")
        train = remaining
    if len(train) < 2 <= len(split.train):
        raise DataError(
            f"{name}: {len(train)} training rows remain after removing held-out rows of other tasks; "
            "add more rows or groups"
        )
    total = split.removed + len(split.train) - len(train)
    return replace(loaded, split=replace(split, train=train, removed=total, notes=(*split.notes, *notes)))


def _text(example: Example, instruction: str) -> str:
    """Return the text of the user turns without the instruction, normalized for letter case and spacing."""
    if isinstance(example, Chat | Pair | UnpairedPreference):
        turns = example.messages if isinstance(example, Chat) else example.prompt
        text = " ".join(turn.content for turn in turns if turn.role == "user").removeprefix(instruction)
    else:
        text = example.text
    return folded(text)
