"""Reader of GGUF files: a plain network and tokenizer, with what transformers' conversion loses put back."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.errors import ModelError

# Values of `tokenizer.ggml.pre` whose vocabularies were trained with every digit as one token.
# transformers 5.24 drops that rule: "\n\n2" then becomes other ids than the model was trained on.
DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# What the reader raises for a file that is cut short or damaged.
DAMAGED = (ValueError, IndexError, KeyError, OverflowError, MemoryError)


def read_gguf(file: Path, *, where: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a file's decoder in float32 and its tokenizer, both without a trace of GGUF, so that they can be saved."""
    tokenizer, _ = read_words(file, where=where)
    with contextlib.redirect_stderr(io.StringIO()):
        network: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, dtype=torch.float32
        )
    network.hf_quantizer.remove_quantization_config(network)  # otherwise transformers refuses to save the network
    config = network.config
    config.__dict__.pop("_model_name_or_path", None)  # the file's title, which is not a path
    # GGUF stores values in 32 bits: 9.999999747e-06 is the 1e-05 of the original.
    for name, value in config.to_dict().items():
        if name.endswith("_eps") and isinstance(value, float):
            setattr(config, name, float(f"{value:.6g}"))
    tokenizer.model_max_length = config.max_position_embeddings
    return network, tokenizer


def read_words(file: Path, *, where: str) -> tuple[PreTrainedTokenizerBase, int]:
    """Read the tokenizer of a GGUF file.

    Args:
        file: the file.
        where: the model's name, for messages.

    Returns:
        The tokenizer with its chat template, and the context length in tokens, 0 if the file does not state it.

    Raises:
        ModelError: if the file is damaged or not GGUF.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{where}: not a GGUF file (wrong first bytes); download it again")
    try:
        reader = GGUFReader(file)
    except DAMAGED as error:
        raise ModelError(f"{where}: the GGUF file is cut short or damaged ({error}); download it again") from error
    # The conversion prints its progress bar to stderr whatever the settings are.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if _metadata(reader, "tokenizer.ggml.pre") in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer, int(_metadata(reader, f"{_metadata(reader, 'general.architecture')}.context_length") or 0)


def experts_used(file: Path) -> int | None:
    """Return how many experts the mixture in a GGUF file uses for each token, in the layer that uses most.

    None if the file has no mixture of experts, or cannot be read.
    """
    try:
        reader = GGUFReader(file)
    except (OSError, *DAMAGED):
        return None
    kind = _metadata(reader, "general.architecture")
    # One number, or one for each layer.
    fields = (reader.get_field(f"{kind}.expert_{name}") for name in ("count", "used_count"))
    count, used = (int(np.max(field.contents())) if field is not None else 0 for field in fields)
    return used if count else None


def _metadata(reader: GGUFReader, key: str) -> str:
    """Return a metadata value as text, empty if the file lacks it."""
    field = reader.get_field(key)
    return str(field.contents()) if field is not None else ""
