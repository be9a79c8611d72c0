"""Model families: whether a configuration describes a decoder, an encoder, or a network that is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, DynamicCache
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tunesmith.errors import ModelError, briefly
from tunesmith.models.loading.locate import ENCODERS, GENERATIVE_CLASSES, encoder_decoder
from tunesmith.models.loading.text_part import text_config

# Encoders that number positions from pad_token_id + 1, so the first rows of their position table are never used.
PADDING_OFFSET = frozenset({"camembert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"})
# Decoders without a sliding window that derive positions from the cache columns, padding included.
COUNTS_COLUMNS = frozenset({"gpt_neo", "mpt"})


def slides(config: Any) -> bool:
    """Return whether some layers of a network with this configuration have a sliding attention window."""
    return any(DynamicCache(config=config).is_sliding)


def counts_places(config: Any) -> bool:
    """Return whether padding within a row would shift what some layers attend to."""
    return config.model_type in COUNTS_COLUMNS or slides(config)


def scales_by_column(config: Any) -> bool:
    """Return whether attention scores depend on the column of a token in the batch, far beyond any short row.

    Llama 4 does so from column 8,192 on, padding included, so rows shorter than that cannot show it.
    """
    return bool(getattr(config, "attn_temperature_tuning", False))


def positions_of(config: Mapping[str, Any]) -> int:
    """Return the context length in tokens of a configuration; 0 if the network itself sets no limit.

    With LongRoPE, as in Phi-3 and Phi-4, it is the length up to which the frequencies stay the same. In a pass with a
    longer row they change for every token, also for those of other rows, while cached keys keep the old ones.
    """
    most = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    unused = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in PADDING_OFFSET else 0
    rope = config.get("rope_parameters") or {}
    by_layer = [each for each in rope.values() if isinstance(each, Mapping)]
    switches = [
        int(each["original_max_position_embeddings"])
        for each in (rope, *by_layer)
        if each.get("rope_type") == "longrope" and each.get("original_max_position_embeddings")
    ]
    return min([*switches, *([most - unused] if most > unused else [])], default=0)


def prompt_limit(answer: int, *, positions: int, limit: int) -> int:
    """Return the largest prompt in tokens that leaves positions for the completion.

    Args:
        answer: limit of the completion, in tokens.
        positions: context length; 0 for none.
        limit: largest prompt in any case.

    Returns:
        The limit, or less; but a prompt may always have half of the positions.
    """
    return min(limit, max(positions - answer, positions // 2)) if positions else limit


def family_of(config: Mapping[str, Any], *, where: str) -> str:
    """Return the model family, `decoder` or `encoder`, of a config.json; `where` names the model in messages.

    Raises:
        ModelError: for every other kind of network, with the reason.
    """
    kind = str(config.get("model_type") or "")
    try:
        text = text_config(config)
    except Exception as error:  # a damaged configuration can make transformers raise anything
        raise ModelError(f"{where}: config.json: {briefly(error)}; check or download it again") from error
    if text is not None and text.model_type not in ENCODERS:
        return "decoder"
    if config.get("is_encoder_decoder") or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(encoder_decoder(kind, where=where))
    writer = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, ""))
    if kind in ENCODERS:  # with is_decoder, these models attend causally and can generate
        return "decoder" if config.get("is_decoder") and writer.endswith(GENERATIVE_CLASSES) else "encoder"
    if writer.endswith(GENERATIVE_CLASSES):
        return "decoder"
    raise ModelError(f"{where}: {_unsupported_reason(kind, config)}")


def _unsupported_reason(kind: str, config: Mapping[str, Any]) -> str:
    """Return why a network is neither a decoder nor an encoder, and what to choose instead."""
    if kind in CONFIG_MAPPING:
        if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
            return f"{kind} reads images or sound in the same layers as text; choose a model with a separate text part"
        return f"{kind} is neither a text decoder nor a text encoder; choose a model of the Llama or BERT kind"
    if config.get("auto_map"):
        return (
            f"{kind or 'this model'} needs Python code from its own repository (auto_map), "
            "which is never run; choose a model that transformers supports without it"
        )
    if not kind:
        return "config.json has no model_type; name the folder of a model"
    return (
        f"transformers {transformers_version} does not support the model type {kind!r}; "
        "upgrade it, or choose another model"
    )
