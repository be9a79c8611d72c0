"""Optimizer, learning rate over time, and their place in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.config import Recipe
from tunesmith.models.policy import Policy
from tunesmith.techniques import Full, Lora


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything a loop must know beside the model and the rows, as numbers."""

    steps: int
    learning_rate: float  # learning rate
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    eval_steps: int = 0  # 0: never
    save_steps: int = 0  # 0: only at the end
    patience: int = 3
    updates: int = 1  # of the numbers in one step, on the same prepared batches
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear rise, then a cosine down to a tenth of the peak."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


# Times that a run is validated where nobody says how often.
VALIDATIONS = 6


def between(steps: int) -> int:
    """Steps from one validation to the next, so that a run has six and at most one more for what is left over."""
    each = max(1, steps // VALIDATIONS)
    return each if steps <= (VALIDATIONS + 1) * each else -(-steps // VALIDATIONS)


# A head of the objective's own starts from nothing, or from a probe, so it takes at least this rate whatever weights
# take, and just this rate beside numbers that are no weights.
HEAD_RATE = 1e-3


def make_optimizer(policy: Policy, plan: TrainingPlan) -> torch.optim.AdamW:
    """AdamW over the policy's trainable numbers; what is no weight (norms, biases, virtual tokens) is not decayed."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, value in policy.trainable():
        head = name.startswith("head.")
        groups.setdefault((head, value.ndim >= 2 and (head or policy.weights)), []).append(value)
    return torch.optim.AdamW(
        [
            {
                "params": values,
                "weight_decay": plan.weight_decay if matrix else 0.0,
                "times": max(1.0 if policy.weights else 0.0, HEAD_RATE / plan.learning_rate) if head else 1.0,
            }
            for (head, matrix), values in groups.items()
        ],
        lr=plan.learning_rate,
        betas=(0.9, 0.99),
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["times"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, policy: Policy) -> dict[str, Tensor]:
    """The optimizer's state by parameter name."""
    names = {id(value): name for name, value in policy.trainable()}
    return {
        f"{names[id(value)]}/{key}": torch.as_tensor(tensor)
        for value, state in optimizer.state.items()
        for key, tensor in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, policy: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved state back."""
    values = dict(policy.trainable())
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        value = values[name]
        optimizer.state[value][part] = tensor.to(value.device)


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
