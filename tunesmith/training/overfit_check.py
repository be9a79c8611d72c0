"""Overfit check: can the model learn eight rows at all? It takes seconds, before a run that may take hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import Refused
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Learner
from tunesmith.progress import measuring
from tunesmith.training.fit import step
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.train_state import INSPECT, load_trainable_state, trainable_state

ROWS = 8
STEPS = 24
# At a suitable learning rate the loss on eight rows halves within ten steps; a third less is an easy demand.
WANTED = 0.67
# A loss below this, in nats per unit, leaves nothing to learn.
NEGLIGIBLE = 0.02


@dataclass(frozen=True, slots=True)
class Probe:
    """Result of the overfit check: loss per unit before and after a few steps on the same rows."""

    first: float
    last: float
    steps: int


def can_learn(policy: Policy, objective: Learner, batches: Sequence[Batch], *, plan: TrainingPlan) -> Probe:
    """Train on the same few rows until the loss has fallen by a third; the policy's parameters are restored.

    Args:
        policy: the policy.
        objective: computes the loss.
        batches: the rows, in micro-batches.
        plan: the learning rate and clipping norm of the run.

    Raises:
        Refused: the loss did not fall.
    """
    # On a GPU the copy stays in the memory of the machine: weights, gradients and moments fill the GPU's.
    initial = {name: value.clone() if value.is_cpu else value.cpu() for name, value in trainable_state(policy).items()}
    optimizer = make_optimizer(policy, plan)
    set_rate(optimizer, plan.learning_rate)
    losses: list[float] = []
    learned = False
    try:
        with measuring("overfit check", STEPS, unit="steps") as meter:
            while len(losses) < STEPS and not learned:
                loss, norm = step(policy, objective, batches, optimizer=optimizer, clip=plan.clip)
                if not norm and loss > NEGLIGIBLE:
                    raise Refused(f"overfit check: all gradients are 0; {INSPECT}")
                losses.append(loss)
                learned = losses[-1] < WANTED * losses[0] or losses[0] < NEGLIGIBLE
                meter.add()
    finally:
        optimizer.zero_grad(set_to_none=True)
        load_trainable_state(policy, initial)
        policy.train(False)
    if not learned:
        rows = sum(batch.examples for batch in batches)
        raise Refused(
            f"overfit check: {STEPS} steps on the same {rows} rows lowered the loss from {losses[0]:.3f} "
            f"to only {min(losses):.3f}; raise schedule.learning_rate (now {plan.learning_rate:g}), "
            "inspect the learned tokens with --dry-run, or skip this check with schedule.probe=false"
        )
    return Probe(losses[0], losses[-1], len(losses))
