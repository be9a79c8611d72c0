"""A recipe for a data file, with a model that was chosen among measured and forecast candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunesmith.config import Recipe
from tunesmith.config.annotated_yaml import AnnotatedRecipe
from tunesmith.config.model_choice import DECODER, ModelPick
from tunesmith.config.scaffold import draft_recipe, inspect_rows
from tunesmith.errors import DataError, Refused
from tunesmith.events import EventHandler, Note
from tunesmith.pipelines.plan.candidates import Job, choose_model
from tunesmith.pipelines.plan.report import ModelChoice
from tunesmith.training.read import audited, read_data


@dataclass(frozen=True, slots=True)
class Drafted:
    """A recipe, and the candidates that its model was chosen from."""

    made: AnnotatedRecipe
    choice: ModelChoice


def draft_with_candidates(
    data: str,
    *,
    changes: Sequence[str] = (),
    quick: bool = False,
    offline: bool = False,
    on_event: EventHandler,
) -> Drafted:
    """Draft a recipe for a data file.

    Args:
        data: the data file.
        changes: `key=value` changes of the recipe; a model among them is kept.
        quick: load no model to measure it.
        offline: do not access the network.
        on_event: observes the progress.

    Raises:
        DataError: the rows cannot be read, or the roles of their columns cannot be guessed.
        RecipeError: a change is invalid.
    """
    seen = inspect_rows(data, changes=changes, offline=offline)
    by_user = "model" in seen.named
    pick = seen.pick()
    objective = seen.recipe.objective.bind(seen.examples, "encoder")
    forced = by_user or (objective.produces == "labels" and pick.model == DECODER)
    test, validation = seen.held_out_rows["test"], seen.held_out_rows["validation"]
    job = Job(
        objective,
        seen.examples,
        test_rows=test,
        validation_rows=validation,
        train_rows=max(1, len(seen.examples) - test - validation),
    )
    if objective.produces != "likelihood":
        job = _without_test_rows(job, draft_recipe(seen, pick).recipe, on_event=on_event, offline=offline)
    choice = choose_model(job, on_event=on_event, probe=not quick and not forced, model=pick.model if forced else "")
    if not forced:
        pick = ModelPick(choice.model, "; ".join(choice.reasons))
    return Drafted(replace(draft_recipe(seen, pick), candidates=choice.candidates), choice)


def _without_test_rows(job: Job, recipe: Recipe, *, on_event: EventHandler, offline: bool) -> Job:
    """Return the job without the rows that a run of the recipe tests on: they may not choose the model.

    What would stop that run is said now. Rows that cannot be split are left as they are; the run reports the error.
    """
    try:
        loaded = read_data(recipe, offline=offline)
    except DataError:
        return job
    try:
        audited(recipe, loaded)
    except Refused as refused:
        on_event(Note(f"warning: `tunesmith tune` will stop: {refused}"))
    split = loaded.split
    return replace(
        job,
        examples=[*split.train, *split.validation],
        test_rows=len(split.test),
        validation_rows=len(split.validation),
        train_rows=len(split.train),
    )
