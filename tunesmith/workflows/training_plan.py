"""A recipe's schedule in numbers, the automatic learning rate among them."""

from __future__ import annotations

from tunesmith.model.policy import Policy
from tunesmith.objectives import Classify, Rl
from tunesmith.recipe import Recipe
from tunesmith.techniques import Full, Lora
from tunesmith.training.optim import TrainingPlan, between


def make_plan(recipe: Recipe, policy: Policy, *, rows: int) -> TrainingPlan:
    """The schedule in numbers."""
    schedule = recipe.schedule
    per_epoch = -(-rows // schedule.batch_rows)
    steps = max(1, round(schedule.epochs * per_epoch))
    automatic = recipe.technique.learning_rate(policy.hidden, policy.family) * _pace(recipe, policy.family, steps)
    validated = recipe.data.validation not in (0, 0.0, "")
    return TrainingPlan(
        steps=steps,
        peak=automatic if schedule.learning_rate == "auto" else schedule.learning_rate,
        warmup=schedule.warmup,
        weight_decay=schedule.weight_decay,
        clip=schedule.clip,
        eval_steps=(between(steps) if schedule.eval_steps == "auto" else schedule.eval_steps) if validated else 0,
        save_steps=-(-steps // 10) if schedule.save_steps == "auto" else schedule.save_steps,
        patience=schedule.patience,
        seed=recipe.seed,
        updates=recipe.objective.updates if isinstance(recipe.objective, Rl) else 1,
    )


# Of its own rate what a technique takes at least to learn labels, and in how many steps it takes all of it.
LEAST, FEW_STEPS = 0.3, 24


def _pace(recipe: Recipe, family: str, steps: int) -> float:
    """The automatic learning rate as a share of the technique's own, which suits learning to answer."""
    technique = recipe.technique
    if isinstance(recipe.objective, Rl):
        return 0.1  # a reward is learned by small steps
    if not isinstance(recipe.objective, Classify) or family == "encoder" or not isinstance(technique, Full | Lora):
        return 1.0
    # By the whole rate weights learn labels no better, some runs not at all, and far more is forgotten. Only updates of
    # plain weights want it for a few steps, and less for more of them: as far in all (docs/explanation/defaults.md).
    whole = isinstance(technique, Lora) and not technique.quantize
    return min(1.0, max(LEAST, FEW_STEPS / steps)) if whole else LEAST
