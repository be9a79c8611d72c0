"""Export of tuned models to the formats of other programs: merged weights, GGUF, PEFT adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.files import quoted
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.errors import ModelError, RecipeError
from tunesmith.inference.export.gguf_quantize import MIXTURES, GgufWeights, measure_importance
from tunesmith.inference.export.gguf_writer import write_adapter_gguf, write_gguf
from tunesmith.inference.export.masked_lm import masked_language_model
from tunesmith.inference.export.ollama_modelfile import modelfile
from tunesmith.inference.export.sequence_classifier import own_network, sequence_classifier
from tunesmith.inference.export.usage import README, SETTINGS, readme, usage_of, with_own_head
from tunesmith.inference.identify import HEAD, MANIFEST_FILE, PACKED, ModelManifest, read_manifest
from tunesmith.inference.llamacpp import find_converter
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load_over_base, read_base
from tunesmith.models.loading.checkpoint import MANIFEST
from tunesmith.models.loading.load import Base
from tunesmith.models.loading.quantization import dequantized
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import merge_adapter, save_network

ROUNDED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
GGUF, ADAPTER_GGUF = "model.gguf", "adapter.gguf"
COMPRESSED = f"compressed-tensors is not installed: pip install {quoted('tunesmith[compressed]')}"
# Other programs think unless the template says otherwise. The first line fixes the switch, the second sets its default.
FIXED_SWITCH = "{%- set SWITCH = VALUE %}"
SWITCH_DEFAULT = "{%- if SWITCH is not defined %}{%- set SWITCH = VALUE %}{%- endif %}"


def refuse(folder: Path, manifest: ModelManifest, kind: str) -> None:
    """Raise RecipeError if this model cannot be exported to a format, or ModelError if an extra is missing.

    Args:
        folder: the model folder.
        manifest: its manifest.
        kind: adapter, merged, gguf or compressed-tensors.
    """
    technique = manifest.technique
    if reason := manifest.objective.no_export:
        raise RecipeError(f"export: {reason}")
    if kind == "adapter" and technique.kind == "full":
        raise RecipeError("export: full tuning leaves no adapter; nearest that works: --format merged")
    if kind != "adapter" and technique.virtual_tokens():
        raise RecipeError(
            f"export: {technique.kind} learns a soft prompt, which cannot be merged into weights; "
            "nearest that works: --format adapter"
        )
    if kind in ("merged", "adapter"):
        return
    program, stored = ("llama.cpp", "GGUF") if kind == "gguf" else ("vLLM", kind)
    if manifest.family == "encoder":
        raise RecipeError(f"export: {program} generates text, which an encoder cannot; nearest: --format merged")
    if (folder / HEAD).exists():
        raise RecipeError(
            f"export: {manifest.objective.kind} uses a head, which {stored} cannot store; "
            "nearest that works: --format merged"
        )
    if kind == "gguf":
        find_converter()
    elif find_spec("compressed_tensors") is None:
        raise ModelError(COMPRESSED)


def merged(folder: Path, manifest: ModelManifest, *, offline: bool) -> LocalModel:
    """Load a tuned model and merge its adapter into the weights; a 4-bit base is dequantized first.

    Args:
        folder: the model folder.
        manifest: its manifest.
        offline: do not download the base model.
    """
    model = load_over_base(plain_base(manifest, offline=offline), folder, manifest)
    if model.policy.adapter is not None:
        with quiet():
            model.policy.network = merge_adapter(model.policy.network, model.policy.adapter)
    if model.policy.family == "decoder":  # the end token of a base model is not the end of a turn
        model.policy.network.generation_config.eos_token_id = sorted(model.template.stop_ids)
    return model


def plain_base(manifest: ModelManifest, *, offline: bool) -> Base:
    """Load the base of a model folder on the CPU, where weights are float32; a 4-bit one is dequantized.

    Args:
        manifest: the manifest of the folder.
        offline: do not download the base model.
    """
    base = read_base(manifest, device="cpu", offline=offline)
    if manifest.technique.load_options().quantize:
        base.network = dequantized(base.network)
    return base


def keep_thinking_mode(model: LocalModel, *, fixed: bool = False) -> None:
    """Write the mode in which the model was trained into the chat template of the tokenizer, for every program.

    A caller of the other program can still switch, unless the model answers with something else than text. `fixed`
    is for programs that always set the switch themselves, such as llama.cpp, so that a default would have no effect: a
    model that was trained without thoughts then has no switch.
    """
    template = model.template
    thinks = model.thinking_mode()
    if thinks is None or template.switch not in ("enable_thinking", "thinking"):
        return
    fixed = model.objective.produces != "text" or (fixed and not thinks)
    line = (FIXED_SWITCH if fixed else SWITCH_DEFAULT).replace("SWITCH", template.switch)
    template.tokenizer.chat_template = line.replace("VALUE", str(thinks).lower()) + template.source


def write_merged(model: LocalModel, folder: Path, out: Path, *, dtype: str = "f32") -> None:
    """Write weights, tokenizer and chat template in the format of transformers, and a README with code.

    A head becomes part of the network, in the class of transformers for its task. Where the family has no class that
    can express it, the head is written next to the weights.

    Args:
        model: the merged model; its weights are rounded in place.
        folder: the model folder, for the head.
        out: output directory.
        dtype: dtype of the weights: f32, f16 or bf16.

    Raises:
        ModelError: a weight overflows the dtype.
    """
    keep_thinking_mode(model)
    usage = usage_of(model)
    network = model.policy.network
    headed = (folder / HEAD).exists()
    if headed and (whole := _with_head(model, dtype)) is not None:
        network, headed = whole, False
    network.to(ROUNDED[dtype])
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"--dtype {dtype}: a value of {name} overflows; use bf16 or f32")
    if usage is not None and headed:
        usage = with_own_head(usage, model)
    settings: dict[str, Any] = {}
    if usage is not None:
        settings = {SETTINGS: {"form": usage.form, **usage.settings}}
        _prepare_tokenizer(model, network)
        name = folder.parent.name if folder.name == "model" else folder.name
        multi = model.objective.label_mode == "multi"
        text = readme(usage, name=name, class_name=type(network).__name__, multi=multi)
        (out / README).write_text(text, encoding="utf-8", newline="\n")
    with quiet():
        save_network(network, out, settings=settings)
    model.template.tokenizer.save_pretrained(out)
    if headed:
        shutil.copy(folder / HEAD, out / HEAD)


def _with_head(model: LocalModel, dtype: str) -> Any | None:
    """Return the network of transformers that includes the head; None if its family has no such class."""
    if model.objective.saved_whole:
        return own_network(model, dtype)
    whole = masked_language_model(model)
    return sequence_classifier(model, dtype) if whole is None else whole


def _prepare_tokenizer(model: LocalModel, network: Any) -> None:
    """Make other programs truncate and pad as this model was tuned."""
    tokenizer = model.template.tokenizer
    if not model.template.chats:
        tokenizer.model_max_length, tokenizer.truncation_side = model.limit, "right"
    elif hasattr(network, "score"):  # pools the last token that is not the padding token
        spare = [one for one in tokenizer.all_special_ids if one not in model.template.stop_ids]
        if spare and tokenizer.pad_token_id not in spare:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spare[0])
        network.config.pad_token_id = tokenizer.pad_token_id


def write_file(
    model: LocalModel,
    out: Path,
    *,
    dtype: str,
    name: str,
    rows: Sequence[Encoded] = (),
    on_note: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a merged model as a GGUF file with a Modelfile for Ollama.

    Args:
        model: the merged model.
        out: output directory.
        dtype: f16, or one of MIXTURES.
        name: name of the model in the file.
        rows: training rows that measure which columns matter, for a quantized file.
        on_note: called if some layers are rounded without that.
    """
    keep_thinking_mode(model, fixed=True)
    texts = model.objective.produces == "likelihood"
    if texts:  # it completes texts and was not trained on chats
        model.template.tokenizer.chat_template = None
    policy, whole = model.policy, out / (GGUF if dtype == "f16" else "f16.gguf")
    write_gguf(policy.network, model.template.tokenizer, whole, name=name)
    if dtype != "f16":
        with GgufWeights(whole) as source:
            parameters = source.parameters(policy.network)
            if unknown := sorted(source.shapes.keys() - parameters.keys()):
                on_note(
                    f"no importance matrix for {len(unknown)} tensors of {len(source.shapes)}, such as {unknown[0]}"
                )
            importance = measure_importance(policy, parameters, rows)
            source.write(
                out / GGUF,
                source.types(dtype, importance=bool(importance)),
                importance,
                file_type=MIXTURES[dtype].file_type,
            )
        whole.unlink()
    instruction = "" if model.objective.produces == "labels" else model.objective.instruction
    (out / "Modelfile").write_text(
        modelfile(
            model.template,
            gguf=GGUF,
            instruction=instruction,
            texts=texts,
            context=model.limit + model.sampling.max_new_tokens,
            thinking=bool(model.thinking_mode()),
        ),
        encoding="utf-8",
        newline="\n",
    )


def write_adapter(
    model: LocalModel, folder: Path, out: Path, *, on_note: Callable[[str], None] = lambda text: None
) -> None:
    """Write the adapter in the format of PEFT with tokenizer and head; LoRA also as GGUF, for llama.cpp.

    For an adapter over a 4-bit base, which llama.cpp does not support, the quantization is stored for `open_model`.

    Args:
        model: the tuned model.
        folder: its model folder.
        out: output directory.
        on_note: called with the reason if GGUF cannot express the LoRA of a decoder.
    """
    for path in folder.iterdir():
        if path.name not in (MANIFEST_FILE, MANIFEST):
            shutil.copy(path, out / path.name)
    keep_thinking_mode(model)
    model.template.tokenizer.save_pretrained(out)
    if bits := read_manifest(folder).technique.load_options().quantize:
        (out / PACKED).write_text(json.dumps({"quantize": bits}), encoding="utf-8")
    elif model.policy.family == "decoder" and not (folder / HEAD).exists():
        try:
            write_adapter_gguf(model.policy.network, folder, out / ADAPTER_GGUF, name=ADAPTER_GGUF)
        except ModelError as error:
            on_note(f"{error}".partition("; nearest")[0])
