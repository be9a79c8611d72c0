"""Virtual tokens: trained vectors in front of every row (soft prompts and prefixes).

The network sees them as a prefix that all rows share: as keys and values in every layer, computed once per batch. They
are part of each row only where keys and values do not represent them: in an encoder with a soft prompt, whose virtual
tokens attend to the row, and in a decoder that keeps other states.

Letters: V virtual tokens, B rows, T tokens of the longest row, G key heads, W head width, D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.models.attention.packed import state_tolerance
from tunesmith.models.attention.shared_prefix import Past
from tunesmith.models.sharded import run_body


@dataclass(frozen=True, slots=True)
class Virtual:
    """V virtual tokens in PEFT's format."""

    wrapped: Any  # PEFT's model around the network
    size: int  # V
    as_keys: bool  # a decoder that caches keys and values only: virtual tokens do not attend to the row

    @property
    def module(self) -> nn.Module:
        """The module with the trainable parameters."""
        encoder: nn.Module = self.wrapped.prompt_encoder[self.wrapped.active_adapter]
        return encoder

    @property
    def is_past(self) -> bool:
        """True if keys and values alone represent them."""
        return self.as_keys or self._prefix

    @property
    def _prefix(self) -> bool:
        return bool(self.wrapped.active_peft_config.peft_type == "PREFIX_TUNING")

    def past(self, network: Any) -> Past:
        """Compute keys and values [1, G, V, W] of the V tokens in every layer, with gradient."""
        # PEFT returns a cache for prefix tuning, and embeddings [1, V, D] for the other techniques.
        if self._prefix:
            return [(layer.keys, layer.values) for layer in self.wrapped.get_prompt(1).layers]
        return keys_of(network, inputs_embeds=self.embeddings(network.dtype))

    def embeddings(self, dtype: torch.dtype) -> Tensor:
        """Compute the embeddings [1, V, D] of the V tokens of a soft prompt, with gradient."""
        soft: Tensor = self.wrapped.get_prompt(1).to(dtype)
        return soft

    def before(self, network: Any, ids: Tensor, real: Tensor) -> dict[str, Any]:
        """Return the network's inputs for padded rows [B, T] with V tokens in front of each; `real` masks padding."""
        mask = torch.cat([real.new_ones(len(ids), self.size), real], dim=1).long()
        if self.is_past:
            cache = DynamicCache(self.past(network))
            cache.batch_repeat_interleave(len(ids))
            return {"input_ids": ids, "attention_mask": mask, "cache": cache}
        words = network.get_input_embeddings()(ids)
        soft = self.embeddings(words.dtype).expand(len(ids), -1, -1)
        return {"inputs_embeds": torch.cat([soft, words], dim=1), "attention_mask": mask}


def keys_of(network: Any, **inputs: Tensor) -> Past:
    """Compute keys and values [1, G, V, W], layer by layer, of `input_ids` [1, V] or `inputs_embeds` [1, V, D]."""
    cache = DynamicCache()
    run_body(network, **inputs, cache=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


@torch.no_grad()
def key_sizes(network: Any) -> list[tuple[int, int]]:
    """Return G and W of every layer, measured on one token, because families name them differently in their configs."""
    return [(keys.shape[1], keys.shape[3]) for keys, _ in _one_token(network)]


@torch.no_grad()
def even_keys(network: Any) -> bool:
    """Return whether every layer of a network that caches only keys and values has its own, all of one size."""
    past = _one_token(network)
    return len(past) == network.config.num_hidden_layers and len({half.shape for pair in past for half in pair}) == 1


@torch.no_grad()
def takes_embeddings(network: Any) -> bool:
    """Return whether a network computes from its word embeddings what it computes from the ids; measured.

    Some scale embeddings outside the embedding layer, and only those of ids, or look words up again in every layer.
    PEFT gives a network the embeddings of virtual tokens and words together, so there it would compute something else.
    """
    ids = torch.arange(1, 7, device=network.device)[None]
    expected = run_body(network, input_ids=ids, use_cache=False).last_hidden_state.float()
    try:
        embeddings = network.get_input_embeddings()(ids)
        found = run_body(network, inputs_embeds=embeddings, use_cache=False).last_hidden_state.float()
        virtual = torch.cat([embeddings.mean(dim=1, keepdim=True), embeddings], dim=1)
        run_body(network, inputs_embeds=virtual, use_cache=False)  # Gemma 4 accepts embeddings of words alone
    except (TypeError, ValueError, RuntimeError, AttributeError):  # such as a router that looks ids up
        return False
    return bool((found - expected).norm() <= state_tolerance(network) * expected.norm())


def _one_token(network: Any) -> Past:
    """Compute the keys and values of a single token."""
    return keys_of(network, input_ids=torch.zeros(1, 1, dtype=torch.long, device=network.device))


def flat(past: Past) -> Tensor:
    """Return keys and values in the order in which PEFT stores a prefix, [V, layers * 2 * G * W]."""
    each = torch.stack([half[0] for pair in past for half in pair])  # [2 * layers, G, V, W]
    return each.permute(2, 0, 1, 3).flatten(1)
