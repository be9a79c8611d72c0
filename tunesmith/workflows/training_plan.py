"""Resolve the schedule of a recipe: steps, intervals, and the automatic learning rate."""

from __future__ import annotations

from tunesmith.model.policy import Policy
from tunesmith.recipe import Recipe
from tunesmith.techniques import Full, Lora
from tunesmith.training.optim import TrainingPlan, between


def make_plan(recipe: Recipe, policy: Policy, *, rows: int) -> TrainingPlan:
    """Resolve the schedule for this policy and number of training rows."""
    schedule = recipe.schedule
    per_epoch = -(-rows // schedule.batch_rows)
    steps = max(1, round(schedule.epochs * per_epoch))
    technique = recipe.technique
    scale = recipe.objective.learning_rate_scale(
        policy.family,
        plain_weights=isinstance(technique, Full | Lora),
        adapter=isinstance(technique, Lora) and not technique.quantize,
        steps=steps,
    )
    automatic = technique.learning_rate(policy.hidden, policy.family) * scale
    validated = recipe.data.validation not in (0, 0.0, "")
    return TrainingPlan(
        steps=steps,
        learning_rate=automatic if schedule.learning_rate == "auto" else schedule.learning_rate,
        warmup=schedule.warmup,
        weight_decay=schedule.weight_decay,
        clip=schedule.clip,
        eval_steps=(between(steps) if schedule.eval_steps == "auto" else schedule.eval_steps) if validated else 0,
        save_steps=-(-steps // 10) if schedule.save_steps == "auto" else schedule.save_steps,
        patience=schedule.patience,
        seed=recipe.seed,
        updates=recipe.objective.updates_per_step,
    )
