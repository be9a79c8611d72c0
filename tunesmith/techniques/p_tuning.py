"""P-tuning: trained embeddings in front of every row, computed by a small encoder that is not saved.

Letters: V virtual tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tunesmith.techniques import soft_prompt_base as soft

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.models.policy import Policy


class PTuning(soft.Soft):
    """P-tuning: an encoder computes the embeddings of virtual tokens; only its output is saved, in PEFT's format.

    Paper: Liu et al. 2021, arXiv 2103.10385 (LSTM); the MLP is that of NVIDIA NeMo, PEFT's default.
    """

    kind: Literal["p-tuning"] = "p-tuning"
    init: Literal["text", "random"] = Field("text", description="text: start as the words of instruction and labels")
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="the network that computes the embeddings")
    width: int = Field(0, ge=0, description="hidden width of the encoder; 0: that of the model")

    def learning_rate(self, hidden: int, family: str) -> float:
        """Return 1e-3, for any width: the trainable parameters are the encoder's weights."""
        return 1e-3

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """Put virtual tokens in front of an unchanged base."""
        from peft import PromptEncoderConfig

        sizes = soft.sizes(base)
        config = PromptEncoderConfig(
            task_type=soft.TASKS[family],
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.width or sizes["token_dim"],
            **sizes,
        )
        policy = self._with_virtual_tokens(base, config, family=family)
        if self.init == "text":
            _set_output(policy, base.get_input_embeddings()(soft.opening(start, self.tokens, base.device)))
        return policy


def _set_output(policy: Policy, embeddings: Tensor) -> None:
    """Make the encoder's initial output equal `embeddings` [V, D], by the smallest last layer that does.

    The output of PEFT's fresh encoder is far from any word's embedding, and small models do not recover from it.
    """
    import torch

    assert policy.virtual is not None
    encoder: Any = policy.virtual.module
    last = encoder.mlp_head[-1]
    inputs: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        policy.virtual.wrapped.get_prompt(1)
        hook.remove()
        last.bias.zero_()
        # Not `lstsq`: torch 2.13 treats these inputs as of lower rank, and its solution falls short of the embeddings.
        left, right = (part.cpu().double() for part in (inputs[0].flatten(0, -2), embeddings))  # Apple's GPUs have none
        last.weight.copy_((torch.linalg.pinv(left) @ right).T)
