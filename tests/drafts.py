"""Recipes of data files, as `tunesmith init` writes them without comparing models."""

from collections.abc import Sequence

from tunesmith.config.annotated_yaml import AnnotatedRecipe
from tunesmith.config.scaffold import draft_recipe, inspect_rows


def draft(data: str, *, changes: Sequence[str] = (), offline: bool = False) -> AnnotatedRecipe:
    """Draft a recipe for a data file, with a model that is chosen by rule."""
    seen = inspect_rows(data, changes=changes, offline=offline)
    return draft_recipe(seen, seen.pick())
