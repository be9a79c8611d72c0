"""A recipe's rules of style, and the columns of the rows that some of them look into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.config import Recipe
from tunesmith.data.examples.types import Example
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import missing_column
from tunesmith.errors import RecipeError
from tunesmith.metrics.style import NO_ROW, StyleRule, rules_of
from tunesmith.objectives import Instruct

# What an objective is about that has no answers in people's own words.
NO_STYLE = {
    "classify": "labels",
    "domain": "texts that nobody asked for",
    "preference": "pairs of answers",
    "reward": "scores",
    "rl": "answers to a reward",
    "multitask": "several tasks together",
}


def read_style_rules(recipe: Recipe, *, offline: bool) -> tuple[StyleRule, ...]:
    """The recipe's rules. Raises RecipeError for one that cannot be checked, here or on these rows."""
    rules = rules_of(recipe.style)
    if rules and not isinstance(recipe.objective, Instruct):
        what = NO_STYLE[recipe.objective.kind]
        raise RecipeError(f"style: {what} have no style to keep; leave `style` out, or use objective: instruct")
    for rule in rules:
        rows = read_rows(_tested(recipe), offline=offline) if rule.column else []
        if rule.column and not any(rule.column in row.fields for row in rows):
            raise RecipeError(f"style.{rule.name}: {missing_column(rows, rule.column)}")
    return rules


def columns(recipe: Recipe, examples: Sequence[Example]) -> list[Mapping[str, object]]:
    """The row that each example was made of, where a rule looks into it; read again, for examples do not keep it."""
    if not any(rule.column for rule in rules_of(recipe.style)):
        return [NO_ROW] * len(examples)
    rows = {row.where: row.fields for row in read_rows(_tested(recipe))}  # from where they were read at the start
    return [rows.get(example.where, NO_ROW) for example in examples]


def _tested(recipe: Recipe) -> str:
    """Where the rows lie that the run is scored on."""
    data = recipe.data
    for part in (data.test, data.validation):
        if isinstance(part, str):
            return part
        if part:
            break
    return data.train
