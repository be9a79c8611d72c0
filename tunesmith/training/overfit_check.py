"""Checks of a few rows, in seconds, before a run that may take hours: can the model learn, is int8 exact enough?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import RecipeError, Refused
from tunesmith.models.batch import Batch
from tunesmith.models.loading.device import keep_randomness
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
# Largest relative change of the loss by products in 8-bit integers. Measured: 0.1 to 0.4 %, and 7 % without smoothing,
# where the losses of the next steps were higher (bench/NOTES.md).
INT8_CHANGE = 0.01


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


def check_int8(policy: Policy, learner: Learner, batch: Batch) -> str:
    """Let LoRA multiply with frozen weights in 8-bit integers if that changes the loss of a batch by little.

    The policy is the untrained one, so that a run that resumes rounds the weights to the same integers.

    Args:
        policy: the adapted policy.
        learner: computes the loss.
        batch: rows that show how large the states become.

    Returns:
        A note on the loss with them and without.

    Raises:
        RecipeError: no product of this policy can be replaced.
    """
    from tunesmith.models.kernels.fused_lora import install_int8  # imports PEFT, which other techniques do not need

    policy.train(False)
    prepared = learner.prepare(batch.to(policy.device), policy)

    def loss() -> float:
        whole = learner.loss(prepared, policy)
        return float(whole.total.detach()) / (whole.units or 1)

    with keep_randomness(policy.device):
        found = install_int8(policy.network, loss, bound=INT8_CHANGE)
    if found is None:
        raise RecipeError("technique.products: int8 is for linear layers on a CPU, and this run has none; leave it out")
    note = f"technique.products: int8 for {found.share:.0%} of the weights changes the loss of {batch.examples} rows "
    note += f"by {found.change:+.2%}"
    if found.used:
        return note
    return f"{note}, more than {INT8_CHANGE:.0%}; this run uses the exact weights"
