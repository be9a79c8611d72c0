"""The state of a run and its checkpoints: the last step in full, and the best parameters."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

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
from tunesmith.training.optim import empty_optimizer_tensors, optimizer_tensors, restore_optimizer

TRAINABLE_STATE_FILE = "numbers.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"

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
    """Count the micro-batches of a step.

    Args:
        batches: the micro-batches, whose examples count as rows.
        prepared: the same prepared; sampled completions count as tokens, not as rows.
    """
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
        """Count one optimizer step.

        Args:
            parts: what each process contributed.
            seconds: duration of the step.
            peak: most bytes that this process has used.

        Returns:
            The tokens of the step.
        """
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
