"""Style rules of a recipe, and the row columns that some of them use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.config import Recipe
from tunesmith.data.examples.types import Example
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import missing_column
from tunesmith.errors import RecipeError
from tunesmith.metrics.style import NO_ROW, StyleRule, rules_of
from tunesmith.objectives import Instruct


def read_style_rules(recipe: Recipe, *, offline: bool) -> tuple[StyleRule, ...]:
    """Return the style rules of a recipe. Raises RecipeError for a rule that cannot be checked on its rows."""
    rules = rules_of(recipe.style)
    if rules and not isinstance(recipe.objective, Instruct):
        raise RecipeError(
            f"style: not supported for {recipe.objective.results}; remove `style`, or use objective: instruct"
        )
    for rule in rules:
        rows = read_rows(_tested(recipe), offline=offline) if rule.column else []
        if rule.column and not any(rule.column in row.fields for row in rows):
            raise RecipeError(f"style.{rule.name}: {missing_column(rows, rule.column)}")
    return rules


def columns(recipe: Recipe, examples: Sequence[Example]) -> list[Mapping[str, object]]:
    """Return the fields of the row behind each example, which is read again; empty if no rule needs them."""
    if not any(rule.column for rule in rules_of(recipe.style)):
        return [NO_ROW] * len(examples)
    rows = {row.where: row.fields for row in read_rows(_tested(recipe))}
    return [rows.get(example.where, NO_ROW) for example in examples]


def _tested(recipe: Recipe) -> str:
    """Return the source of the rows that the run is scored on."""
    data = recipe.data
    for part in (data.test, data.validation):
        if isinstance(part, str):
            return part
        if part:
            break
    return data.train
