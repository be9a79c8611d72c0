"""Alarms: training that goes wrong stops with its cause while it can still be cured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tunesmith.errors import Refused, out_of_memory
from tunesmith.models.batch import Batch
from tunesmith.models.loading.checkpoint import find_folder
from tunesmith.models.policy import Policy
from tunesmith.models.sharded import is_shard
from tunesmith.models.world import current_world
from tunesmith.objectives.base import Learner
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.train_state import TrainingState

WATCHED = 3  # steps after which parameters must have changed, and in a row of which a high loss is looked into
WAIT = 10  # steps until a high loss is looked into again
INSPECT = "inspect the learned tokens with `tunesmith tune --dry-run`, or name other technique.targets"
DETACHED = f"training: the loss does not depend on what is trained; {INSPECT}"


def far(loss: float, reference: float) -> bool:
    """Return whether a loss is so far above another one that no noise explains it; both in nats per unit."""
    return loss > 2 * reference + 1


class Alarms:
    """Watches the losses and gradient norms that every step reports.

    Everything else that it computes is computed rarely: the loss of the first micro-batch and the norms of the
    parameters before the first step of the process; the norms again after the third; the loss of the same rows again
    once three steps in a row are far above the first one. Sampled completions have no rows to return to: of them only
    losses that are not finite are an alarm.
    """

    def __init__(self, policy: Policy, learner: Learner, plan: TrainingPlan, folder: Path) -> None:
        self._policy = policy
        self._learner = learner
        self._plan = plan
        self._folder = folder
        self._world = current_world().dealing
        self._first: list[Batch] | None = None  # the first micro-batch of this process, as it was prepared
        self._start: float | None = None  # its loss before the first step
        self._norms: list[float] = []
        self._largest = 0.0  # gradient norm so far
        self._taken = 0
        self._high = 0  # steps in a row with a loss far above the first one

    def before(self, step: int, batches: Callable[[], Sequence[Batch]]) -> None:
        """Remember how the run starts, and compare the loss with the base's before anything was learned.

        Args:
            step: number of steps taken.
            batches: returns the prepared micro-batches of the next step.

        Raises:
            Refused: the technique changes the base so much that its loss is far above.
        """
        if self._first is not None:
            return
        self._first = [batch for batch in batches() if batch.counts][:1]
        if any(self._world.gather(any(batch.rollout is not None for batch in self._first))):
            return
        self._start, self._norms = self._loss(), self._parameter_norms()
        if step or self._policy.adapter is None or self._start is None:
            return
        with self._policy.reference():
            base = self._loss()
        if base is not None and far(self._start, base):
            raise Refused(
                f"step 1: the loss of the first rows is {self._start:.3g}, that of the base model {base:.3g}; the "
                "technique damages the base before anything is learned; use its defaults, or technique=lora"
            )

    def check(self, state: TrainingState, loss: float, norm: float) -> None:
        """Raise Refused, with the cause and the last good checkpoint, if the step just taken shows that training fails.

        Args:
            state: the state before the step.
            loss: loss per unit.
            norm: gradient norm before clipping.
        """
        place, lower = f"step {state.step + 1}", f"lower schedule.learning_rate (now {self._plan.learning_rate:g})"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            fix = f"{lower} or inspect the rows with `tunesmith tune --dry-run`"
            raise Refused(f"{place}: the loss is {loss}, the gradient norm {norm}; {fix}; {self._good(state)}")
        if self._start is None:
            return
        self._taken += 1
        self._largest = max(self._largest, norm)
        if self._taken == WATCHED:
            self._check_change(place)
        self._high = self._high + 1 if far(loss, self._start) else min(self._high, 0)
        if self._high == WATCHED:
            now = self._loss()
            if now is not None and far(now, self._start):
                risen = f"the loss of the first rows has risen from {self._start:.3g} to {now:.3g}"
                raise Refused(f"{place}: {risen}, training diverges; {lower}; {self._good(state)}")
            self._high = -WAIT

    def _check_change(self, place: str) -> None:
        if not self._largest:
            raise Refused(f"{place}: all gradients were 0 in {WATCHED} steps; {INSPECT}")
        if not any(self._world.gather(self._norms != self._parameter_norms())):
            fix = f"raise schedule.learning_rate (now {self._plan.learning_rate:g})"
            raise Refused(f"{place}: no trained parameter has changed in {WATCHED} steps; {fix}")

    @torch.no_grad()
    def _loss(self) -> float | None:
        """Compute the loss of the first rows per unit, without dropout; None if that is not possible.

        In lockstep it is not: the processes would have to run equally many passes.
        """
        found = (0.0, 0.0)
        if not current_world().lockstep:
            self._policy.train(False)
            try:
                losses = [self._learner.loss(batch, self._policy) for batch in self._first or ()]
                found = (sum(float(loss.total) for loss in losses), sum(loss.units for loss in losses))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
        totals, units = zip(*self._world.gather(found), strict=True)
        return sum(totals) / sum(units) if sum(units) else None

    @torch.no_grad()
    def _parameter_norms(self) -> list[float]:
        # In double precision, which shows the smallest change; not sums, in which those of a softmax cancel out.
        values = [value.to_local() if is_shard(value) else value for _, value in self._policy.trainable()]  # type: ignore[attr-defined]
        return torch.stack([torch.linalg.vector_norm(value, dtype=torch.float64) for value in values]).tolist()

    def _good(self, state: TrainingState) -> str:
        """Name the last checkpoint from before the losses rose."""
        if state.best_step:
            return f"last good checkpoint: {self._folder / f'best-{state.best_step}'}"
        last = find_folder(self._folder / "last")
        saved = json.loads((last / "state.json").read_text(encoding="utf-8"))["step"] if last else 0
        if not saved or saved > state.step + 1 - max(self._high, 0):
            return "there is no good checkpoint before it"
        return f"last good checkpoint: {self._folder / 'last'}, of step {saved}"
