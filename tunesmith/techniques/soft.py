"""What prompt, prefix and p-tuning share: virtual tokens of PEFT's, before every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.errors import RecipeError
from tunesmith.model.policy import Policy
from tunesmith.model.quiet import quiet
from tunesmith.model.virtual import Virtual
from tunesmith.techniques.adapter import Adapter

# PEFT's model only puts virtual tokens before a row where it is told what the model is for.
TASKS = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}


class Soft(Adapter):
    """A technique of virtual tokens."""

    def _before(self, base: Any, config: Any, *, family: str, start: torch.Tensor | None = None) -> Policy:
        """A policy whose numbers are virtual tokens by this configuration, `start` their first values where given."""
        from peft import get_peft_model

        with quiet():
            policy = self._policy(base, get_peft_model(base, config), family)
        if start is not None:
            with torch.no_grad():
                assert policy.virtual is not None
                policy.virtual.module.embedding.weight.copy_(start)  # type: ignore[union-attr, operator]
        return policy

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """The base with PEFT's virtual tokens before it. Raises RecipeError for more than a window sees."""
        base.requires_grad_(False)
        policy = Policy.over(base, family=family)
        policy.adapter, policy.weights = wrapped, False
        policy.virtual = Virtual(wrapped, wrapped.active_peft_config.num_virtual_tokens, family == "decoder")
        policy.reference = policy.without_virtual
        if policy.virtual.is_past:
            with torch.no_grad():
                kept = min(keys.shape[2] for keys, _ in policy.virtual.past(base))
            if kept < policy.virtual.size:
                cure = f"use at most {kept}"
                raise RecipeError(f"technique.tokens: the model's window lets {kept} of them be seen; {cure}")
        return policy


def sizes(base: Any) -> dict[str, Any]:
    """Width, heads and layers of a base, which PEFT finds in some families only."""
    config = base.config
    return {
        "token_dim": base.get_input_embeddings().embedding_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
    }


def opening(start: Sequence[int], size: int, device: torch.device) -> torch.Tensor:
    """[size] ids: the text cut short, or said again until it is long enough. Raises RecipeError without any."""
    if not start:
        raise RecipeError("technique.init: there is no text to start from; use init: random")
    return torch.tensor([start[i % len(start)] for i in range(size)], device=device)
