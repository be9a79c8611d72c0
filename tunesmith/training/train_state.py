"""The state of a run, its checkpoints (the last step in full, and the best parameters), and alarms that stop it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from tunesmith.errors import Refused, out_of_memory
from tunesmith.models.batch import Batch
from tunesmith.models.loading.checkpoint import (
    find_folder,
    has_shards,
    load_into,
    load_tensors,
    save_tensors,
    shapes_in,
    verify_folder,
    write_folder,
)
from tunesmith.models.policy import Policy
from tunesmith.models.sharded import is_shard
from tunesmith.models.world import current_world
from tunesmith.objectives.base import Learner
from tunesmith.training.optim import TrainingPlan, empty_optimizer_tensors, optimizer_tensors, restore_optimizer

TRAINABLE_STATE_FILE = "numbers.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
WATCHED = 3  # first steps of a run, after which parameters must have changed
SAMPLED = 1024  # values of each parameter, at most, that are compared for it
HIGH = 10  # steps in a row with a high loss; heads that start as a probe are high for fewer, and recover
INSPECT = "inspect the learned tokens with `tunesmith tune --dry-run`, or name other technique.targets"
DETACHED = f"training: the loss does not depend on what is trained; {INSPECT}"

# Fields of `TrainingState` that have another key in state.json, so that older checkpoints can be resumed.
STATE_KEYS = {
    "bad_validations": "worse",
    "forward_tokens": "computed",
    "peak_bytes": "peak",
    "validation_pending": "owed",
}


class StepCounts(TypedDict):
    """The contribution of one process to the counts of a step."""

    tokens: int
    forward_tokens: int
    rows: int


def step_counts(batches: Sequence[Batch], prepared: Sequence[Batch]) -> StepCounts:
    """Count the micro-batches of a step, before and after `prepare`: sampled completions are tokens, but not rows."""
    return StepCounts(
        tokens=sum(batch.tokens for batch in prepared),
        forward_tokens=sum(batch.forward_tokens for batch in prepared),
        rows=sum(batch.examples for batch in batches),
    )


@dataclass(slots=True)
class TrainingState:
    """Progress of a run: everything in a checkpoint but the tensors."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    bad_validations: int = 0  # validations since the best
    seconds: float = 0.0  # training steps only
    tokens: int = 0
    forward_tokens: int = 0  # tokens that passed through the network, a shared prefix counted once
    rows: int = 0
    stopped_early: bool = False
    peak_bytes: int = 0  # bytes: the largest resident size of a process that trained
    saved_best: int = 0  # best step of the checkpoint on disk, whose parameters a resumed run may end with
    validation_pending: bool = False  # a failing reward interrupted the validation of this step

    def count(self, parts: Sequence[StepCounts], *, seconds: float, peak: int) -> int:
        """Count one optimizer step by what each process contributed, and return its tokens."""
        tokens = sum(part["tokens"] for part in parts)
        self.step += 1
        self.seconds += seconds
        self.tokens += tokens
        self.forward_tokens += sum(part["forward_tokens"] for part in parts)
        self.rows += sum(part["rows"] for part in parts)
        self.peak_bytes = max(self.peak_bytes, peak)
        return tokens


def trainable_state(policy: Policy) -> dict[str, Tensor]:
    """Return the trainable parameters by name."""
    return {name: value.detach() for name, value in policy.trainable()}


