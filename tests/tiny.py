"""Tiny random models as folders, one per family, with byte-level tokenizers that give back any text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

WORDS = 320
HIDDEN = 32
LAYERS = 2

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "This battery is bad and the phone is good. I like it, they do not.",
    "Is this review positive or negative? Answer with one word.",
    "You are a helpful assistant. Summarise the following text in one sentence.",
)

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Only the last answer, after the last question, keeps its thoughts; it gets empty ones if it has none.
THINKING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}"
    "{% if loop.last and loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
    "{{ content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)

# Gemma has no system role: Gemma 2 says so, Gemma 3 writes the system text above the first question.
GEMMA_TURNS = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% set first = '' %}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + GEMMA_TURNS
)
GEMMA3 = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}" + GEMMA_TURNS
)

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tiny_decoder(folder: Path, kind: str = "llama") -> Path:
    """The folder of a random decoder: llama, qwen3, gemma (Gemma 2), gemma3, gpt2, or one of `MIXTURES`."""
    return _save(folder, *(DECODERS[kind]() if kind in DECODERS else _mixture(kind)))


def tiny_encoder(folder: Path, kind: str = "bert") -> Path:
    """The folder of a random encoder: bert, distilbert or modernbert."""
    return _save(folder, ENCODERS[kind](), _bert_tokenizer(), "AutoModel")


def odd_ends(folder: Path, odd: str) -> Path:
    """The folder of a random Llama whose own end of a text is none of a turn; `odd` is one of the ways below."""
    special, chat, begin = CHATML_TOKENS, CHATML, None
    if odd == "ends by a name of its own":
        special = ("<|endoftext|>", "<|turn|>", "<|done|>")
        chat = chat.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|done|>")
    if odd == "begins unsaid":  # the tokenizer puts it before every text, the template does not
        special, begin = (*special, "<|bos|>"), "<|bos|>"
    made = tokenizer(special, chat=chat, eos_token="<|endoftext|>", pad_token="<|endoftext|>", bos_token=begin)
    if begin:
        frame(made.backend_tokenizer, f"{begin} $A", f"{begin} $A {begin}:1 $B:1")
    ids = {"eos_token_id": 0, "bos_token_id": 3 if begin else None, "pad_token_id": 0}
    return _save(folder, transformers.LlamaConfig(**_sizes(tie_word_embeddings=True, **ids)), made)


def tokenizer(special: tuple[str, ...], *, chat: str = "", **roles: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of `WORDS` pieces with these special tokens first."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **roles)
    if chat:
        made.chat_template = chat
    return made


def frame(inner: Tokenizer, single: str, pair: str) -> None:
    """Special tokens put around a text, as `document` calls see them."""
    marks = {part.split(":")[0] for part in single.split() + pair.split() if not part.startswith("$")}
    special = [(mark, inner.token_to_id(mark)) for mark in sorted(marks)]
    inner.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _bert_tokenizer() -> PreTrainedTokenizerFast:
    made = tokenizer(BERT_TOKENS, mask_token="[MASK]", **BERT_ROLES)
    frame(made.backend_tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return made


def _gemma_tokenizer(chat: str) -> PreTrainedTokenizerFast:
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    made = tokenizer(GEMMA_TOKENS, chat=chat, **roles)
    frame(made.backend_tokenizer, "<bos> $A", "<bos> $A <bos>:1 $B:1")
    return made


def _sizes(**more: Any) -> dict[str, Any]:
    """What all Llama-like configurations share; weights are large enough for differences to show."""
    return {
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        **more,
    }


def _llama() -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    made = tokenizer(CHATML_TOKENS, chat=CHATML, pad_token="<|im_end|>", **roles)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return transformers.LlamaConfig(**_sizes(tie_word_embeddings=True, **ids)), made


def _qwen3() -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    made = tokenizer(CHATML_TOKENS, chat=THINKING, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    ids = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    sizes = _sizes(tie_word_embeddings=True, **ids) | {"vocab_size": len(made)}
    return transformers.Qwen3Config(**sizes), made


def _gemma2() -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    config = transformers.Gemma2Config(
        **_sizes(query_pre_attn_scalar=8, sliding_window=16),
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return config, _gemma_tokenizer(GEMMA2)


def _gemma3() -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    config = transformers.Gemma3TextConfig(
        **_sizes(query_pre_attn_scalar=8, sliding_window=16),
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=30.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return config, _gemma_tokenizer(GEMMA3)


def _gpt2() -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    end = "<|endoftext|>"
    made = tokenizer((end,), bos_token=end, eos_token=end, unk_token=end)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=512,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return config, made


def _bert() -> PreTrainedConfig:
    sizes = _sizes(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    del sizes["num_key_value_heads"], sizes["head_dim"]
    return transformers.BertConfig(**sizes)


def _distilbert() -> PreTrainedConfig:
    return transformers.DistilBertConfig(
        vocab_size=WORDS,
        dim=HIDDEN,
        hidden_dim=64,
        n_layers=LAYERS,
        n_heads=4,
        max_position_embeddings=512,
        initializer_range=0.1,
        dropout=0.0,
        attention_dropout=0.0,
    )


def _modernbert() -> PreTrainedConfig:
    sizes = _sizes(pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
    del sizes["num_key_value_heads"], sizes["head_dim"]
    kinds = ["full_attention", "sliding_attention"]
    return transformers.ModernBertConfig(**sizes, local_attention=16, layer_types=kinds)


def _mixture(kind: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    """A mixture of experts with the tokenizer of the tiny Llama."""
    name, more = MIXTURES[kind]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return getattr(transformers, name)(**_sizes(**ids) | more), _llama()[1]


def _save(
    folder: Path, config: PreTrainedConfig, words: PreTrainedTokenizerFast, auto: str = "AutoModelForCausalLM"
) -> Path:
    """The folder, with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(transformers, auto).from_config(config)
    assert len(words) <= config.vocab_size
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


DECODERS: dict[str, Callable[[], tuple[PreTrainedConfig, PreTrainedTokenizerFast]]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Configurations of mixtures of experts, and how they differ from a Llama's.
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", LOCAL_EXPERTS),
    # The shared expert's inner width is the number of experts, so that its weights look like a router's.
    "qwen2_moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
    "olmoe": ("OlmoeConfig", EXPERTS),
    "granitemoe": ("GraniteMoeConfig", LOCAL_EXPERTS),
    "gpt_oss": ("GptOssConfig", {**LOCAL_EXPERTS, "layer_types": ["sliding_attention", "full_attention"]}),
    # One expert per token, which is computed over all tokens for all experts, and a router that is a linear layer.
    "llama4": (
        "Llama4TextConfig",
        {
            "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 48, "use_qk_norm": False, "attention_chunk_size": 64,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1,
        },
    ),
}  # fmt: skip
ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": _bert,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
}
