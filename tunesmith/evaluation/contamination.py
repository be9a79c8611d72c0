"""What the runs behind a model have learned: its own rows, and those of each run that it was tuned over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.config import Recipe, load_recipe
from tunesmith.data.examples.parsers import question as asked_for
from tunesmith.data.examples.types import Example
from tunesmith.errors import TunesmithError
from tunesmith.events import EventHandler, Note
from tunesmith.inference.open_model import ModelSource, identify
from tunesmith.training.prepare import TrainingContext, read_data

# With this share of the questions among the training rows, a score tells nothing about new rows.
SEEN_TOO_OFTEN = 0.5


def recipe_file(found: ModelSource) -> Path | None:
    """The recipe of a run, if it still lies beside its model."""
    page = found.folder.parent / "recipe.yaml" if found.kind == "run" and found.folder else None
    return page if page is not None and page.exists() else None


def recipe_of(page: Path, part: str) -> Recipe:
    """A run's recipe, or that of one of its several tasks."""
    recipe = load_recipe(page)[0]
    return recipe.parts.get(part, recipe)


def find_seen_rows(found: ModelSource, examples: Sequence[Example], *, part: str = "", offline: bool) -> list[str]:
    """A note if these ask what a run, or one that it was tuned over, was trained on.

    What a foreign model was trained on nobody knows. `part` is one of several tasks of the run.
    """
    if found.kind != "run":
        return []
    name, known = found.name, set[str]()
    while found.kind == "run":
        page = recipe_file(found)
        if page is None:
            return [f"{found.name}: its recipe is gone, so nobody checked whether it was trained on these rows"]
        try:
            recipe = recipe_of(page, part)
            for one in recipe.tasks.values():
                known.update(map(asked_for, read_data(one, offline=offline).split.train))
            found, part = identify(recipe.model, offline=offline), ""
        except TunesmithError as error:
            return [f"{found.name}: nobody checked whether it was trained on these rows ({error})"]
    count = sum(asked_for(example) in known for example in examples)
    if not count:
        return []
    line = f"{name} was trained on {count} of these {len(examples)} questions"
    too_often = count >= SEEN_TOO_OFTEN * len(examples)
    return [f"warning: {line}: the score says little about new rows" if too_often else line]


def with_contamination_check(prepared: TrainingContext, *, on_event: EventHandler, offline: bool) -> TrainingContext:
    """The run with a note where test rows were training rows of a run that it is tuned over."""
    found = identify(prepared.recipe.model, offline=offline)
    tests = [task.test for task in prepared.tasks.values()]
    notes = find_seen_rows(found, [example for part in tests for example in part], offline=offline)
    for note in notes:
        on_event(Note(note))
    return prepared.noted(*notes)
