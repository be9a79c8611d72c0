"""The optimizer, the learning rate over time, and both in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.config import Recipe
from tunesmith.config.resolve import default_validations
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.policy import Policy
from tunesmith.techniques import Full, Lora


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The settings of the training loop."""

    steps: int
    learning_rate: float  # the peak
    warmup: float = 0.06  # share of the steps
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    eval_steps: int = 0  # 0: never
    save_steps: int = 0  # 0: only at the end
    patience: int = 3  # validations without improvement before the run stops
    updates: int = 1  # optimizer updates per step, on the same prepared batches
    seed: int = 0
    optimizer: str = "adamw"  # or adamw-8bit

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warmup, then a cosine down to a tenth of the peak."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def between(steps: int, count: int) -> int:
    """Return the steps between validations, so that a run has `count` of them, or one more if steps remain."""
    interval = max(1, steps // count)
    return interval if steps <= (count + 1) * interval else -(-steps // count)


# Smallest learning rate of an objective's head, which starts from zero or from a probe, and its exact rate next to
# trainable parameters that are not weights, such as soft prompts.
HEAD_RATE = 1e-3


def make_optimizer(policy: Policy, plan: TrainingPlan) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters; norms, biases and soft prompts have no weight decay.

    With `adamw-8bit`, matrices of 4,096 values and more keep both moments in 8 bits, in blocks of 256 with a scale each
    (Dettmers et al. 2022, arXiv 2110.02861).
    """
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, value in policy.trainable():
        head = name.startswith("head.")
        groups.setdefault((head, value.ndim >= 2 and (head or policy.weights)), []).append(value)
    parameters = [
        {
            "params": values,
            "weight_decay": plan.weight_decay if matrix else 0.0,
            "times": max(1.0 if policy.weights else 0.0, HEAD_RATE / plan.learning_rate) if head else 1.0,
        }
        for (head, matrix), values in groups.items()
    ]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=plan.learning_rate, betas=(0.9, 0.99), fused=True)
    with quiet():
        from bitsandbytes.optim.adamw import AdamW8bit
    make: Any = AdamW8bit  # untyped
    optimizer: torch.optim.Optimizer = make(parameters, lr=plan.learning_rate, betas=(0.9, 0.99))
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group to its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["times"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, policy: Policy) -> dict[str, Tensor]:
    """Return the state of the optimizer as tensors by parameter name."""
    names = {id(value): name for name, value in policy.trainable()}
    return {
        f"{names[id(value)]}/{key}": torch.as_tensor(tensor)
        for value, state in optimizer.state.items()
        for key, tensor in state.items()
    }


def empty_optimizer_tensors(policy: Policy, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return zeros for saved shapes of `optimizer_tensors` (and others), sharded like the parameters, to load into."""
    found = {}
    for name, value in policy.trainable():
        for key, shape in shapes.items():
            if key.startswith(f"{name}/"):
                same = shape == tuple(value.shape)
                found[key] = torch.zeros_like(value.detach()) if same else torch.zeros(shape, device=value.device)
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, policy: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Restore a state that `optimizer_tensors` returned."""
    values = dict(policy.trainable())
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        value = values[name]
        # Steps are an integer where bitsandbytes counts them, and a float32 tensor where torch does.
        optimizer.state[value][part] = tensor.to(value.device) if tensor.dtype != torch.int64 else int(tensor)


def make_plan(recipe: Recipe, policy: Policy, *, rows: int, validation: int = 0) -> TrainingPlan:
    """Resolve the schedule for a policy.

    Args:
        recipe: its schedule may leave learning rate and intervals to `auto`.
        policy: the adapted policy.
        rows: number of training rows.
        validation: number of validation rows.
    """
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
    # An objective that samples completions trains on far more tokens than its rows have.
    read = 0 if recipe.objective.samples_completions else validation
    interval = between(steps, default_validations(steps * schedule.batch_rows, read))
    return TrainingPlan(
        steps=steps,
        learning_rate=automatic if schedule.learning_rate == "auto" else schedule.learning_rate,
        warmup=schedule.warmup,
        weight_decay=schedule.weight_decay,
        clip=schedule.clip,
        eval_steps=(interval if schedule.eval_steps == "auto" else schedule.eval_steps) if validated else 0,
        save_steps=-(-steps // 10) if schedule.save_steps == "auto" else schedule.save_steps,
        patience=schedule.patience,
        seed=recipe.seed,
        updates=recipe.objective.updates_per_step,
        optimizer=schedule.optimizer,
    )
