"""The longest row that a model has room for, virtual tokens and drawn answers beside it."""

from __future__ import annotations

from tunesmith.data.template import Template
from tunesmith.errors import RecipeError, Refused
from tunesmith.events import EventHandler, StageStarted
from tunesmith.model.families import positions_of
from tunesmith.model.load import Base
from tunesmith.objectives import Classify
from tunesmith.recipe import Recipe

# The least that `data.max_tokens` may be.
SHORTEST = 16
# Room for a text behind the question that all texts share.
FEWEST_TEXT_TOKENS = 16


def fit_max_length(recipe: Recipe, base: Base, on_event: EventHandler) -> Recipe:
    """The recipe with its longest row cut where it, with virtual tokens before it, would not fit into the model."""
    virtual, wanted = recipe.technique.virtual_tokens(), recipe.data.max_tokens
    positions = positions_of(base.network.config.to_dict())
    if virtual:
        positions = min(positions or base.tokenizer.model_max_length, base.tokenizer.model_max_length)
    drawn = recipe.objective.max_new_tokens if recipe.objective.samples_completions else 0  # behind the longest row
    longest = positions - virtual - drawn
    if longest >= wanted or not positions:
        return recipe
    if longest < SHORTEST:
        key, taken = ("technique.tokens", virtual) if virtual >= drawn else ("objective.max_new_tokens", drawn)
        most = taken - (SHORTEST - longest)
        cure = f"use at most {most}" if most > 0 else "use fewer, here and of the other"
        raise RecipeError(f"{key}: {taken} leave no room for rows in {positions} positions; {cure}")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_tokens": longest})})
    on_event(StageStarted(max_length_note(recipe)))
    return recipe


def max_length_note(recipe: Recipe) -> str:
    """What is said of a recipe whose longest row the model set."""
    virtual = recipe.technique.virtual_tokens()
    beside = f"with {virtual} virtual ones " if virtual else ""
    return f"rows may have {recipe.data.max_tokens} tokens: {beside}{recipe.model} holds no more"


def check_max_length(recipe: Recipe, objective: Classify, template: Template) -> None:
    """Raise Refused where what is asked before each text leaves no room for the text: all rows would look alike."""
    asked, limit = objective.beside_text(template), recipe.data.max_tokens
    if limit - asked < FEWEST_TEXT_TOKENS:
        raise Refused(
            f"{recipe.data.train}: what is asked of each text, its {len(objective.labels)} labels and the answer take "
            f"{asked} of data.max_tokens {limit}, and texts would be cut off; raise data.max_tokens, "
            "or write an objective.instruction without the labels"
        )
