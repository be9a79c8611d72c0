"""Contamination check: test rows that a run, or a run it was tuned over, was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.config import Recipe, load_recipe
from tunesmith.data.examples.parsers import question as prompt_text
from tunesmith.data.examples.types import Example
from tunesmith.errors import TunesmithError
from tunesmith.events import EventHandler, Note
from tunesmith.inference.identify import ModelSource, identify
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.read import read_data

# Share of test rows among the training rows above which a score says little about new rows.
SEEN_TOO_OFTEN = 0.5


def recipe_file(source: ModelSource) -> Path | None:
    """Return the recipe file of a run; None if it is missing or the model is not a run."""
    file = source.folder.parent / "recipe.yaml" if source.kind == "run" and source.folder else None
    return file if file is not None and file.exists() else None


def recipe_of(page: Path, part: str) -> Recipe:
    """Return the recipe of a run from its file, or of one of its tasks if `part` names one."""
    recipe = load_recipe(page)[0]
    return recipe.parts.get(part, recipe)


def find_seen_rows(source: ModelSource, examples: Sequence[Example], *, part: str = "", offline: bool) -> list[str]:
    """Count the rows whose prompt is among the training rows of a run or of the runs it was tuned over.

    Args:
        source: the model; the training rows of anything but a run are unknown.
        examples: the rows.
        part: one task of the run; empty for all.
        offline: do not access the network.

    Returns:
        At most one note: how many rows were seen, or why that could not be checked.
    """
    name, trained = source.name, set[str]()
    while source.kind == "run":
        file = recipe_file(source)
        if file is None:
            return [f"{source.name}: recipe.yaml is missing, so contamination of these rows was not checked"]
        try:
            recipe = recipe_of(file, part)
            for task in recipe.tasks.values():
                trained.update(map(prompt_text, read_data(task, offline=offline).split.train))
            source = identify(recipe.model, offline=offline)
            part = ""
        except TunesmithError as error:
            return [f"{source.name}: contamination of these rows was not checked ({error})"]
    count = sum(prompt_text(example) in trained for example in examples)
    if not count:
        return []
    note = f"{name} was trained on {count} of these {len(examples)} questions"
    often = count >= SEEN_TOO_OFTEN * len(examples)
    return [f"warning: {note}: the score says little about new rows" if often else note]


def with_contamination_check(prepared: TrainingContext, *, on_event: EventHandler, offline: bool) -> TrainingContext:
    """Add a note if test rows are training rows of a run that this one is tuned over.

    Args:
        prepared: the run.
        on_event: receives the note.
        offline: do not access the network.
    """
    base = identify(prepared.recipe.model, offline=offline)
    tests = [example for task in prepared.tasks.values() for example in task.test]
    notes = find_seen_rows(base, tests, offline=offline)
    for note in notes:
        on_event(Note(note))
    return prepared.noted(*notes)
