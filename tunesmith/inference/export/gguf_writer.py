"""Writer of GGUF, the format of llama.cpp and Ollama: a decoder's weights, tokenizer and chat template in one file.

Format: github.com/ggml-org/ggml, docs/gguf.md.

Letters: H heads, W head width, D hidden width, R rank, I and O inner and outer width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from tunesmith.data.tokenization.tokenizer import leading_bos
from tunesmith.errors import ModelError
from tunesmith.models.families import slides

Quantization = gguf.GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Architecture:
    """llama.cpp's name and conventions for a model family."""

    arch: gguf.MODEL_ARCH
    # Rotary positions pair rows 2i and 2i + 1 of a head, where transformers pairs rows i and i + W / 2.
    neighbours: bool = False


# By transformers' model_type. Other families are refused: a file that loads and answers differently is worse than none.
ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, neighbours=True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3),
}
# Types of matrices and of the embedding, and the file type; a matrix whose rows blocks do not divide is stored as f16.
FORMATS: dict[str, tuple[Quantization, Quantization, gguf.LlamaFileType]] = {
    "f16": (Quantization.F16, Quantization.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Quantization.Q8_0, Quantization.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Quantization.Q4_0, Quantization.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> pre_tokenizers.PreTokenizer:
    """Split by the pattern of Llama 3 and Qwen 2, which differ in the number of digits per word."""
    words = pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# llama.cpp's name of a pre-tokenizer -> the equivalent of the tokenizers library.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
RULES: dict[str, Any] = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
    "gpt-2": _BYTES,
    "qwen2": _split(""),
    "llama-bpe": _split("{1,3}"),
}
# A text that each of these rules splits differently.
TELLING = "I'll pay 12345 (in 3 DAYS'),  \n\nOK?? \u00e9t\u00e9 Z\u00c4HLT\tx_y 7.5%\n"


def write_gguf(network: Any, tokenizer: PreTrainedTokenizerBase, file: Path, *, kind: str, name: str) -> None:
    """Write a decoder as a GGUF file.

    Args:
        network: the transformers model.
        tokenizer: its tokenizer.
        file: the file to write.
        kind: a key of FORMATS.
        name: the model's name, stored in the file and used in messages.

    Raises:
        ModelError: if llama.cpp would not compute the same.
    """
    config = network.config
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        raise ModelError(
            f"{name}: GGUF is written for {', '.join(ARCHITECTURES)}, not for {config.model_type}; "
            "nearest that works: --format merged, and llama.cpp's own converter"
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise ModelError(f"{name}: its positions are scaled ({rope['rope_type']}); nearest that works: --format merged")
    if slides(config):
        raise ModelError(f"{name}: some layers have a sliding attention window; nearest that works: --format merged")
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[known.arch])
    matrices, embeddings, file_type = FORMATS[kind]
    writer.add_name(name)
    width = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    _add_tokenizer(writer, tokenizer, words=config.vocab_size, name=name)
    if tokenizer.chat_template:
        ends = network.generation_config.eos_token_id
        for end in set(ends if isinstance(ends, list) else []) - {tokenizer.eos_token_id}:
            writer.add_eot_token_id(end)  # llama.cpp recognizes only some end-of-turn tokens by their names
    names = gguf.get_tensor_name_map(known.arch, config.num_hidden_layers)
    # Tied weights are listed once: llama.cpp uses the embedding as the output layer if the file has no other.
    for parameter, value in network.named_parameters():
        title = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if title is None:
            raise ModelError(f"{parameter}: GGUF has no name for this weight; nearest that works: --format merged")
        values = _reorder(value.detach().float().cpu().numpy(), _reordered_heads(parameter, config, known))
        stored = _stored_type(values, embeddings if title == "token_embd.weight" else matrices)
        writer.add_tensor(title, quantize(values, stored), raw_dtype=stored)
    _finish(writer)


def _stored_type(values: NDArray[np.float32], requested: Quantization) -> Quantization:
    """Return how a tensor is stored: vectors in float32, matrices as requested if the blocks divide their rows."""
    if values.ndim < 2:
        return Quantization.F32
    block, _ = gguf.GGML_QUANT_SIZES[requested]
    return requested if values.shape[-1] % block == 0 else Quantization.F16


def _finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, *, words: int, name: str) -> None:
    """Add vocabulary, merges, special tokens and the chat template, all unchanged."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    pieces = None if pre_tokenizer is None else pre_tokenizer.pre_tokenize_str(TELLING)
    pre = next((name for name, rule in RULES.items() if rule.pre_tokenize_str(TELLING) == pieces), None)
    if model["type"] != "BPE" or pre is None:
        raise ModelError(
            f"{name}: llama.cpp has no pre-tokenizer that splits text as this tokenizer does; "
            "nearest that works: --format merged"
        )
    added = tokenizer.added_tokens_decoder
    vocabulary = {number: piece for piece, number in tokenizer.get_vocab().items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([vocabulary.get(number, f"[PAD{number}]") for number in range(words)])
    writer.add_token_types([_token_type(number, vocabulary, added) for number in range(words)])
    writer.add_token_merges(merges)
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
    ):
        if number is not None:
            add(number)
    # With a chat template, the template itself writes the beginning-of-text token.
    writer.add_add_bos_token(not tokenizer.chat_template and leading_bos(tokenizer) is not None)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _token_type(number: int, vocabulary: dict[int, str], added: dict[int, Any]) -> int:
    """Return GGUF's type of a token id."""
    if number not in vocabulary:
        return int(gguf.TokenType.UNUSED)
    if number not in added:
        return int(gguf.TokenType.NORMAL)
    return int(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)


def _reordered_heads(name: str, config: Any, known: Architecture) -> int:
    """Return the number of heads whose rows in this weight have to be reordered for llama.cpp; 0 for none."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), 0) if known.neighbours else 0


def _reorder(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Interleave the two halves of each head's rows in a weight [H * W, D]; unchanged for 0 heads."""
    if not heads:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def write_adapter_gguf(wrapped: Any, file: Path) -> bool:
    """Write the plain LoRA adapter of a PEFT model as a GGUF adapter file.

    Returns False for adapters that GGUF cannot represent, such as DoRA. Raises ModelError if an adapted layer has no
    name in GGUF.
    """
    network = wrapped.get_base_model()
    config = wrapped.peft_config["default"]
    known = ARCHITECTURES.get(network.config.model_type)
    embedded = any(".lora_embedding_" in name for name, _ in network.named_parameters())
    if known is None or config.peft_type.value != "LORA" or config.use_dora or embedded:
        return False
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[known.arch])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp multiplies by alpha / rank; rsLoRA by alpha / sqrt(rank).
    alpha = config.lora_alpha * (config.r**0.5 if config.use_rslora else 1.0)
    writer.add_float32("adapter.lora.alpha", float(alpha))
    names = gguf.get_tensor_name_map(known.arch, network.config.num_hidden_layers)
    for name, value in network.named_parameters():
        layer, adapted, factor = name.partition(".lora_")
        if not adapted:
            continue
        title = names.get_name(layer)
        if title is None:
            raise ModelError(f"{layer}: GGUF has no name for this update; nearest that works: --format merged")
        values = value.detach().float().cpu().numpy()  # A [R, I] or B [O, R]
        heads = _reordered_heads(layer, network.config, known) if factor.startswith("B") else 0
        writer.add_tensor(f"{title}.weight.lora_{factor[0].lower()}", _reorder(values, heads))
    _finish(writer)
    return True
