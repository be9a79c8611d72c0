"""A tuned model in the formats of other programs: one set of weights, a GGUF file, an adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tunesmith.errors import ModelError, RecipeError
from tunesmith.inference.folder import ABOUT, About, over, read_about, read_base
from tunesmith.inference.local import LocalModel
from tunesmith.inference.modelfile import modelfile
from tunesmith.inference.open import PACKED
from tunesmith.model.checkpoint import MANIFEST
from tunesmith.model.four_bit import unpacked
from tunesmith.model.gguf_write import write_adapter_gguf, write_gguf
from tunesmith.model.quiet import quiet
from tunesmith.objectives import Classify, Domain

HEAD = "head.safetensors"
ROUNDED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
GGUF, ADAPTER_GGUF = "model.gguf", "adapter.gguf"
# Thoughts are switched off where a model is tuned and asked, and on in other programs unless the template says so.
NO_THOUGHTS = "{%- set enable_thinking = false %}"


def refuse(folder: Path, about: About, kind: str) -> None:
    """Raise RecipeError where this model has no such form, with the nearest that it has."""
    technique = about.technique
    if kind == "adapter" and technique.kind == "full":
        raise RecipeError("export: full tuning leaves no adapter; nearest that works: --format merged")
    if kind != "adapter" and technique.virtual_tokens():
        raise RecipeError(
            f"export: {technique.kind} learns what stands before each row, which no weight can hold; "
            "nearest that works: --format adapter"
        )
    if kind == "gguf" and about.family == "encoder":
        raise RecipeError("export: llama.cpp answers in words, and an encoder has none; nearest: --format merged")
    if kind == "gguf" and (folder / HEAD).exists():
        raise RecipeError(
            f"export: {about.objective.kind} answers through a head here, which GGUF has no place for; "
            "nearest that works: --format merged"
        )


def merged(folder: Path, about: About, *, offline: bool) -> LocalModel:
    """The tuned model with its adapter in the weights; a base in 4 bits is unpacked first, as it was trained over."""
    base = read_base(about, offline=offline)
    if about.technique.load_options().quantize:
        base.network = unpacked(base.network)
    model = over(base, folder, about)
    if model.policy.adapter is not None:
        with quiet():
            model.policy.network = model.policy.adapter.merge_and_unload()
    without_thoughts(model)
    if model.policy.family == "decoder":  # a base model's own end is no end of a turn
        model.policy.network.generation_config.eos_token_id = sorted(model.template.stop_ids)
    return model


def without_thoughts(model: LocalModel) -> None:
    """Let the tokenizer's chat template say to every program that thoughts are off."""
    source = model.template.source
    if model.template.chats and "enable_thinking" in source:
        model.template.tokenizer.chat_template = NO_THOUGHTS + source


def write_merged(model: LocalModel, folder: Path, out: Path, *, numbers: str = "f32") -> None:
    """Weights, tokenizer and chat template as any transformers program opens them; a head lies beside them.

    The model is rounded to these numbers. Raises ModelError where one is too large for them.
    """
    model.policy.network.to(ROUNDED[numbers])
    for name, weight in model.policy.network.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"--numbers {numbers}: {name} holds a number too large for it; use bf16 or f32")
    with quiet():
        model.policy.network.save_pretrained(out)
    model.template.tokenizer.save_pretrained(out)
    if (folder / HEAD).exists():
        shutil.copy(folder / HEAD, out / HEAD)


def write_file(model: LocalModel, out: Path, *, numbers: str, name: str) -> None:
    """The merged model as one GGUF file, and a Modelfile for Ollama."""
    texts = isinstance(model.objective, Domain)
    if texts:  # it goes on with a text and knows no chats
        model.template.tokenizer.chat_template = None
    write_gguf(model.policy.network, model.template.tokenizer, out / GGUF, kind=numbers, name=name)
    said = "" if isinstance(model.objective, Classify) else model.objective.instruction
    (out / "Modelfile").write_text(
        modelfile(
            model.template,
            gguf=GGUF,
            instruction=said,
            texts=texts,
            context=model.limit + model.sampling.max_new_tokens,
        ),
        encoding="utf-8",
    )


def write_adapter(model: LocalModel, folder: Path, out: Path) -> None:
    """The adapter in PEFT's format with tokenizer and head; of LoRA also as GGUF, for llama.cpp over its base.

    One that was learned over 4 bits says so to `open_model`; llama.cpp has no such base.
    """
    for path in folder.iterdir():
        if path.name not in (ABOUT, MANIFEST):
            shutil.copy(path, out / path.name)
    without_thoughts(model)
    model.template.tokenizer.save_pretrained(out)
    if bits := read_about(folder).technique.load_options().quantize:
        (out / PACKED).write_text(json.dumps({"quantize": bits}), encoding="utf-8")
    else:
        write_adapter_gguf(model.policy.adapter, out / ADAPTER_GGUF)
