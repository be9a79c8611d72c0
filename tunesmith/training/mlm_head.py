"""The masked-LM head that base and tuned encoder start with: its own, or one trained on the frozen encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.config import AnyObjective
from tunesmith.data.files import read_text, write_whole
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import CheckpointError
from tunesmith.events import TrainingStarted
from tunesmith.inference.identify import ModelSource, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import read_base
from tunesmith.models.loading.checkpoint import find_folder, load_tensors, save_tensors, verify_folder, write_folder
from tunesmith.models.mlm_head import own_head
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.training.batches import Batches
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.fit import Trainer, ValidationResult
from tunesmith.training.optim import HEAD_RATE, make_plan
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import learner_of, validation_losses

# With fewer steps the head of the base is undertrained, and tuning looks better than it is.
FEWEST_STEPS = 300
OWN, TRAINED = "its own masked-language head", "a masked-language head trained on the frozen encoder"
HEAD = "head.safetensors"


def train_mlm_head(prepared: TrainingContext, out: Path, *, callbacks: Callbacks) -> dict[str, Tensor]:
    """Return the weights of the head that base and tuned model start with.

    A network without a head gets one that is trained on the same rows and masked words, with the encoder frozen. The
    head is kept in the run folder, so that a resumed run starts with the same.

    Args:
        prepared: a `domain` run of an encoder.
        out: the run folder, or the folder of a task.
        callbacks: observe and stop the training of the head.

    Returns:
        Weights by name.
    """
    path = out / "base_head"
    saved = find_folder(path)
    if saved is None:
        own = own_head(prepared.base.network, prepared.base.folder)
        weights = _trained_head(prepared, out, callbacks) if own is None else own.state_dict()
        # Written before the folder, whose existence means that both are there.
        write_whole(out / "base_head.txt", TRAINED if own is None else OWN)
        write_folder(path, lambda partial: save_tensors(weights, partial / HEAD))
        saved = path
    verify_folder(saved)
    return load_tensors(saved / HEAD)


def how_made(out: Path) -> str:
    """Return whether the head in a run folder is the network's own or was trained, in words."""
    return read_text(out / "base_head.txt")


def open_base(source: ModelSource, objective: AnyObjective, *, place: Path, offline: bool) -> LocalModel | None:
    """Open the base model of an encoder's run with the head that the run started with.

    Args:
        source: the run.
        objective: its objective.
        place: folder with the head: that of the run or of a task.
        offline: do not access the network.

    Returns:
        The base model, or None for a decoder, which needs no head.

    Raises:
        CheckpointError: the head is missing.
    """
    assert source.folder is not None
    manifest = read_manifest(source.folder)
    if manifest.family == "decoder":
        return None
    saved = find_folder(place / "base_head")
    if saved is None:
        raise CheckpointError(f"{source.name}: base_head/ is missing; restore it or run `tunesmith tune` again")
    verify_folder(saved)
    base = read_base(manifest, offline=offline)
    policy = Policy.over(base.network, family=base.family)
    policy.head = objective.head(policy)
    assert policy.head is not None
    policy.head.load_state_dict(load_tensors(saved / HEAD))
    policy.train(False)
    return LocalModel(policy, Template(base.tokenizer, chat=False), objective, manifest.limit)


def _trained_head(prepared: TrainingContext, out: Path, callbacks: Callbacks) -> dict[str, Tensor]:
    """Train a new head on the frozen encoder, for at least as many steps as the run itself."""
    callbacks.on_event(TrainingStarted("training a masked-LM head on the frozen encoder"))
    torch.manual_seed(prepared.recipe.seed)
    network = prepared.base.network.requires_grad_(False)
    policy = Policy.over(network, family="encoder")
    policy.head = prepared.recipe.objective.head(policy)
    assert policy.head is not None
    learner = learner_of(prepared)
    plan = make_plan(prepared.recipe, policy, rows=len(prepared.train))
    steps = max(FEWEST_STEPS, plan.steps)
    tenth = max(1, steps // 10)
    plan = replace(
        plan,
        steps=steps,
        learning_rate=HEAD_RATE,
        eval_steps=tenth if prepared.validation else 0,
        save_steps=tenth,
    )
    Trainer(
        policy,
        learner,
        Batches(prepared, prepared.train),
        plan=plan,
        folder=out / "base_head_checkpoints",
        callbacks=callbacks,
        validate=lambda: ValidationResult(validation_losses(prepared, policy, {SINGLE_TASK: learner})[SINGLE_TASK]),
    ).run()
    return {name: value.detach().clone() for name, value in policy.head.state_dict().items()}
