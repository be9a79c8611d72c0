"""A tiny random checkpoint of every family that is certified, written as its owner publishes it.

    folder = FAMILIES["qwen3_next"].write(tmp_path)

Checkpoints that also read images or sound are written whole, with their other towers. Weights are large enough that an
error in a mask, a cache or a scale changes the states.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from tests.tiny import (
    BERT_ROLES,
    BERT_TOKENS,
    CHATML,
    CHATML_TOKENS,
    GEMMA2,
    GEMMA3,
    GEMMA_TOKENS,
    HIDDEN,
    LAYERS,
    THINKING,
    WORDS,
    frame,
    tokenizer,
)
from tunesmith.models.loading.suppress_output import quiet

# Ids above the tokenizer's, for the tokens of images and sound.
IMAGE, VIDEO, VISION_START, VISION_END, AUDIO = range(WORDS + 4, WORDS + 9)
VOCAB = WORDS + 16
# Standard deviation of the matrices and of what is added to vectors.
MATRICES, VECTORS = 0.15, 0.05

Made = tuple[PreTrainedConfig, PreTrainedTokenizerFast]


@dataclass(frozen=True, slots=True)
class TinyFamily:
    """A family and how its tiny checkpoint is made."""

    title: str  # as the family is known
    make: Callable[[], Made]
    auto: str = "AutoModelForCausalLM"  # the class that writes the checkpoint
    after: Callable[[Path], None] = lambda folder: None  # what else makes the folder that of a published checkpoint

    @property
    def encoder(self) -> bool:
        """Whether it is a text encoder."""
        return self.auto == "AutoModel"

    def write(self, folder: Path) -> Path:
        """Write the checkpoint, with the same random weights every time, and return its folder."""
        config, words = self.make()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = getattr(transformers, self.auto).from_config(config)
            for value in network.parameters():
                if value.dim() > 1:
                    value.normal_(0, MATRICES)
                else:
                    value.add_(torch.randn_like(value) * VECTORS)
        with quiet():
            network.save_pretrained(folder)
        words.save_pretrained(folder)
        self.after(folder)
        return folder


def _chatml(**ids: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of most decoders: ChatML, no token before the text."""
    return tokenizer(CHATML_TOKENS, chat=CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", **ids)


def _thinking() -> PreTrainedTokenizerFast:
    made = tokenizer(CHATML_TOKENS, chat=THINKING, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    return made


def _gemma_words(chat: str) -> PreTrainedTokenizerFast:
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    made = tokenizer(GEMMA_TOKENS, chat=chat, **roles)
    frame(made.backend_tokenizer, "<bos> $A", "<bos> $A <bos>:1 $B:1")
    return made


def _plain_words() -> PreTrainedTokenizerFast:
    """The tokenizer of a decoder without a chat template."""
    end = "<|endoftext|>"
    return tokenizer((end,), bos_token=end, eos_token=end, unk_token=end)


def _bert_words() -> PreTrainedTokenizerFast:
    made = tokenizer(BERT_TOKENS, mask_token="[MASK]", **BERT_ROLES)
    frame(made.backend_tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return made


CHAT_IDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
PLAIN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GEMMA_IDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

SIZES = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
HEADS = {**SIZES, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# The gated delta rule of Qwen3-Next and Qwen3.5 beside one layer of attention.
DELTA = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
}  # fmt: skip
STATE_SPACE = {
    "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN_VISION = {
    "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "patch_size": 4, "out_hidden_size": HIDDEN,
}  # fmt: skip
QWEN_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "head_dim": 8,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "vision_use_head": False,
}  # fmt: skip
GEMMA_TEXT = {
    "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "sliding_window": 16,
    "final_logit_softcapping": 30.0,
}  # fmt: skip


def _decoder(kind: str, *groups: dict[str, Any], **config: Any) -> Callable[[], Made]:
    """The maker of a ChatML decoder with this class of configuration."""

    def make() -> Made:
        sizes: dict[str, Any] = {**CHAT_IDS}
        for group in (*groups, config):
            sizes |= group
        return getattr(transformers, kind)(**sizes), _chatml()

    return make


def _base(kind: str, **config: Any) -> Callable[[], Made]:
    """The maker of a decoder without a chat template."""
    return lambda: (getattr(transformers, kind)(**PLAIN_IDS, **config), _plain_words())


def _encoder(kind: str, **config: Any) -> Callable[[], Made]:
    """The maker of a text encoder."""
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return lambda: (getattr(transformers, kind)(**{**sizes, **dropout, "pad_token_id": 0, **config}), _bert_words())


def _qwen3() -> Made:
    return transformers.Qwen3Config(**HEADS, **CHAT_IDS, tie_word_embeddings=True), _thinking()


def _qwen3_moe() -> Made:
    return transformers.Qwen3MoeConfig(**HEADS, **CHAT_IDS, **EXPERTS, norm_topk_prob=True), _thinking()


def _qwen3_5() -> Made:
    rope = {**MROPE, "partial_rotary_factor": 0.5, "mrope_interleaved": True}
    text = {**SIZES, **CHAT_IDS, **DELTA, "rope_parameters": rope}
    vision = {**QWEN_VISION, "num_position_embeddings": 16}
    return transformers.Qwen3_5Config(text_config=text, vision_config=vision, **QWEN_TOKENS), _thinking()


def _qwen3_vl() -> Made:
    text = {**HEADS, **CHAT_IDS, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    vision = {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS), _chatml()


def _qwen2_5_vl() -> Made:
    text = {**SIZES, **CHAT_IDS, "rope_parameters": MROPE}
    vision = {**QWEN_VISION, "fullatt_block_indexes": [0], "window_size": 8}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS), _chatml()


LLAMA4_TEXT = {
    **HEADS, **CHAT_IDS, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
    "moe_layers": [1], "no_rope_layers": [1, 0], "attention_chunk_size": 16,
}  # fmt: skip


def _llama4() -> Made:
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "vision_output_dim": 16, "image_size": 16, "patch_size": 4, "projector_input_dim": 16,
        "projector_output_dim": 16,
    }  # fmt: skip
    tokens = {"image_token_index": IMAGE, "boi_token_index": VISION_START, "eoi_token_index": VISION_END}
    return transformers.Llama4Config(text_config=LLAMA4_TEXT, vision_config=vision, **tokens), _chatml()


def _mistral3(text: dict[str, Any]) -> Callable[[], Made]:
    config = {**HEADS, **CHAT_IDS, **text}
    return lambda: (
        transformers.Mistral3Config(
            text_config=config, vision_config=PIXTRAL, image_token_index=IMAGE, tie_word_embeddings=False
        ),
        _chatml(),
    )


def _gemma2() -> Made:
    config = transformers.Gemma2Config(
        **HEADS, **GEMMA_IDS, query_pre_attn_scalar=8, sliding_window=16, final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    )  # fmt: skip
    return config, _gemma_words(GEMMA2)


GEMMA3_TEXT = {**HEADS, **GEMMA_IDS, **WINDOWS, "query_pre_attn_scalar": 8}


def _gemma3_text() -> Made:
    return transformers.Gemma3TextConfig(**GEMMA3_TEXT), _gemma_words(GEMMA3)


def _gemma3() -> Made:
    tokens = {"image_token_index": IMAGE, "boi_token_index": VISION_START, "eoi_token_index": VISION_END}
    config = transformers.Gemma3Config(text_config=GEMMA3_TEXT, vision_config=SIGLIP, mm_tokens_per_image=4, **tokens)
    return config, _gemma_words(GEMMA3)


def _gemma3n() -> Made:
    """Only the text part: the image tower is a network of timm, which is not installed (see `_wrap_gemma3n`)."""
    own = {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0]}
    return transformers.Gemma3nTextConfig(**HEADS | GEMMA_IDS | GEMMA_TEXT | own), _gemma_words(GEMMA3)


