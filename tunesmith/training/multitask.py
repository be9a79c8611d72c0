"""Losses and gradients of the tasks of a multitask run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from tunesmith.events import gradient_cosine_key, task_loss_key
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Learner
from tunesmith.progress import measuring, track
from tunesmith.training.batches import Batches, mixture_of
from tunesmith.training.fit import prepare_batches, retry_smaller
from tunesmith.training.journal import Journal
from tunesmith.training.prepare import TrainingContext

# Rows of each task whose gradients are compared, the same at each validation, and rows of one backward pass.
ROWS_COMPARED = 16
BATCH_SIZE = 4
# Gradient values that are compared: all of an adapter, every n-th of a whole network, because a full gradient per task
# would take the memory of the weights each.
MAX_GRADIENT_VALUES = 20_000_000


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """Losses of the tasks and cosines of their gradients, [-1, 1], at one validation."""

    step: int
    losses: Mapping[str, float]  # by task
    gradient_cosines: Mapping[tuple[str, str], float]  # by pair of tasks


def read_task_metrics(journal: Journal, prepared: TrainingContext) -> tuple[TaskMetrics, ...]:
    """Read the metrics of all validations that the training log has, those before an interruption included."""
    losses = {name: task_loss_key(name) for name in prepared.tasks}
    cosines = {pair: gradient_cosine_key(*pair) for pair in combinations(prepared.tasks, 2)}
    return tuple(
        TaskMetrics(
            record["step"],
            {name: record[key] for name, key in losses.items() if key in record},
            {pair: record[key] for pair, key in cosines.items() if key in record},
        )
        for record in journal.read()
        if any(key in record for key in (*losses.values(), *cosines.values()))
    )


def single_task_contexts(prepared: TrainingContext) -> dict[str, TrainingContext]:
    """Return each task as a separate run that uses as many rows of the task as the multitask run does."""
    mixture = mixture_of(prepared, tokens=1)
    schedule = prepared.recipe.schedule
    steps = max(1, round(schedule.epochs * -(-len(prepared.train) // schedule.batch_rows)))
    contexts = {}
    for index, (name, task) in enumerate(prepared.tasks.items()):
        epochs = mixture.drawn(index, steps) / len(task.train)
        recipe = task.recipe.model_copy(update={"schedule": schedule.model_copy(update={"epochs": epochs})})
        contexts[name] = replace(task, recipe=recipe)
    return contexts


def mean_loss(prepared: TrainingContext, losses: Mapping[str, float]) -> float:
    """Return the mean of the tasks' losses by their weights, as in training; it selects the best checkpoint."""
    weights = prepared.recipe.objective.task_weights
    return sum(weights[name] * loss for name, loss in losses.items()) / sum(weights[name] for name in losses)


def gradient_cosines(
    prepared: TrainingContext, policy: Policy, learners: Mapping[str, Learner]
) -> dict[tuple[str, str], float]:
    """Compute the cosine of every two tasks' gradients with respect to the shared parameters, on the same rows.

    A positive cosine means that a step for one task also lowers the loss of the other, a negative one that it raises
    it (Yu et al. 2020, arXiv 2001.06782). No gradient is left in the parameters.

    Args:
        prepared: the run.
        policy: the policy in its present state.
        learners: the learner of each task.

    Returns:
        The cosine by pair of tasks; empty for a single task.
    """
    if len(prepared.tasks) < 2:
        return {}
    directions = {}
    for name, task in track(prepared.tasks.items(), "comparing gradients", unit="tasks"):
        view = prepared.recipe.objective.task_policy(policy, name)
        directions[name] = _gradient_direction(task, policy, view, learners[name])
    return {(a, b): float(directions[a] @ directions[b]) for a, b in combinations(directions, 2)}


def _gradient_direction(task: TrainingContext, policy: Policy, view: Policy, learner: Learner) -> Tensor:
    """Return the gradient of a task's loss on its first rows, scaled to length 1, [at most MAX_GRADIENT_VALUES]."""
    shared = [value for key, value in policy.trainable() if not key.startswith("head.")]
    every = -(-sum(value.numel() for value in shared) // MAX_GRADIENT_VALUES)
    total = [torch.zeros_like(value.flatten()[::every], dtype=torch.float32) for value in shared]
    batches = Batches(task, task.train)
    rows = range(min(ROWS_COMPARED, len(task.train)))
    size = BATCH_SIZE

    def gradients() -> tuple[Tensor | None, ...]:
        (batch,) = prepare_batches(view, learner, [batches.of(rows[:size])])
        with torch.enable_grad():
            loss = learner.loss(batch, view).total
            return torch.autograd.grad(loss, shared, allow_unused=True)

    def halve() -> bool:
        nonlocal size
        size //= 2
        return size > 0

    with measuring("comparing gradients", len(rows), unit="rows") as meter:
        while rows:
            for accumulated, gradient in zip(total, retry_smaller(gradients, halve), strict=True):
                if gradient is not None:
                    accumulated.add_(gradient.flatten()[::every])
            meter.add(min(size, len(rows)))
            rows = rows[size:]
    flat = torch.cat(total)
    return flat.div_(flat.norm().clamp(min=1e-12))
