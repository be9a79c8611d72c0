"""Alarms: training that goes wrong stops with its cause while it can still be cured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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

WATCHED = 3  # steps after which parameters must have changed
HIGH = 10  # steps in a row with a high loss; heads that start as a probe are high for fewer, and recover
INSPECT = "inspect the learned tokens with `tunesmith tune --dry-run`, or name other technique.targets"
DETACHED = f"training: the loss does not depend on what is trained; {INSPECT}"


def far(loss: float, reference: float) -> bool:
    """Return whether a loss is so far above another one that noise does not explain it; both in nats per unit."""
    return loss > 2 * reference + 1


@dataclass(slots=True)
class Alarms:
    """Watches the loss and the gradient norm that every step reports.

    All else is computed rarely: before the first step the loss of its first rows, and after ten steps in a row far
    above it the loss of the same rows again. Sampled completions have no such rows, so that only losses that are not
    finite are an alarm, and zero gradients are none: rewards may be equal.
    """

    policy: Policy
    learner: Learner
    plan: TrainingPlan
    folder: Path  # of the checkpoints
    first: list[Batch] | None = None  # the first micro-batch of this process, as it was prepared
    start: float | None = None  # its loss before the first step
    norms: list[float] = field(default_factory=list)  # of the parameters at the start
    taken: int = 0  # steps
    moved: bool = False  # some gradient was not 0
    high: int = 0  # steps in a row with a loss far above the first one

    def before(self, step: int, batches: Callable[[], Sequence[Batch]]) -> None:
        """Remember how training starts, after `step` steps; raise Refused if an untrained adapter damages the base."""
        if self.first is not None:
            return
        self.first = [batch for batch in batches() if batch.counts][:1]
        if any(current_world().dealing.gather(any(batch.rollout is not None for batch in self.first))):
            return
        self.start, self.norms = self._loss(), self._parameter_norms()
        if step or self.policy.adapter is None or self.start is None:
            return
        with self.policy.reference():
            base = self._loss()
        if base is not None and far(self.start, base):
            raise Refused(
                f"step 1: the loss of the first rows is {self.start:.3g}, that of the base model {base:.3g}; the "
                "technique damages the base before anything is learned; use its defaults, or technique=lora"
            )

    def check(self, state: TrainingState, loss: float, norm: float) -> None:
        """Raise Refused if a step with this loss per unit and gradient norm, taken in `state`, shows a failure."""
        place, rate = f"step {state.step + 1}", f"schedule.learning_rate (now {self.plan.learning_rate:g})"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            fix = f"lower {rate} or inspect the rows with `tunesmith tune --dry-run`"
            raise Refused(f"{place}: the loss is {loss}, the gradient norm {norm}; {fix}; {self._good(state)}")
        if not self.norms:
            return
        self.taken += 1
        self.moved |= norm > 0
        if self.taken == WATCHED and not self.moved:
            raise Refused(f"{place}: all gradients were 0 in {WATCHED} steps; {INSPECT}")
        if self.taken == WATCHED and all(current_world().dealing.gather(self.norms == self._parameter_norms())):
            raise Refused(f"{place}: no trained parameter has changed in {WATCHED} steps; raise {rate}")
        if self.start is not None:
            self.high = self.high + 1 if far(loss, self.start) else 0
        if self.start is not None and self.high == HIGH:
            if (now := self._loss()) is not None and far(now, self.start):
                risen = f"the loss of the first rows has risen from {self.start:.3g} to {now:.3g}"
                raise Refused(f"{place}: {risen}, training diverges; lower {rate}; {self._good(state)}")
            self.high = 0

    @torch.no_grad()
    def _loss(self) -> float | None:
        """Compute the loss of the first rows per unit, without dropout; None if memory or lockstep do not allow it."""
        total = units = 0.0
        if not current_world().lockstep:  # where processes would have to run equally many passes
            self.policy.train(False)
            try:
                for batch in self.first or ():
                    loss = self.learner.loss(batch, self.policy)
                    total, units = float(loss.total), loss.units
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
        totals, counts = zip(*current_world().dealing.gather((total, units)), strict=True)
        return sum(totals) / sum(counts) if sum(counts) else None

    @torch.no_grad()
    def _parameter_norms(self) -> list[float]:
        """Compute the norm of each parameter, in double precision, which shows the smallest change."""
        values = [value.to_local() if is_shard(value) else value for _, value in self.policy.trainable()]  # type: ignore[attr-defined]
        return torch.stack([torch.linalg.vector_norm(value, dtype=torch.float64) for value in values]).tolist()

    def _good(self, state: TrainingState) -> str:
        """Name the last checkpoint from before the losses rose."""
        if state.best_step:
            return f"last good checkpoint: {self.folder / f'best-{state.best_step}'}"
        last = find_folder(self.folder / "last")
        saved = json.loads((last / "state.json").read_text(encoding="utf-8"))["step"] if last else 0
        if not saved or saved > state.step + 1 - self.high:
            return "there is no good checkpoint before it"
        return f"last good checkpoint: {self.folder / 'last'}, of step {saved}"
