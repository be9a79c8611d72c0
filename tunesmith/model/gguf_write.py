"""A decoder as one GGUF file, the format of llama.cpp and Ollama: weights, tokenizer and chat template.

Layout: github.com/ggml-org/ggml, docs/gguf.md. H query or key heads, W width of a head, D hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from tunesmith.data.tokenizer import leading_bos
from tunesmith.errors import ModelError
from tunesmith.model.families import slides

Quantization = gguf.GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Architecture:
    """llama.cpp's name for a family; `neighbours`: its rotary positions pair number 2i with 2i + 1 of a head, where
    transformers pairs i with i + W/2."""

    arch: gguf.MODEL_ARCH
    neighbours: bool = False


# By transformers' model_type. What is not here is refused: a file that loads and answers otherwise is worse than none.
ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, neighbours=True),
    "qwen2": Architecture(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Architecture(gguf.MODEL_ARCH.QWEN3),
}
# Matrices, embeddings, and what a file of that kind calls itself; a row that a block does not divide stays in f16.
FORMATS: dict[str, tuple[Quantization, Quantization, gguf.LlamaFileType]] = {
    "f16": (Quantization.F16, Quantization.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Quantization.Q8_0, Quantization.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Quantization.Q4_0, Quantization.Q8_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(numbers: str) -> pre_tokenizers.PreTokenizer:
    """Words by the pattern of Llama 3 and Qwen 2, which differ in how many digits stand together."""
    words = pre_tokenizers.Split(Regex(_WORDS % numbers), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# llama.cpp's name for a rule that cuts text before the merges -> what does the same here.
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
RULES: dict[str, Any] = {
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
    "gpt-2": _BYTES,
    "qwen2": _split(""),
    "llama-bpe": _split("{1,3}"),
}
# Cut by each of these rules in another way.
TELLING = "I'll pay 12345 (in 3 DAYS'),  \n\nOK?? \u00e9t\u00e9 Z\u00c4HLT\tx_y 7.5%\n"


def write_gguf(network: Any, tokenizer: PreTrainedTokenizerBase, file: Path, *, kind: str, name: str) -> None:
    """Write a decoder in one of FORMATS. Raises ModelError where llama.cpp would not answer as it does."""
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
        raise ModelError(f"{name}: some layers see only so many tokens back; nearest that works: --format merged")
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[known.arch])
    matrices, embeddings, file_type = FORMATS[kind]
    writer.add_name(name)
    _add_shape(writer, config, file_type=file_type)
    _add_tokenizer(writer, tokenizer, words=config.vocab_size, name=name)
    if tokenizer.chat_template:
        ends = network.generation_config.eos_token_id
        for end in set(ends if isinstance(ends, list) else []) - {tokenizer.eos_token_id}:
            writer.add_eot_token_id(end)  # llama.cpp knows only some ends of a turn by their names
    for title, values in _tensors(network, known):
        stored = _stored(values, embeddings if title == "token_embd.weight" else matrices)
        writer.add_tensor(title, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: Any, *, file_type: gguf.LlamaFileType) -> None:
    """Widths, depths and positions."""
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


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, *, words: int, name: str) -> None:
    """Vocabulary, merges, special tokens and the chat template, as they are."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    rule = _rule(tokenizer.backend_tokenizer.pre_tokenizer)
    if model["type"] != "BPE" or rule is None:
        raise ModelError(
            f"{name}: llama.cpp is not known to cut text as this tokenizer does; nearest that works: --format merged"
        )
    added = tokenizer.added_tokens_decoder
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    kinds = [_kind(number, pieces, added) for number in range(words)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([pieces.get(number, f"[PAD{number}]") for number in range(words)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
    ):
        if number is not None:
            add(number)
    # Of chats the template writes what stands at the beginning.
    writer.add_add_bos_token(not tokenizer.chat_template and leading_bos(tokenizer) is not None)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _kind(number: int, pieces: dict[int, str], added: dict[int, Any]) -> int:
    """What sort of token it is."""
    if number not in pieces:
        return int(gguf.TokenType.UNUSED)
    if number not in added:
        return int(gguf.TokenType.NORMAL)
    return int(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)


def _rule(cutter: Any) -> str | None:
    """llama.cpp's name for what cuts text so; None where there is none."""
    if cutter is None:
        return None
    found = cutter.pre_tokenize_str(TELLING)
    return next((name for name, rule in RULES.items() if rule.pre_tokenize_str(TELLING) == found), None)


def _tensors(network: Any, known: Architecture) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every weight under llama.cpp's name; a head that is the embedding itself is not written twice."""
    config = network.config
    names = gguf.get_tensor_name_map(known.arch, config.num_hidden_layers)
    for name, value in network.named_parameters():
        title = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if title is None:
            raise ModelError(f"{name}: GGUF has no place for this weight; nearest that works: --format merged")
        values = value.detach().float().cpu().numpy()
        turned = _turned(name, config, known)
        yield title, _neighbours(values, turned) if turned else values


def _turned(name: str, config: Any, known: Architecture) -> int:
    """How many heads a weight's rows belong to that have to be put in llama.cpp's order; 0 for none."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return next((count for part, count in heads.items() if part in name), 0) if known.neighbours else 0


def _neighbours(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """[H W, D] with the two halves of each head's rows interleaved."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _stored(values: NDArray[np.float32], wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """How a tensor is written: vectors in full, matrices as wanted where the blocks fit."""
    if values.ndim < 2:
        return Quantization.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if values.shape[-1] % block == 0 else Quantization.F16


def write_adapter_gguf(wrapped: Any, file: Path) -> bool:
    """Write PEFT's plain LoRA as a GGUF adapter; whether it could be, since other updates have no such form."""
    network, config = wrapped.get_base_model(), wrapped.peft_config["default"]
    known = ARCHITECTURES.get(network.config.model_type)
    embedded = any(".lora_embedding_" in name for name, _ in network.named_parameters())
    if known is None or config.peft_type.value != "LORA" or config.use_dora or embedded:
        return False
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[known.arch])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp multiplies by alpha / rank
    alpha = config.lora_alpha * (config.r**0.5 if config.use_rslora else 1.0)
    writer.add_float32("adapter.lora.alpha", float(alpha))
    for title, values in _updates(network, known):
        writer.add_tensor(title, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return True


def _updates(network: Any, known: Architecture) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Both factors of each update under llama.cpp's names, [R, I] and [O, R]."""
    names = gguf.get_tensor_name_map(known.arch, network.config.num_hidden_layers)
    for name, value in network.named_parameters():
        layer, found, factor = name.partition(".lora_")
        if not found:
            continue
        title, values = names.get_name(layer), value.detach().float().cpu().numpy()
        if title is None:
            raise ModelError(f"{layer}: GGUF has no place for this update; nearest that works: --format merged")
        turned = _turned(layer, network.config, known) if factor.startswith("B") else 0
        yield f"{title}.weight.lora_{factor[0].lower()}", _neighbours(values, turned) if turned else values
