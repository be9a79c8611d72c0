"""Tokens that are nothing but numbers and stand before every row.

A network is told of them as of a beginning that all rows share: by their keys and values in every layer, made once
for a whole batch. Only an encoder under a soft prompt, where the virtual tokens read the row too, has them in each row.

Letters: V virtual tokens, B rows, T tokens of the longest row, G key heads, W width of a head, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tunesmith.model.attention import same_by
from tunesmith.model.fork import Past


@dataclass(frozen=True, slots=True)
class Virtual:
    """V virtual tokens, as PEFT keeps them."""

    wrapped: Any  # PEFT's model around the network
    size: int  # V
    causal: bool  # what stands before a row does not read it

    @property
    def module(self) -> nn.Module:
        """Where the numbers that move are."""
        found: nn.Module = self.wrapped.prompt_encoder[self.wrapped.active_adapter]
        return found

    @property
    def is_past(self) -> bool:
        """Whether they can be told by keys and values alone."""
        return self.causal or self._prefix

    @property
    def _prefix(self) -> bool:
        return bool(self.wrapped.active_peft_config.peft_type == "PREFIX_TUNING")

    def past(self, network: Any) -> Past:
        """Keys and values of the V tokens in every layer, with gradient."""
        given = self.wrapped.get_prompt(1)
        if self._prefix:
            return [(layer.keys, layer.values) for layer in given.layers]
        return keys_of(network, inputs_embeds=given.to(network.dtype))

    def before(self, network: Any, ids: Tensor, real: Tensor) -> dict[str, Any]:
        """What a network is given so that V tokens stand before each of the padded rows [B, T]."""
        mask = torch.cat([real.new_ones(len(ids), self.size), real], dim=1).long()
        if self.is_past:
            cache = DynamicCache(self.past(network))
            cache.batch_repeat_interleave(len(ids))
            return {"input_ids": ids, "attention_mask": mask, "cache": cache}
        words = network.get_input_embeddings()(ids)
        soft = self.wrapped.get_prompt(1).to(words.dtype).expand(len(ids), -1, -1)
        return {"inputs_embeds": torch.cat([soft, words], dim=1), "attention_mask": mask}


def keys_of(network: Any, **given: Tensor) -> Past:
    """Keys and values, in every layer, of one row given as `input_ids` [1, V] or `inputs_embeds` [1, V, D]."""
    cache = DynamicCache()
    network.base_model(**given, cache=cache, use_cache=True)
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


@torch.no_grad()
def key_sizes(network: Any) -> list[tuple[int, int]]:
    """G and W of the keys in every layer, as one token has them: families say it in their configurations each their
    own way."""
    return [(keys.shape[1], keys.shape[3]) for keys, _ in _one_token(network)]


@torch.no_grad()
def even_keys(network: Any) -> bool:
    """Whether every layer has keys and values of its own, all of one size."""
    past = _one_token(network)
    return len(past) == network.config.num_hidden_layers and len({half.shape for pair in past for half in pair}) == 1


def _one_token(network: Any) -> Past:
    """Keys and values of a single token."""
    return keys_of(network, input_ids=torch.zeros(1, 1, dtype=torch.long, device=network.device))


def flat(past: Past) -> Tensor:
    """[V, layers * 2 * G * W]: keys and values in the order in which PEFT keeps a prefix."""
    each = torch.stack([half[0] for pair in past for half in pair])  # [2 * layers, G, V, W]
    return each.permute(2, 0, 1, 3).flatten(1)


@torch.no_grad()
def takes_past(network: Any) -> bool:
    """Whether this decoder goes on from keys and values as it goes on from the tokens they are of; measured."""
    ids = torch.arange(1, 9, device=network.device)[None]
    try:
        cache = DynamicCache(keys_of(network, input_ids=ids[:, :4]))
        after = network.base_model(input_ids=ids[:, 4:], cache=cache, use_cache=True).last_hidden_state.float()
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):  # a state that is no keys and values
        return False
    wanted = network.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, 4:].float()
    return bool((after - wanted).norm() <= same_by(network) * wanted.norm())
