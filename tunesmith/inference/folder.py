"""A tuned model on disk: the ecosystem's own files, and one JSON page that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.data.files import read_page
from tunesmith.data.template import Template
from tunesmith.errors import CheckpointError, ModelError, TemplateError
from tunesmith.inference.local import LocalModel
from tunesmith.model.checkpoint import MANIFEST, load_tensors, save_tensors, verify_folder
from tunesmith.model.device import settle
from tunesmith.model.load import Base, LoadOptions, load_base, read_tokenizer
from tunesmith.model.run_base import base_place
from tunesmith.model.shipped import SHIPPED
from tunesmith.recipe import AnyObjective, AnyTechnique

ABOUT = "tunesmith.json"


class About(BaseModel):
    """What a model folder is: enough to open it and to refuse the wrong base or a changed chat format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    base: str
    fingerprint: str
    family: str
    objective: AnyObjective
    technique: AnyTechnique
    template_hash: str
    limit: int
    temperature: float = 1.0
    threshold: float | None = None
    temperatures: dict[str, float] = {}  # of the tasks of a model of several
    thresholds: dict[str, float] = {}


def save_model(folder: Path, model: LocalModel, about: About) -> None:
    """Write the tuned numbers, head, tokenizer with chat template, and the page about them."""
    folder.mkdir(parents=True, exist_ok=True)
    if about.family == "decoder":
        _end_turns(model, folder, whole=about.technique.kind == "full")
    about.technique.save(model.policy, folder)
    if model.policy.head is not None:
        save_tensors(model.policy.head.state_dict(), folder / "head.safetensors")
    if model.template.chats:  # the plain one too, so that every program asks in the format that was trained
        model.template.tokenizer.chat_template = model.template.source
    model.template.tokenizer.save_pretrained(folder)
    (folder / ABOUT).write_text(about.model_dump_json(indent=1), encoding="utf-8")


def _end_turns(model: LocalModel, folder: Path, *, whole: bool) -> None:
    """Let other programs stop where turns end: a base model's own end is none. Over a base that says another,
    the folder of an adapter says so."""
    from transformers import GenerationConfig

    settings, ends = model.policy.network.generation_config, sorted(model.template.stop_ids)
    known = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if whole:
        settings.eos_token_id = ends
    elif not {*ends} <= {*known}:
        GenerationConfig(eos_token_id=ends).save_pretrained(folder)


def read_about(folder: Path) -> About:
    """The page about a model folder, its base named as it is found from here. Raises CheckpointError."""
    try:
        about = read_page(folder / ABOUT, About)
    except OSError:
        raise CheckpointError(
            f"{folder}: no {ABOUT} in it, so not a finished run; finish it with `tunesmith tune`"
        ) from None
    return about.model_copy(update={"base": base_place(about.base, folder)})


def find_model(run: str | Path) -> Path:
    """The model folder of a run folder, or the folder itself. Raises CheckpointError."""
    run = Path(run)
    for folder in (run / "model", run):
        if (folder / ABOUT).exists():
            return folder
    if not run.exists():
        raise CheckpointError(f"{run}: no such folder; `tunesmith runs` lists what is here")
    raise CheckpointError(f"{run}: no finished model in it; finish it with `tunesmith tune`")


def load(run: str | Path, *, device: str = "auto", threads: int | None = 0, offline: bool = False) -> LocalModel:
    """The tuned model of a run, ready to classify, generate or reply; on `threads` as `settle` takes them.

    Raises CheckpointError for a broken folder or another base, TemplateError for a changed chat format.
    """
    folder = find_model(run)
    about = read_about(folder)
    return over(read_base(about, device=device, threads=threads, offline=offline), folder, about)


def read_base(about: About, *, device: str = "auto", threads: int | None = 0, offline: bool = False) -> Base:
    """The base that a model folder was tuned over, as its technique wants it in memory."""
    options = LoadOptions("float32", settle(device, threads=threads), about.technique.load_options().quantize)
    try:
        return load_base(about.base, options=options, offline=offline)
    except ModelError as error:
        if about.base in SHIPPED or Path(about.base).is_absolute():
            raise
        cure = "if it is a folder, start where the run was tuned, from where its path counts"
        raise ModelError(f"{error}; {cure}") from error


def over(base: Base, folder: Path, about: About) -> LocalModel:
    """The saved numbers over a base that was read. Raises CheckpointError and TemplateError."""
    if (folder / MANIFEST).exists():
        verify_folder(folder, only="*.safetensors")
    if base.fingerprint != about.fingerprint:
        raise CheckpointError(
            f"{folder}: tuned over another base ({about.base} {about.fingerprint}, found {base.fingerprint}); "
            "give the base it was tuned on"
        )
    try:
        tokenizer = read_tokenizer(folder, where=str(folder))
    except ModelError as error:
        raise CheckpointError(f"{error}; or restore the folder") from None
    template = Template(tokenizer, chat=about.family == "decoder")
    if template.hash != about.template_hash:
        raise TemplateError(
            f"{folder}: the chat template differs from the one this model was tuned with; restore its own"
        )
    policy = about.technique.restore(base.network, folder, family=about.family)
    policy.head = about.objective.head(policy)
    if policy.head is not None:
        policy.head.load_state_dict(load_tensors(folder / "head.safetensors"))
    policy.train(False)
    for _, value in policy.trainable():
        value.requires_grad_(False)
    return LocalModel(
        policy,
        template,
        about.objective,
        about.limit,
        temperature=about.temperature,
        threshold=about.threshold,
        temperatures=about.temperatures,
        thresholds=about.thresholds,
    )
