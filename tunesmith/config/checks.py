"""Recipes that cannot work, refused with the reason and the nearest that can."""

from __future__ import annotations

from typing import Any

from tunesmith.config.recipe import SELF, Recipe
from tunesmith.errors import RecipeError
from tunesmith.objectives import Classify
from tunesmith.techniques import Lora
from tunesmith.techniques.peft_base import reaches

# Objectives whose answers cannot be dealt out at random, so that no control can be made of them.
NOTHING_TO_DEAL = {
    "domain": "texts have no answers to deal out at random",
    "rl": "a reward may never read the answers that would be dealt out at random",
}


def check_pair(recipe: Recipe, family: str) -> None:
    """Raise RecipeError if this objective cannot work with this model family or technique."""
    for name, part in recipe.parts.items():
        try:
            check_pair(part, family)
        except RecipeError as error:
            raise RecipeError(f"objective.tasks.{name}: {error}") from None
    if recipe.schedule.batch_rows < len(recipe.parts):
        raise RecipeError(
            f"schedule.batch_rows: {recipe.schedule.batch_rows} rows a step are too few for {len(recipe.parts)} tasks; "
            f"use {len(recipe.parts)} or more"
        )
    if family not in recipe.objective.families:
        raise RecipeError(
            f"objective {recipe.objective.kind}: needs a {' or '.join(recipe.objective.families)}, "
            f"{recipe.model} is an {family}; nearest that works: model: smollm2-135m, or objective: classify"
        )
    if recipe.controls and (why := NOTHING_TO_DEAL.get(recipe.objective.kind)):
        raise RecipeError(f"controls: {why}; nearest that works: controls: false")
    if isinstance(recipe.objective, Classify):
        _check_labels(recipe.objective, family)


def _check_labels(objective: Classify, family: str) -> None:
    """Raise RecipeError for settings of `classify` that do not go together."""
    if objective.output == "words" and (family == "encoder" or objective.multi):
        why = (
            "an encoder has no words to answer with"
            if family == "encoder"
            else "rows with several labels have no single answer"
        )
        raise RecipeError(f"objective classify: output: words cannot work, {why}; nearest that works: output: linear")
    if objective.multi and objective.metric == "macro_f1":
        raise RecipeError(
            "objective.metric: macro_f1 is of rows with one label, and labels together would count as one more; "
            "nearest that works: metric: sample_f1"
        )
    if objective.balance is True and (objective.output == "words" or objective.multi):
        raise RecipeError(
            "objective classify: balance: true is for a linear head that gives one label a row; nearest that works: "
            f"{'balance: false' if objective.multi else 'output: linear'}"
        )


def check_technique(recipe: Recipe, network: Any, family: str) -> None:
    """Raise RecipeError if this network cannot be tuned by this technique."""
    technique = recipe.technique
    if reason := technique.refusal(network, family=family):
        raise RecipeError(f"technique {technique.kind}: {reason}")
    hides = family == "encoder" and "domain" in (
        recipe.objective.kind,
        *(p.objective.kind for p in recipe.parts.values()),
    )
    if hides and isinstance(technique, Lora) and technique.targets != "all-linear":
        words = network.get_input_embeddings()
        for name, module in network.named_modules():
            if module is words and reaches(name, technique.targets):
                raise RecipeError(
                    f"technique.targets: {name} tells hidden words apart too, so that what is learned beside it "
                    "could not be merged; leave it out, or take technique: full"
                )


def check_replay(recipe: Recipe, family: str) -> None:
    """Raise RecipeError where general rows cannot be mixed in."""
    if not recipe.replay.share:
        return
    if recipe.objective.kind != "domain":
        raise RecipeError(f"replay: not for {recipe.objective.kind}; nearest that works: objective: domain")
    if recipe.replay.source == SELF and family == "encoder":
        raise RecipeError("replay.source: an encoder writes no text; nearest that works: source: a file of texts")


def check_gates(recipe: Recipe, family: str) -> None:
    """Raise RecipeError for a gate that nothing would ever measure."""
    gates = recipe.gates
    if gates.max_general_nats is not None and family == "encoder":
        raise RecipeError(
            f"gates.max_general_nats: {recipe.model} is an encoder, which predicts no next token of a general text; "
            "nearest that works: gates: {min_delta: 0.0}, or model: smollm2-135m"
        )
