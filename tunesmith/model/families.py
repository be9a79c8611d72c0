"""Which kind of network a configuration describes: a decoder, an encoder, or one that is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, DynamicCache
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tunesmith.errors import ModelError

# Model types that read a whole text at once and answer one state per token, given only ids and a mask.
ENCODERS = frozenset(
    {
        "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
        "eurobert", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta",
        "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
    }
)  # fmt: skip
# What transformers calls the classes that write text from text alone.
WRITERS = ("ForCausalLM", "LMHeadModel")


# Encoders whose first positions belong to the padding.
OFFSET = frozenset({"camembert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"})

# Decoders that count places in the cache, padding among them, without a window of tokens.
COUNT_PLACES = frozenset({"gpt_neo", "mpt"})


def slides(config: Any) -> bool:
    """Whether some layers of a network with this configuration see only so many tokens back."""
    return any(DynamicCache(config=config).is_sliding)


def counts_places(config: Any) -> bool:
    """Whether padding within a row would shift what some layers see."""
    return config.model_type in COUNT_PLACES or slides(config)


def positions_of(config: Mapping[str, Any]) -> int:
    """How many tokens a row may have; 0 where the network itself sets no bound."""
    most = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    taken = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in OFFSET else 0
    return max(0, most - taken)


def room_before(answer: int, *, positions: int, limit: int) -> int:
    """Tokens that a prompt may have: the limit, less where an answer of so many would run out of positions, of which a
    prompt may have half."""
    return min(limit, max(positions - answer, positions // 2)) if positions else limit


def family_of(config: Mapping[str, Any], *, where: str) -> str:
    """`decoder` or `encoder`; raises ModelError with the reason for every other kind of network."""
    kind = str(config.get("model_type") or "")
    if config.get("is_encoder_decoder") or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{where}: {kind} is an encoder-decoder, whose two halves no objective here trains; "
            "choose a decoder (Llama, Qwen, Gemma, GPT) or an encoder (BERT)"
        )
    writer = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, ""))
    if kind in ENCODERS:
        return "decoder" if config.get("is_decoder") and writer.endswith(WRITERS) else "encoder"
    if writer.endswith(WRITERS):
        return "decoder"
    raise ModelError(f"{where}: {_reason(kind, writer, config)}")


def _reason(kind: str, writer: str, config: Mapping[str, Any]) -> str:
    """Why a network is neither of the two, and what to choose instead."""
    if kind in CONFIG_MAPPING:
        if writer:
            return f"{kind} reads images or sound besides text; choose its text-only version"
        return f"{kind} is neither a text decoder nor a text encoder; choose one of the Llama or BERT kind"
    if config.get("auto_map"):
        return (
            f"{kind or 'this model'} needs Python code from its own repository (auto_map), "
            "which is never run; choose a model that transformers knows by itself"
        )
    if not kind:
        return "config.json has no model_type; is this the folder of a model?"
    known = f"transformers {transformers_version} does not know the model type {kind!r}"
    return f"{known}; upgrade it, or choose another model"