def _wrap_gemma3n(folder: Path) -> None:
    """Rename the text part's weights as in a published Gemma 3n, beside a tower of images and one of sound."""
    weights = {
        name.replace("model.", "model.language_model.", 1): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    towers = {"model.vision_tower.timm_model.conv_stem.conv.weight": (8, 3, 3, 3)}
    towers["model.audio_tower.conformer.0.attention.attn.q_proj.weight"] = (16, 16)
    for name, shape in towers.items():
        weights[name] = torch.arange(float(torch.Size(shape).numel())).reshape(shape) / 100
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    wrapper = {
        "architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n", "text_config": text,
        "vision_config": {"model_type": "gemma3n_vision", "hidden_size": 16, "architecture": "mobilenetv5_300m_enc"},
        "audio_config": {"model_type": "gemma3n_audio", "hidden_size": 16, "conf_num_hidden_layers": 1},
        "image_token_id": IMAGE, "audio_token_id": AUDIO, "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(wrapper, indent=2))


def _gemma4() -> Made:
    text = HEADS | GEMMA_IDS | GEMMA_TEXT | {"global_head_dim": 16}
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "position_embedding_size": 16,
    }  # fmt: skip
    tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}
    tokens |= {"boi_token_id": VISION_START, "eoi_token_id": VISION_END}
    return transformers.Gemma4Config(text_config=text, vision_config=vision, **tokens), _gemma_words(GEMMA3)


