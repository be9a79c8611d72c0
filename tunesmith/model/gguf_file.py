"""A GGUF file as a plain network and tokenizer, with what the library's conversion loses put back."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.errors import ModelError

# Names in `tokenizer.ggml.pre` of vocabularies that were learned with every digit a piece of its own.
# transformers 5.24 drops that rule: "\n\n2" then becomes other ids than the model was trained on.
DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def read_gguf(file: Path, *, where: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """The file's decoder in float32 and its tokenizer, without a trace of GGUF, so that they can be saved."""
    tokenizer, _ = read_words(file, where=where)
    with contextlib.redirect_stderr(io.StringIO()):
        network = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, dtype=torch.float32
        )
    _forget_quantisation(network)
    tokenizer.model_max_length = network.config.max_position_embeddings
    return network, tokenizer


def read_words(file: Path, *, where: str) -> tuple[PreTrainedTokenizerBase, int]:
    """The file's tokenizer with its chat template, and how many positions it was trained with, 0 where it says none.

    Raises ModelError on a broken file.
    """
    reader = _reader(file, where=where)
    pre = _said(reader, "tokenizer.ggml.pre")
    # The conversion draws its progress bar past every switch, straight on stderr.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if pre in DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer, int(_said(reader, f"{_said(reader, 'general.architecture')}.context_length") or 0)


def _reader(file: Path, *, where: str) -> GGUFReader:
    """What the file says of itself; raises ModelError on a broken file."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{where}: not a GGUF file (wrong first bytes); download it again")
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise ModelError(f"{where}: the GGUF file is cut short or damaged ({error}); download it again") from error


def _said(reader: GGUFReader, key: str) -> str:
    """A value in words, empty where the file has none."""
    field = reader.get_field(key)
    return str(field.contents()) if field is not None else ""


def _forget_quantisation(network: Any) -> None:
    """The network as if it had never been quantised: transformers refuses to save it otherwise."""
    network.hf_quantizer.remove_quantization_config(network)
    config = network.config
    config.__dict__.pop("_model_name_or_path", None)  # the file's title, no path
    # GGUF keeps numbers in 32 bits: 9.999999747e-06 is the 1e-05 of the original.
    for name, value in config.to_dict().items():
        if name.endswith("_eps") and isinstance(value, float):
            setattr(config, name, float(f"{value:.6g}"))
