"""The common part of prompt, prefix and p-tuning: PEFT's virtual tokens in front of every row.

Letters: V virtual tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunesmith.errors import RecipeError
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.techniques.peft_base import Adapter

if TYPE_CHECKING:
    import torch

    from tunesmith.models.policy import Policy

# PEFT's model puts virtual tokens in front of a row only if it has a task type.
TASKS = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}


class Soft(Adapter):
    """A technique with virtual tokens."""

    tokens: int = Field(20, ge=1, le=512, description="virtual tokens")

    def virtual_tokens(self) -> int:
        """Return the number of virtual tokens."""
        return self.tokens

    def refusal(self, base: Any, *, family: str) -> str:
        """Return why a decoder does not read virtual tokens as PEFT writes them; empty if it does."""
        from tunesmith.models.attention.soft_prompt import takes_embeddings

        if family == "decoder" and not takes_embeddings(base):
            return (
                f"a {base.config.model_type} changes the embeddings of words outside their layer, "
                "so PEFT cannot put virtual tokens in front of them; nearest that works: lora"
            )
        return super().refusal(base, family=family)

    def _with_virtual_tokens(self, base: Any, config: Any, *, family: str, start: torch.Tensor | None = None) -> Policy:
        """Return a policy with the virtual tokens of a PEFT configuration, initialized to `start` [V, ...] if given."""
        import torch
        from peft import get_peft_model

        from tunesmith.models.loading.text_part import adapter_tree

        with quiet():
            policy = self._policy(base, get_peft_model(adapter_tree(base), config), family)
        if start is not None:
            with torch.no_grad():
                assert policy.virtual is not None
                policy.virtual.module.embedding.weight.copy_(start)  # type: ignore[union-attr, operator]
        return policy

    def _policy(self, base: Any, wrapped: Any, family: str) -> Policy:
        """Return the base with virtual tokens. Raises RecipeError if a sliding window would hide some of them."""
        import torch

        from tunesmith.models.attention.soft_prompt import Virtual
        from tunesmith.models.policy import Policy

        base.requires_grad_(False)
        policy = Policy.over(base, family=family)
        policy.adapter = wrapped
        policy.weights = False
        as_keys = family == "decoder" and policy.rules.keys_only
        policy.virtual = Virtual(wrapped, wrapped.active_peft_config.num_virtual_tokens, as_keys)
        policy.reference = policy.without_virtual
        if policy.virtual.is_past:
            with torch.no_grad():
                visible = min(keys.shape[2] for keys, _ in policy.virtual.past(base))
            if visible < policy.virtual.size:
                raise RecipeError(
                    f"technique.tokens: the model's attention window holds {visible} virtual tokens, "
                    f"got {policy.virtual.size}; use at most {visible}"
                )
        return policy


def sizes(base: Any) -> dict[str, Any]:
    """Return width, heads and layers of a base, which PEFT finds in some families only."""
    config = base.config
    return {
        "token_dim": base.get_input_embeddings().embedding_dim,
        "num_attention_heads": getattr(config, "num_attention_heads", 1),  # a pure state space network has none
        "num_layers": config.num_hidden_layers,
    }


def opening(start: Sequence[int], size: int, device: torch.device) -> torch.Tensor:
    """Return `size` ids of the text, truncated or repeated to that length. Raises RecipeError if it is empty."""
    import torch

    if not start:
        raise RecipeError("technique.init: there is no text to start from; use init: random")
    return torch.tensor([start[i % len(start)] for i in range(size)], device=device)
