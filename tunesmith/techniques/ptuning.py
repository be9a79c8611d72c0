"""Embeddings before every row, learned through a small network that is gone in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.model.policy import Policy
from tunesmith.techniques import soft


class PTuning(soft.Soft):
    """P-tuning: the embeddings of virtual tokens come out of an encoder; only what comes out is kept, in PEFT's format.

    Paper: Liu et al. 2021, arXiv 2103.10385 (LSTM); the MLP is that of NVIDIA NeMo, PEFT's default.
    """

    kind: Literal["p-tuning"] = "p-tuning"
    tokens: int = Field(20, ge=1, le=512, description="virtual tokens")
    init: Literal["text", "random"] = Field("text", description="text: at first the words of instruction and labels")
    encoder: Literal["mlp", "lstm"] = Field("mlp", description="what the embeddings come out of")
    width: int = Field(0, ge=0, description="of the encoder; 0: that of the model")

    def learning_rate(self, hidden: int, family: str) -> float:
        """Whatever the width: it is the encoder's weights that move."""
        return 1e-3

    def virtual_tokens(self) -> int:
        """As many as there are."""
        return self.tokens

    def adapt(self, base: Any, *, family: str, keep_reference: bool, start: Sequence[int] = ()) -> Policy:
        """The base as it is, virtual tokens before it."""
        from peft import PromptEncoderConfig

        sizes = soft.sizes(base)
        config = PromptEncoderConfig(
            task_type=soft.TASKS[family],
            num_virtual_tokens=self.tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.width or sizes["token_dim"],
            **sizes,
        )
        policy = self._before(base, config, family=family)
        if self.init == "text":
            _begin_as(policy, base.get_input_embeddings()(soft.opening(start, self.tokens, base.device)))
        return policy


@torch.no_grad()
def _begin_as(policy: Policy, wanted: Tensor) -> None:
    """Let what comes out of the encoder be [V, D] at first: the smallest last layer that makes it so.

    What PEFT's fresh encoder puts out is far from any word, and a small model does not find back.
    """
    assert policy.virtual is not None
    encoder: Any = policy.virtual.module
    last = encoder.mlp_head[-1]
    read: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    policy.virtual.wrapped.get_prompt(1)
    hook.remove()
    last.bias.zero_()
    # Not `lstsq`: torch 2.13 takes such features for ones of a lower rank and leaves the answer short.
    last.weight.copy_((torch.linalg.pinv(read[0].flatten(0, -2).double()) @ wanted.double()).T)
