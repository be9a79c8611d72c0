"""Saving and loading of tuned models: the files of transformers and PEFT, and a JSON manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.data.tokenization.chat_template import Template
from tunesmith.display import model_label
from tunesmith.errors import CheckpointError, ModelError, TemplateError
from tunesmith.inference.export.sequence_classifier import own_network
from tunesmith.inference.identify import HEAD, MANIFEST_FILE, ModelManifest, find_model, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.checkpoint import load_tensors, save_tensors, verify_model
from tunesmith.models.loading.device import configure_device
from tunesmith.models.loading.load import Base, load_base, read_tokenizer
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.loading.suppress_output import quiet


def save_model(folder: Path, model: LocalModel, manifest: ModelManifest) -> None:
    """Write weights, head, tokenizer with chat template, and manifest.

    Args:
        folder: the directory, created if it does not exist.
        model: the tuned model.
        manifest: the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if manifest.family == "decoder":
        _end_turns(model, folder, whole=manifest.technique.kind == "full")
    if model.policy.adapter is not None:
        _make_portable(model.policy.adapter.peft_config["default"], manifest.base)
    whole = None
    if manifest.objective.saved_whole and manifest.technique.kind == "full":
        whole = own_network(model)  # other programs open the folder itself
        model.template.tokenizer.model_max_length = model.limit
    if whole is None:
        manifest.technique.save(model.policy, folder)
    else:
        with quiet():
            whole.save_pretrained(folder)
    if model.policy.head is not None:
        save_tensors(model.policy.head.state_dict(), folder / HEAD)
    if model.template.chats:  # the default template too, so that every program uses the format of training
        model.template.tokenizer.chat_template = model.template.source
    model.template.tokenizer.save_pretrained(folder)
    # Other programs name the weights of a decoder's body, and with them its adapter, otherwise than its language model.
    if manifest.technique.kind == "full" or (manifest.family == "encoder" and not manifest.technique.virtual_tokens()):
        manifest.objective.save_files(folder, limit=manifest.limit, hidden=model.policy.hidden)
    (folder / MANIFEST_FILE).write_text(manifest.text(), encoding="utf-8", newline="\n")


def _make_portable(config: Any, base: str) -> None:
    """Let the configuration of an adapter name its base as the recipe does, and be the same in each process."""
    if config.base_model_name_or_path:  # PEFT would write the place on this machine
        config.base_model_name_or_path, _, revision = base.partition("@")
        config.revision = revision or None
    for name, value in vars(config).items():
        if isinstance(value, set):  # written in an order that is another one in each process
            setattr(config, name, sorted(value))


def _end_turns(model: LocalModel, folder: Path, *, whole: bool) -> None:
    """Store the stop tokens of the chat template, so that other programs end a turn there.

    The end token of a base model is not the end of a turn. The folder of an adapter contains them if the base differs.
    """
    from transformers import GenerationConfig

    settings = model.policy.network.generation_config
    ends = sorted(model.template.stop_ids)
    known = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if whole:
        settings.eos_token_id = ends
    elif not {*ends} <= {*known}:
        GenerationConfig(eos_token_id=ends).save_pretrained(folder)


def load(
    run: str | Path, *, device: str = "auto", dtype: str = "auto", threads: int | None = 0, offline: bool = False
) -> LocalModel:
    """Load the tuned model of a run.

    Example: `load("runs/reviews").classify("great phone")`.

    Args:
        run: run folder, model folder, Hub id of a pushed run, or URL of a run folder.
        device: auto, cpu or cuda.
        dtype: auto, float32 or bfloat16, as in `frozen_dtype`.
        threads: CPU threads; 0 for all cores, None to leave the setting of torch unchanged.
        offline: do not download the base model.

    Raises:
        CheckpointError: the folder is broken or the base model has changed.
        TemplateError: the chat template has changed.
    """
    folder = find_model(run, offline=offline)
    about = read_manifest(folder)
    return load_over_base(read_base(about, device=device, dtype=dtype, threads=threads, offline=offline), folder, about)


def read_base(
    manifest: ModelManifest,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = 0,
    offline: bool = False,
) -> Base:
    """Load the base of a model folder, with the quantization of its technique.

    Args:
        manifest: the manifest.
        device: auto, cpu or cuda.
        dtype: auto, float32 or bfloat16, as in `frozen_dtype`.
        threads: CPU threads, as in `load`.
        offline: do not download the base model.

    Raises:
        ModelError: the base cannot be loaded.
    """
    options = LoadOptions(dtype, configure_device(device, threads=threads), manifest.technique.load_options().quantize)
    try:
        return load_base(manifest.base, options=options, offline=offline)
    except ModelError as error:
        if manifest.base in BUNDLED_MODELS or Path(manifest.base).is_absolute():
            raise
        fix = "if it is a relative path, run this in the directory of the tuning run"
        raise ModelError(f"{error}; {fix}") from error


def load_over_base(base: Base, folder: Path, manifest: ModelManifest) -> LocalModel:
    """Load the saved weights in `folder`, described by its `manifest`, over the `base` of `read_base`.

    Raises:
        CheckpointError: the files are damaged, or the base is not the one of training.
        TemplateError: the chat template has changed.
    """
    verify_model(folder)
    check_base(folder, manifest, base.fingerprint)
    template = read_template(folder, manifest)
    policy = manifest.technique.restore(base.network, folder, family=manifest.family)
    policy.head = manifest.objective.head(policy)
    if policy.head is not None:
        policy.head.load_state_dict(load_tensors(folder / HEAD))
    policy.train(False)
    for _, value in policy.trainable():
        value.requires_grad_(False)
    return LocalModel(
        policy,
        template,
        manifest.objective,
        manifest.limit,
        temperature=manifest.temperature,
        threshold=manifest.threshold,
        temperatures=manifest.temperatures,
        thresholds=manifest.thresholds,
        name=f"{model_label(manifest.base)} + {manifest.technique.kind}",
        folder=str(folder.parent if folder.name == "model" else folder),
    )


def check_base(folder: Path, manifest: ModelManifest, fingerprint: str) -> None:
    """Raise CheckpointError if a base is not the one that a model was tuned on."""
    if fingerprint != manifest.fingerprint:
        raise CheckpointError(
            f"{folder}: tuned over another base ({manifest.base} {manifest.fingerprint}, found {fingerprint}); "
            "give the base it was tuned on"
        )


def read_template(folder: Path, manifest: ModelManifest) -> Template:
    """Read the tokenizer and chat template of a model folder.

    Raises:
        CheckpointError: the tokenizer cannot be read.
        TemplateError: the chat template has changed.
    """
    try:
        tokenizer = read_tokenizer(folder, where=str(folder))
    except ModelError as error:
        raise CheckpointError(f"{error}; or restore the folder") from None
    template = Template(tokenizer, chat=manifest.family == "decoder")
    if template.hash != manifest.template_hash:
        raise TemplateError(
            f"{folder}: the chat template differs from the one this model was tuned with; restore the original"
        )
    return template