# Positions that are stretched from 32 to 512.
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MINISTRAL = {
    "model_type": "ministral3",
    "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}
GRANITE = {
    "embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip
NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"], "ssm_state_size": 8,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 16, "n_routed_experts": 4,
    "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
}  # fmt: skip
BIG_VISION = "AutoModelForImageTextToText"

FAMILIES: dict[str, TinyFamily] = {
    "llama": TinyFamily("Llama 2, 3", _decoder("LlamaConfig", HEADS)),
    "llama4": TinyFamily("Llama 4", _llama4, BIG_VISION),
    "llama4_text": TinyFamily("Llama 4, text part alone", _decoder("Llama4TextConfig", LLAMA4_TEXT)),
    "mistral": TinyFamily("Mistral", _decoder("MistralConfig", HEADS, sliding_window=None)),
    "mistral_window": TinyFamily("Mistral with a window", _decoder("MistralConfig", HEADS, sliding_window=48)),
    "mistral3": TinyFamily("Mistral Small 3", _mistral3({"model_type": "mistral", "sliding_window": None}), BIG_VISION),
    "ministral3": TinyFamily("Ministral 3", _mistral3(MINISTRAL), BIG_VISION),
    "mixtral": TinyFamily("Mixtral", _decoder("MixtralConfig", HEADS, LOCAL_EXPERTS)),
    "qwen2": TinyFamily("Qwen2, Qwen2.5", _decoder("Qwen2Config", SIZES)),
    "qwen2_moe": TinyFamily(
        "Qwen2 mixture", _decoder("Qwen2MoeConfig", SIZES, EXPERTS, shared_expert_intermediate_size=16)
    ),
    "qwen2_5_vl": TinyFamily("Qwen2.5-VL", _qwen2_5_vl, BIG_VISION),
    "qwen3": TinyFamily("Qwen3", _qwen3),
    "qwen3_moe": TinyFamily("Qwen3 mixture", _qwen3_moe),
    "qwen3_next": TinyFamily(
        "Qwen3-Next", _decoder("Qwen3NextConfig", SIZES, EXPERTS, DELTA, shared_expert_intermediate_size=16)
    ),
    "qwen3_5": TinyFamily("Qwen3.5", _qwen3_5, BIG_VISION),
    "qwen3_vl": TinyFamily("Qwen3-VL", _qwen3_vl, BIG_VISION),
    "gemma2": TinyFamily("Gemma 2", _gemma2),
    "gemma3_text": TinyFamily("Gemma 3, 270M and 1B", _gemma3_text),
    "gemma3": TinyFamily("Gemma 3 from 4B", _gemma3, BIG_VISION),
    "gemma3n": TinyFamily("Gemma 3n", _gemma3n, after=_wrap_gemma3n),
    "gemma4": TinyFamily("Gemma 4", _gemma4, BIG_VISION),
    "falcon_h1": TinyFamily(
        "Falcon-H1", _decoder("FalconH1Config", SIZES, STATE_SPACE, mamba_d_ssm=32, mamba_d_head=8, key_multiplier=0.5)
    ),
    "nemotron_h": TinyFamily("Nemotron-H, Nemotron 3", _decoder("NemotronHConfig", HEADS, NEMOTRON_H)),
    "granite": TinyFamily("Granite", _decoder("GraniteConfig", SIZES, GRANITE)),
    "granitemoehybrid": TinyFamily(
        "Granite 4 hybrid",
        _decoder(
            "GraniteMoeHybridConfig", SIZES, GRANITE, STATE_SPACE, LOCAL_EXPERTS, shared_intermediate_size=32,
            layer_types=["linear_attention", "full_attention"],
        ),
    ),
    "lfm2": TinyFamily(
        "LFM2", _decoder("Lfm2Config", SIZES, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    ),
    "smollm3": TinyFamily("SmolLM3", _decoder("SmolLM3Config", SIZES, no_rope_layers=[1, 0])),
    "olmo2": TinyFamily("OLMo 2", _decoder("Olmo2Config", SIZES)),
    "olmo3": TinyFamily("OLMo 3", _decoder("Olmo3Config", SIZES, WINDOWS)),
    "gpt_oss": TinyFamily("gpt-oss", _decoder("GptOssConfig", HEADS, LOCAL_EXPERTS, WINDOWS, rope_parameters=YARN)),
    "phi3": TinyFamily("Phi-3, Phi-4-mini", _decoder("Phi3Config", SIZES)),
    "glm4": TinyFamily("GLM-4", _decoder("Glm4Config", HEADS)),
    "deepseek_v3": TinyFamily("DeepSeek-V3, R1", _decoder("DeepseekV3Config", SIZES, LATENT)),
    "cohere": TinyFamily("Command R", _decoder("CohereConfig", SIZES)),
    "starcoder2": TinyFamily(
        "StarCoder2", _base("Starcoder2Config", **SIZES, residual_dropout=0.0, embedding_dropout=0.0)
    ),
    "gpt2": TinyFamily(
        "GPT-2",
        _base(
            "GPT2Config", vocab_size=VOCAB, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=512, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        ),
    ),
    "gpt_neox": TinyFamily(
        "GPT-NeoX, Pythia",
        _base(
            "GPTNeoXConfig", vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS,
            num_attention_heads=4, max_position_embeddings=512,
        ),
    ),
    "bloom": TinyFamily(
        "BLOOM", _base("BloomConfig", vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=LAYERS, n_head=4)
    ),
    "opt": TinyFamily(
        "OPT",
        _base(
            "OPTConfig", vocab_size=VOCAB, hidden_size=HIDDEN, ffn_dim=48, num_hidden_layers=LAYERS,
            num_attention_heads=4, word_embed_proj_dim=HIDDEN, max_position_embeddings=512, dropout=0.0,
        ),
    ),
    "mamba": TinyFamily(
        "Mamba", _base("MambaConfig", vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=8)
    ),
    "mamba2": TinyFamily(
        "Mamba-2",
        _base(
            "Mamba2Config", vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=8, num_heads=4,
            head_dim=16, n_groups=1, chunk_size=16,
        ),
    ),
    "bert": TinyFamily("BERT", _encoder("BertConfig"), "AutoModel"),
    "roberta": TinyFamily("RoBERTa", _encoder("RobertaConfig"), "AutoModel"),
    "xlm_roberta": TinyFamily("XLM-RoBERTa", _encoder("XLMRobertaConfig"), "AutoModel"),
    "electra": TinyFamily("ELECTRA", _encoder("ElectraConfig", embedding_size=16), "AutoModel"),
    "deberta_v2": TinyFamily(
        "DeBERTa-v2, v3",
        _encoder(
            "DebertaV2Config", relative_attention=True, position_buckets=16, pos_att_type="p2c|c2p",
            norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
        ),
        "AutoModel",
    ),
    "distilbert": TinyFamily(
        "DistilBERT",
        lambda: (
            transformers.DistilBertConfig(
                vocab_size=VOCAB, dim=HIDDEN, hidden_dim=48, n_layers=LAYERS, n_heads=4, max_position_embeddings=512,
                dropout=0.0, attention_dropout=0.0,
            ),
            _bert_words(),
        ),
        "AutoModel",
    ),
    "modernbert": TinyFamily(
        "ModernBERT",
        _encoder(
            "ModernBertConfig", cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=16,
            layer_types=["full_attention", "sliding_attention"],
        ),
        "AutoModel",
    ),
}  # fmt: skip
