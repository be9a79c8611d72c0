"""The head of a masked-language model: its own, or one trained on the frozen encoder, which is then the base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.config import AnyObjective
from tunesmith.data.files import write_whole
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.errors import CheckpointError
from tunesmith.events import StageStarted
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import ModelSource
from tunesmith.inference.saved_model import read_base, read_manifest
from tunesmith.models.loading.checkpoint import find_folder, load_tensors, save_tensors, verify_folder, write_folder
from tunesmith.models.mlm_head import own_head
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.training.batches import Batches
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.fit import Trainer, ValidationResult
from tunesmith.training.optim import HEAD_RATE, TrainingPlan, make_plan
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import learner_of, validation_losses

# Fewer steps would leave the base behind where it can be, and its tuning would look better than it is.
FEWEST_STEPS = 300
OWN, TRAINED = "its own masked-language head", "a masked-language head trained on the frozen encoder"
HEAD = "head.safetensors"


def train_mlm_head(prepared: TrainingContext, out: Path, *, callbacks: Callbacks) -> dict[str, Tensor]:
    """The numbers of the head that base and tuned model begin with; kept in the run's folder once they are made."""
    place = out / "base_head"
    kept = find_folder(place)
    if kept is None:
        own = own_head(prepared.base.network, prepared.base.folder)
        numbers = _trained(prepared, out, callbacks) if own is None else own.state_dict()
        # Before the folder, which says that both are there.
        write_whole(out / "base_head.txt", TRAINED if own is None else OWN)
        write_folder(place, lambda half: save_tensors(numbers, half / HEAD))
        kept = place
    verify_folder(kept)
    return load_tensors(kept / HEAD)


def how_made(out: Path) -> str:
    """Which of the two it is, in words."""
    return (out / "base_head.txt").read_text(encoding="utf-8")


def open_base(found: ModelSource, objective: AnyObjective, *, place: Path, offline: bool) -> LocalModel | None:
    """The base of an encoder's run with the head that the run began with, which lies in `place`; None for a decoder.

    Raises CheckpointError where the run's folder no longer has that head.
    """
    assert found.folder is not None
    about = read_manifest(found.folder)
    if about.family == "decoder":
        return None
    kept = find_folder(place / "base_head")
    if kept is None:
        raise CheckpointError(f"{found.name}: its folder base_head is gone, and with it what the base answers through")
    base = read_base(about, offline=offline)
    policy = Policy.over(base.network, family=base.family)
    policy.head = objective.head(policy)
    assert policy.head is not None
    policy.head.load_state_dict(load_tensors(kept / HEAD))
    policy.train(False)
    return LocalModel(policy, Template(base.tokenizer, chat=False), objective, about.limit)


def _trained(prepared: TrainingContext, out: Path, callbacks: Callbacks) -> dict[str, Tensor]:
    """A fresh head after learning on the same rows and the same hidden words, the encoder left as it is."""
    callbacks.on_event(StageStarted("training a masked-LM head on the frozen encoder"))
    torch.manual_seed(prepared.recipe.seed)
    network = prepared.base.network.requires_grad_(False)
    policy = Policy.over(network, family="encoder")
    policy.head = prepared.recipe.objective.head(policy)
    assert policy.head is not None
    batches = Batches(prepared, prepared.train)
    learner = learner_of(prepared)
    Trainer(
        policy,
        learner,
        batches,
        plan=_plan(prepared, policy),
        folder=out / "base_head_checkpoints",
        callbacks=callbacks,
        validate=lambda: ValidationResult(validation_losses(prepared, policy, {SINGLE_TASK: learner})[SINGLE_TASK]),
    ).run()
    return {name: value.detach().clone() for name, value in policy.head.state_dict().items()}


def _plan(prepared: TrainingContext, policy: Policy) -> TrainingPlan:
    """At least as many steps as the run itself has, at the rate of heads."""
    plan = make_plan(prepared.recipe, policy, rows=len(prepared.train))
    steps = max(FEWEST_STEPS, plan.steps)
    evaluations = max(1, steps // 10) if prepared.validation else 0
    return replace(plan, steps=steps, learning_rate=HEAD_RATE, eval_steps=evaluations, save_steps=max(1, steps // 10))
