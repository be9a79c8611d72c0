"""Several tasks in one run: what each loses, alone and beside the others, and how far they pull apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from tunesmith.models.loading.device import out_of_memory
from tunesmith.models.policy import Policy
from tunesmith.objectives import Multitask
from tunesmith.training.batches import Batches, mixture_of
from tunesmith.training.fit import prepare_batches
from tunesmith.training.journal import Journal
from tunesmith.training.prepare import TrainingContext

# Rows of each task whose gradients are compared, the same ones each time, and how many of them run at once.
ROWS_COMPARED, BATCH_SIZE = 16, 4
# What begins the name of a task's validation loss in the journal, and of the cosine of two tasks' gradients.
TASK_LOSS_PREFIX, GRADIENT_COSINE_PREFIX, TASK_SEPARATOR = "validation_loss of ", "gradients of ", " and "


def single_task_contexts(prepared: TrainingContext) -> dict[str, TrainingContext]:
    """Each task as a run by itself that sees as many of its rows as the run of all of them does."""
    mixture = mixture_of(prepared, tokens=1)
    schedule = prepared.recipe.schedule
    steps = max(1, round(schedule.epochs * -(-len(prepared.train) // schedule.batch_rows)))
    found = {}
    for task, (name, part) in enumerate(prepared.parts.items()):
        epochs = mixture.drawn(task, steps) / len(part.train)
        recipe = part.recipe.model_copy(update={"schedule": schedule.model_copy(update={"epochs": epochs})})
        found[name] = replace(part, recipe=recipe)
    return found


# Numbers that two tasks' gradients are compared by: all of an adapter's, some of a whole network's, which would take
# the memory of its weights for each task.
MOST_NUMBERS = 20_000_000


def losses(
    prepared: TrainingContext, policy: Policy, one: Callable[[TrainingContext, Policy], float]
) -> dict[str, float]:
    """Each task's validation loss by `one`; of those that have validation rows."""
    objective = prepared.recipe.objective
    assert isinstance(objective, Multitask)
    return {n: one(part, objective.task_policy(policy, n)) for n, part in prepared.parts.items() if part.validation}


def mean_of(prepared: TrainingContext, found: Mapping[str, float]) -> float:
    """The mean of the tasks' losses by their weights, as in training: the best numbers are chosen by it."""
    objective = prepared.recipe.objective
    assert isinstance(objective, Multitask)
    weights = {name: objective.tasks[name].weight for name in found}
    return sum(weights[name] * loss for name, loss in found.items()) / sum(weights.values())


def gradient_cosines(prepared: TrainingContext, policy: Policy, parts: Mapping[str, Batches]) -> dict[str, float]:
    """The cosine of each two tasks' gradients on the numbers they share, on the same rows each time.

    1: what helps one helps the other; below 0: it harms (Yu et al. 2020, arXiv 2001.06782). No gradient is left behind.
    """
    found = {name: _direction(prepared, policy, name, batches) for name, batches in parts.items()}
    return {
        f"{GRADIENT_COSINE_PREFIX}{a}{TASK_SEPARATOR}{b}": float(found[a] @ found[b]) for a, b in combinations(found, 2)
    }


def validations(beside: Sequence[Mapping[str, float]], task: str) -> list[tuple[int, float]]:
    """(step, loss) of a task at each validation."""
    key = f"{TASK_LOSS_PREFIX}{task}"
    return [(int(line["step"]), line[key]) for line in beside if key in line]


def read_task_metrics(journal: Journal) -> tuple[dict[str, float], ...]:
    """What stands in the journal of each task, validation by validation, with its step."""
    wanted = (TASK_LOSS_PREFIX, GRADIENT_COSINE_PREFIX)
    found = [{k: v for k, v in line.items() if k == "step" or k.startswith(wanted)} for line in journal.read()]
    return tuple(line for line in found if len(line) > 1)


def _direction(prepared: TrainingContext, policy: Policy, name: str, batches: Batches) -> Tensor:
    """The gradient of a task's mean loss over its first rows, of length one; every so many of very many numbers."""
    objective = prepared.recipe.objective
    assert isinstance(objective, Multitask)
    shared = [value for key, value in policy.trainable() if not key.startswith("head.")]
    view, task = objective.task_policy(policy, name), objective.tasks[name].objective.make_learner()
    every = -(-sum(value.numel() for value in shared) // MOST_NUMBERS)
    total = [torch.zeros_like(value.flatten()[::every], dtype=torch.float32) for value in shared]
    rows, at_once = range(min(ROWS_COMPARED, len(prepared.parts[name].train))), BATCH_SIZE
    while rows:
        try:
            (batch,) = prepare_batches(view, task, [batches.of(rows[:at_once])])
            with torch.enable_grad():
                loss = task.loss(batch, view)
                grads = torch.autograd.grad(loss.total, shared, allow_unused=True)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or at_once == 1:
                raise
            at_once //= 2
            continue
        rows = rows[at_once:]
        for sum_, grad in zip(total, grads, strict=True):
            if grad is not None:
                sum_.add_(grad.flatten()[::every])
    flat = torch.cat(total)
    return flat.div_(flat.norm().clamp(min=1e-12))
