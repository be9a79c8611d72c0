"""Base models: from an alias, a Hub id, a folder, a finished run or a GGUF file to a checked network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from tunesmith.data.tokenization.tokenizer import choose_pad, homeless
from tunesmith.errors import ModelError
from tunesmith.models.attention.network_cache import cache_failure, expose_decoder, generates
from tunesmith.models.families import family_of
from tunesmith.models.loading import base_from_run as run_base
from tunesmith.models.loading import quantization as four_bit
from tunesmith.models.loading import weight_files as weights
from tunesmith.models.loading.device import DTYPES, frozen_dtype
from tunesmith.models.loading.gguf_reader import read_gguf
from tunesmith.models.loading.hub import pinned
from tunesmith.models.loading.locate import AS_THEY_ARE, LoadOptions, locate, not_in_4_bits
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import load_text_part, part_of, text_config
from tunesmith.models.sharded import is_sharded, prepare_sharded, reading_shards, shard


@dataclass(slots=True)
class Base:
    """A base model."""

    name: str  # as the user wrote it
    folder: Path | None  # None if the weights are from a GGUF file or merged with an adapter
    network: Any  # the transformers model
    tokenizer: PreTrainedTokenizerBase
    family: str  # decoder or encoder
    fingerprint: str  # 16 hex digits, equal for equal weights
    pinned: str = ""  # its name, of a model of the Hub with the commit


def load_base(name: str, *, options: LoadOptions = AS_THEY_ARE, offline: bool = False) -> Base:
    """Load a base model in evaluation mode.

        load_base("smollm2-135m")
        load_base("Qwen/Qwen2.5-0.5B", options=LoadOptions(quantize="nf4"))

    Args:
        name: alias, Hub id, folder, run folder or GGUF file.
        options: dtype, device and quantization.
        offline: use only local files.

    Raises:
        ModelError: if it is not found, not safe to load, damaged, or of an unsupported family.
    """
    if options.dtype == "auto":
        options = replace(options, dtype=frozen_dtype(options.device))
    if options.dtype not in DTYPES:
        raise ModelError(f"dtype: {options.dtype!r} is not one of {', '.join(DTYPES)}; use one of them")
    if options.quantize not in ("", "nf4"):
        raise ModelError(f"quantize: unknown format {options.quantize!r}; use nf4, or leave it out")
    if options.quantize and (reason := not_in_4_bits(name, offline=offline)):
        raise ModelError(reason)
    with quiet():
        base = _read(name, options, offline=offline)
        network = base.network
        weights.check_finite(network, where=name)
        embedding = network.get_input_embeddings()
        rows = embedding.num_embeddings
        if token := homeless(base.tokenizer, rows=rows):
            raise ModelError(
                f"{name}: its chat template uses {token!r}, which has no embedding; "
                "call resize_token_embeddings(len(tokenizer)) on the model and save it again, or remove the template"
            )
        choose_pad(base.tokenizer, rows=rows)
        # torch suppresses the gradient of the padding row. Many chat models, SmolLM2 among them, pad with their end
        # token, whose embedding would never be trained.
        if embedding.padding_idx is not None and embedding.padding_idx == base.tokenizer.eos_token_id:
            embedding.padding_idx = None
        network.eval()
        if base.family == "decoder":
            expose_decoder(network)
            if not generates(network):
                raise ModelError(f"{name}: {_refusal(network, quantized=bool(options.quantize))}")
            # Penalties and temperatures in generation_config would change the answers of every saved copy, but not
            # the measured ones.
            ids = network.generation_config
            network.generation_config = GenerationConfig(
                bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id
            )
    return base


def _refusal(network: Any, *, quantized: bool) -> str:
    """Return why a decoder that does not continue from its own cache is refused, and a fix."""
    kind = network.config.model_type
    if quantized:  # a layer whose weight is used without calling the layer cannot be in 4 bits
        return f"{kind} cannot be used in 4 bits; leave `quantize` out"
    fix = "choose a decoder of the Llama, Qwen, Gemma or GPT-2 kind"
    if problem := cache_failure(network):  # such as a configuration that contradicts itself
        reason = f"transformers cannot run {kind} with a KV cache, which generation requires ({problem.rstrip('.')})"
        return f"{reason}; check its config.json, or {fix}"
    return f"{kind} does not support a KV cache, which generation requires; {fix}"


def _read(name: str, options: LoadOptions, *, offline: bool) -> Base:
    """Read a base model; one that is not in a plain folder is read whole, without a GPU, and then sharded."""
    whole = options if options.sharding is None else replace(options, device="cpu", sharding=None)
    if name.lower().endswith(".gguf"):
        base = _from_gguf(name, whole)
    else:
        folder = locate(name, offline=offline)
        base_name, _ = run_base.begins_from(folder, where=name)
        base = _from_run(name, folder, whole, offline=offline) if base_name else _from_folder(name, folder, options)
        base.pinned = pinned(name, folder)
    if options.sharding is not None and not is_sharded(base.network):
        shard(base.network, options.sharding, device=options.device)
    return base


def _from_run(name: str, folder: Path, options: LoadOptions, *, offline: bool) -> Base:
    """Load the base of a run with an adapter and merge the adapter in."""
    base_name, quantize = run_base.begins_from(folder, where=name)
    base = load_base(base_name, options=replace(options, quantize=quantize), offline=offline)
    if quantize:  # dequantized, so that the adapter is added to exactly the weights it was trained over
        base.network = four_bit.dequantized(base.network)
    network, fingerprint = run_base.merged(base.network, folder, fingerprint=base.fingerprint, where=name)
    return Base(name, None, network, read_tokenizer(folder, where=name), base.family, fingerprint)


def fingerprint_of(folder: Path, *, where: str) -> str:
    """Return the fingerprint of the weights in a folder, without loading them.

    Args:
        folder: a folder with complete weights.
        where: its name, for messages.

    Raises:
        ModelError: its files cannot be read, or belong to a multimodal model.
    """
    if text_config(weights.read_json(folder / "config.json", where=where)) is not None:
        raise ModelError(f"{where}: multimodal, and only its text part was tuned; give a merged export instead")
    files = weights.weight_files(folder, where=where)
    with weights.reading(where), quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return weights.fingerprint(config.to_dict(), weights.glimpses_of_files(files))


def read_tokenizer(folder: Path, *, where: str) -> Any:
    """Load the tokenizer in a folder.

    Args:
        folder: a model folder.
        where: the model's name, for messages.

    Raises:
        ModelError: if transformers cannot read it.
    """
    with weights.reading(where), quiet():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _from_folder(name: str, folder: Path, options: LoadOptions) -> Base:
    """Load the base in a folder, which is checked before transformers reads it."""
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name}: {weights.ADAPTER}")
    config = weights.read_json(folder / "config.json", where=name)
    family = family_of(config, where=name)
    refuse_foreign_code(config, where=name)
    if text_config(config) is not None:
        return _from_multimodal(name, folder, replace(options, device="cpu") if options.sharding else options)
    files = weights.weight_files(folder, where=name)
    if (folder / "adapter_config.json").is_file():  # transformers would put it into the network, and save it alone
        fix = "move adapter_config.json to another folder, or merge the adapter first"
        raise ModelError(f"{name}: a whole model and an adapter in one folder; {fix}")
    model_class: Any = AutoModelForCausalLM if family == "decoder" else AutoModel
    tokenizer = read_tokenizer(folder, where=name)
    with weights.reading(name):
        arguments = in_memory(options, family)
        if options.sharding is not None:
            shape = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            with torch.device("meta"):
                arguments |= reading_shards(model_class.from_config(shape), options.sharding)
        network, info = model_class.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_complete refuses them, with a message that names the weight
            **arguments,
        )
        if options.sharding is None:
            _place(network, options, where=name)
        else:
            prepare_sharded(network)
    weights.check_complete(info, family=family, where=name)
    _hide_padding(network)
    fingerprint = weights.fingerprint(network.config.to_dict(), weights.glimpses_of_files(files))
    return Base(name, folder, network, tokenizer, family, fingerprint)


@torch.no_grad()
def _hide_padding(network: Any) -> None:
    """Set the embedding of padding to 0 in MobileBERT, which gives each token those of its neighbours.

    Its first and last tokens have zeros for neighbours without padding, and so they have the same states with it.
    """
    if getattr(network.config, "trigram_input", False) and network.config.pad_token_id is not None:
        network.get_input_embeddings().weight[network.config.pad_token_id] = 0.0


def _from_multimodal(name: str, folder: Path, options: LoadOptions) -> Base:
    """Load the text part of the checkpoint in a folder; its fingerprint does not depend on the other towers."""
    tokenizer = read_tokenizer(folder, where=name)
    with weights.reading(name):
        network, info = load_text_part(folder, where=name, arguments=in_memory(options, "decoder"))
        _place(network, options, where=name)
    weights.check_complete(info, family="decoder", where=name)
    part = part_of(network)
    assert part is not None
    glimpses = weights.glimpses_of_files(part.files, only=part.names)
    fingerprint = weights.fingerprint(network.config.to_dict(), glimpses)
    return Base(name, folder, network, tokenizer, "decoder", fingerprint)


def _place(network: Any, options: LoadOptions, *, where: str) -> None:
    """Move a network to its device; a 4-bit one is there already, and is prepared for training."""
    if hasattr(network, "ct_decompress_hook"):  # of compressed-tensors: decompressed now, not in the first forward pass
        from compressed_tensors.compressors import ModelCompressor

        with redirect_stderr(StringIO()):  # its progress bars
            ModelCompressor.from_pretrained_model(network).decompress_model(network)
    if not options.quantize:
        network.to(options.device)
        return
    four_bit.normalize_quantized(network)
    if reason := four_bit.left_whole(network):
        raise ModelError(f"{where}: {reason}")


def _from_gguf(name: str, options: LoadOptions) -> Base:
    """Load the base in a GGUF file, dequantized."""
    file = Path(name).expanduser()
    if not file.is_file():
        raise ModelError(f"{name}: no such file; check the path")
    with weights.reading(name):
        network, tokenizer = read_gguf(file, where=name)
    family = family_of(network.config.to_dict(), where=name)
    fingerprint = weights.fingerprint(network.config.to_dict(), weights.glimpses_of_network(network))
    network.to(device=options.device, dtype=DTYPES[options.dtype])
    return Base(name, None, network, tokenizer, family, fingerprint)


def in_memory(options: LoadOptions, family: str) -> dict[str, Any]:
    """Return the arguments of transformers' `from_pretrained` for dtype, device and quantization.

    Args:
        options: dtype, device and quantization.
        family: an encoder's pooler is not quantized: it is unused, and one that a checkpoint lacks could not be.
    """
    dtype = DTYPES[options.dtype]
    # Straight to a GPU, without a copy of all weights in the memory of the machine.
    placed = {} if options.device == "cpu" and not options.quantize else {"device_map": {"": options.device}}
    if not options.quantize:
        return {"dtype": dtype, **placed}
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["pooler"] if family == "encoder" else None,
    )
    return {"dtype": dtype, "quantization_config": four_bits, **placed}


def refuse_foreign_code(config: Mapping[str, Any], *, where: str) -> None:
    """Raise ModelError if a configuration asks for kernels from somewhere else.

    Some versions of transformers download and run what these keys name, even with trust_remote_code=False
    (CVE-2026-4372).
    """
    for key, value in config.items():
        if isinstance(value, dict):
            refuse_foreign_code(value, where=where)
        elif "implementation" in key and isinstance(value, str) and ("/" in value or ":" in value):
            raise ModelError(f"{where}: config.json asks for code from elsewhere ({key}); do not use this model")