@torch.no_grad()
def load_trainable_state(policy: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Restore parameters that `trainable_state` returned."""
    for name, value in policy.trainable():
        value.copy_(tensors[name])


def save_best(policy: Policy, state: TrainingState, folder: Path) -> None:
    """Save the parameters of the best step in a folder named after it, so that an older checkpoint keeps its own."""
    plain, shards = _by_kind(trainable_state(policy))
    _write(_best(state, folder), lambda partial: save_tensors(plain, partial / TRAINABLE_STATE_FILE), shards)
    _drop_all_but({state.best_step, state.saved_best}, folder)


def _write(folder: Path, fill: Callable[[Path], None], shards: Mapping[str, Tensor]) -> None:
    """Write a folder in the first process; in all of them, which have to call this, if there are sharded tensors."""
    if shards or current_world().leads:
        write_folder(folder, fill, shards=shards)


def load_best(policy: Policy, state: TrainingState, folder: Path) -> None:
    """Restore the parameters of the best step. Raises CheckpointError."""
    best = find_folder(_best(state, folder)) or _best(state, folder)
    current_world().dealing.lead(lambda: verify_folder(best))
    _load_state(policy, best)


def _by_kind(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Divide tensors into plain and sharded ones."""
    shards = {name: value for name, value in tensors.items() if is_shard(value)}
    return {name: value for name, value in tensors.items() if name not in shards}, shards


def _load_state(policy: Policy, folder: Path) -> None:
    """Restore the parameters in a folder, plain or sharded there and here."""
    state = trainable_state(policy)
    if has_shards(folder) or any(is_shard(value) for value in state.values()):
        load_into(state, folder)
    else:
        load_trainable_state(policy, load_tensors(folder / TRAINABLE_STATE_FILE))


def _best(state: TrainingState, folder: Path) -> Path:
    return folder / f"best-{state.best_step}"


def _drop_all_but(steps: set[int], folder: Path) -> None:
    """Delete the parameters of other steps, and partial folders of a killed process."""
    names = {f"best-{step}" for step in steps}
    for other in folder.glob("*best-*") if current_world().leads else ():
        if other.name not in names:
            shutil.rmtree(other)


def save(policy: Policy, optimizer: torch.optim.Optimizer, state: TrainingState, folder: Path) -> None:
    """Save a checkpoint of this step atomically."""
    weights, weight_shards = _by_kind(trainable_state(policy))
    moments, moment_shards = _by_kind(optimizer_tensors(optimizer, policy))

    def fill(partial: Path) -> None:
        save_tensors(weights, partial / TRAINABLE_STATE_FILE)
        save_tensors(moments, partial / OPTIMIZER_FILE)
        values = {STATE_KEYS.get(name, name): value for name, value in asdict(state).items()}
        (partial / "state.json").write_text(json.dumps(values), encoding="utf-8")

    state.saved_best = state.best_step
    _write(folder / "last", fill, weight_shards | moment_shards)
    _drop_all_but({state.best_step}, folder)


def resume(policy: Policy, optimizer: torch.optim.Optimizer, folder: Path) -> TrainingState | None:
    """Restore the newest complete checkpoint and return its state; None if there is none."""
    if (last := find_folder(folder / "last")) is None:
        return None
    current_world().dealing.lead(lambda: verify_folder(last))
    _load_state(policy, last)
    moments = load_tensors(last / OPTIMIZER_FILE)
    if has_shards(last) or any(is_shard(value) for _, value in policy.trainable()):
        moments = empty_optimizer_tensors(policy, shapes_in(last))
        load_into(moments, last)
    restore_optimizer(optimizer, policy, moments)
    names = {key: name for name, key in STATE_KEYS.items()}
    values = json.loads((last / "state.json").read_text(encoding="utf-8"))
    return TrainingState(**{names.get(key, key): value for key, value in values.items()})


def far(loss: float, reference: float) -> bool:
    """Return whether a loss is so far above another one that noise does not explain it; both in nats per unit."""
    return loss > 2 * reference + 1


@dataclass(slots=True)
class Alarms:
    """Watches the loss and the gradient norm that every step reports.

    All else is computed rarely: before the first step the loss of its first rows, and after ten steps in a row far
    above it, or a last step, the loss of the same rows again. Sampled completions have no such rows, so that only
    losses that are not finite are an alarm, and zero gradients are none: rewards may be equal. Nor are they in a run
    that is resumed: a hinge loss that has been learned has none.
    """

    policy: Policy
    learner: Learner
    plan: TrainingPlan
    folder: Path  # of the checkpoints
    first: list[Batch] | None = None  # the first micro-batch of this process, as it was prepared
    start: float | None = None  # its loss before the first step
    values: list[Tensor] = field(default_factory=list)  # of each parameter before the first step; empty: not watched
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
        self.start, self.values = self._loss(), [] if step else self._sample()
        if step or self.policy.adapter is None or self.start is None:
            return
        with self.policy.reference():
            base = self._loss()
        if base is not None and far(self.start, base):
            raise Refused(
                f"step 1: the loss of the first rows is {self.start:.3g}, that of the base model {base:.3g}; the "
                "technique damages the base before anything is learned; use its defaults, or technique=lora"
            )

    def check(self, state: TrainingState, loss: float, norm: float) -> str:
        """Raise Refused if a step with this loss per unit and gradient norm, taken in `state`, shows a failure.

        Returns:
            A warning if the last step shows one and nothing is left to be saved by ending the run; mostly empty.
        """
        place, rate = f"step {state.step + 1}", f"schedule.learning_rate (now {self.plan.learning_rate:g})"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            fix = f"lower {rate} or inspect the rows with `tunesmith tune --dry-run`"
            raise Refused(f"{place}: the loss is {loss}, the gradient norm {norm}; {fix}; {self._good(state)}")
        if self.values:
            self._watch(place, norm, f"raise {rate}")
        if self.start is not None:
            self.high = self.high + 1 if far(loss, self.start) else 0
        last = state.step + 1 == self.plan.steps
        # No later step would notice that the last one destroyed the parameters.
        if last and not state.best_step and not math.isfinite(after := self._loss() or 0.0):
            failure = f"{place}: the loss of the first rows is {after} after it, training diverges"
            raise Refused(f"{failure}; lower {rate}; {self._good(state)}")
        # A high loss in the last step is enough for a warning, unless a validation was good: that is the result. It
        # does not end the run: heads that start as a probe may be high, too, and test rows measure what they learned.
        ended = self.high and last
        if self.start is not None and (self.high == HIGH or (ended and far(state.best, self.start))):
            if (now := self._loss()) is not None and far(now, self.start):
                risen = f"the loss of the first rows has risen from {self.start:.3g} to {now:.3g}"
                failure = f"{place}: {risen}, training diverges; lower {rate}; {self._good(state)}"
                if ended:
                    return failure
                raise Refused(failure)
            self.high = 0
        return ""

    def check_validation(self, state: TrainingState, loss: float) -> None:
        """Raise Refused if the last validation is not a number and none was kept: there are no parameters to keep."""
        last = state.stopped_early or state.step == self.plan.steps
        if last and math.isnan(loss) and not state.best_step:
            fix = f"lower schedule.learning_rate (now {self.plan.learning_rate:g})"
            raise Refused(
                f"step {state.step}: the validation loss is nan, training diverges; {fix}; {self._good(state)}"
            )

    def _watch(self, place: str, norm: float, fix: str) -> None:
        """Raise Refused if the first steps of the run have changed nothing."""
        self.taken += 1
        self.moved |= norm > 0
        if self.taken < WATCHED:
            return
        if not self.moved:
            raise Refused(f"{place}: all gradients were 0 in {WATCHED} steps; {INSPECT}")
        # Mostly the first parameter has changed, and no other one is read.
        same = all(torch.equal(old, new) for old, new in zip(self.values, self._sample(), strict=True))
        if all(current_world().dealing.gather(same)):
            raise Refused(f"{place}: no trained parameter has changed in {WATCHED} steps; {fix}")
        self.values = []

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
    def _sample(self) -> list[Tensor]:
        """Copy evenly spaced values of each parameter; an odd distance, as an even one may stay in a single column."""
        values = [value.to_local() if is_shard(value) else value for _, value in self.policy.trainable()]  # type: ignore[attr-defined]
        return [value.reshape(-1)[:: -(-value.numel() // SAMPLED) | 1].clone() for value in values]

    def _good(self, state: TrainingState) -> str:
        """Name the last checkpoint from before the losses rose."""
        if state.best_step:
            return f"last good checkpoint: {self.folder / f'best-{state.best_step}'}"
        last = find_folder(self.folder / "last")
        saved = json.loads((last / "state.json").read_text(encoding="utf-8"))["step"] if last else 0
        good = 0 < saved <= state.step + 1 - self.high
        return f"last good checkpoint: {last}, of step {saved}" if good else "there is no good checkpoint before it"
