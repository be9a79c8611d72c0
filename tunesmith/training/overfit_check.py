"""Can this model learn eight rows at all? Asked before the run, not after an hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import Refused
from tunesmith.models.batch import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Learner
from tunesmith.training.fit import step
from tunesmith.training.optim import TrainingPlan, make_optimizer, set_rate
from tunesmith.training.train_state import load_trainable_state, trainable_state

ROWS = 8
STEPS = 24
# Half the loss of eight rows is gone within ten steps at a rate that works; a third is a mild demand.
WANTED = 0.67


@dataclass(frozen=True, slots=True)
class Probe:
    """Loss on the same eight rows before and after a few steps on them."""

    first: float
    last: float
    steps: int


def can_learn(policy: Policy, objective: Learner, batches: Sequence[Batch], *, plan: TrainingPlan) -> Probe:
    """The probe's losses; the policy's numbers are put back as they were, whatever happens.

    Raises Refused if it learns nothing.
    """
    start = {name: value.clone() for name, value in trainable_state(policy).items()}
    optimizer = make_optimizer(policy, plan)
    set_rate(optimizer, plan.learning_rate)
    losses: list[float] = []
    try:
        while len(losses) < STEPS and not _learned(losses):
            losses.append(step(policy, objective, batches, optimizer=optimizer, clip=plan.clip)[0])
    finally:
        optimizer.zero_grad(set_to_none=True)
        load_trainable_state(policy, start)
        policy.train(False)
    if not _learned(losses):
        rows = sum(batch.examples for batch in batches)
        raise Refused(
            f"overfit probe: {STEPS} steps on the same {rows} rows took the loss from {losses[0]:.3f} "
            f"to only {min(losses):.3f}; raise schedule.learning_rate (now {plan.learning_rate:g}) "
            "or look at what is learned with --dry-run; schedule.probe=false leaves this probe out"
        )
    return Probe(losses[0], losses[-1], len(losses))


def _learned(losses: Sequence[float]) -> bool:
    """Whether the loss has fallen enough, or was next to nothing from the start."""
    return bool(losses) and (losses[-1] < WANTED * losses[0] or losses[0] < 0.02)
