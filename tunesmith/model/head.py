"""From hidden states to losses over the vocabulary. Letters: N positions, D hidden, V words.

A 135M decoder with 49,152 words spends a fifth of its arithmetic here, and the logits of a batch
of 4,096 positions weigh 805 MB. So the head sees only positions that are learned, a chunk at a
time, and makes the gradient while the chunk is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.errors import ModelError

CHUNK = 256


class _SumNll(torch.autograd.Function):
    """Sum of -log p(target), with the gradients made in the forward pass.

    d loss / d logits = softmax(logits) - onehot(target), so both gradients are ready when the loss is;
    backward only scales them.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        need_states, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states) if need_states else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and need_bias else None
        total = states.new_zeros((), dtype=torch.float32)
        for start in range(0, len(states), CHUNK):
            part, goal = states[start : start + CHUNK], targets[start : start + CHUNK]
            logits = F.linear(part, weight, bias).float()
            logs = logits.logsumexp(dim=1, keepdim=True)
            total += (logs - logits.gather(1, goal[:, None])).sum()
            if not any(ctx.needs_input_grad):
                continue
            wrong = logits.sub_(logs).exp_()
            wrong[torch.arange(len(goal)), goal] -= 1
            wrong = wrong.to(weight.dtype)
            if grad_states is not None:
                grad_states[start : start + CHUNK] = wrong @ weight
            if grad_weight is not None:
                grad_weight.addmm_(wrong.T, part)
            if grad_bias is not None:
                grad_bias += wrong.sum(dim=0)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        return (*(None if grad is None else grad.mul_(scale) for grad in ctx.saved_tensors), None)


def sum_nll(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum of -log p(target) under the logits states W^T + bias, for [M, D], [V, D], [V] and [M]."""
    if not torch.is_grad_enabled():  # which a function does not see inside
        states, weight, bias = states.detach(), weight.detach(), None if bias is None else bias.detach()
    total: Tensor = _SumNll.apply(states, weight, bias, targets)  # type: ignore[no-untyped-call]
    return total


class _Logprobs(torch.autograd.Function):
    """log p(target) of each position, with the gradient of the states made in the forward pass.

    What backward brings is a number for each position, which only scales that position's gradient; where the weight
    moves too, its gradient needs the softmax again.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        grad_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        found = states.new_empty(len(states), dtype=torch.float32)
        for start in range(0, len(states), CHUNK):
            part, goal = states[start : start + CHUNK], targets[start : start + CHUNK]
            logs = F.linear(part, weight).float().log_softmax(dim=1)
            found[start : start + CHUNK] = logs.gather(1, goal[:, None])[:, 0]
            if grad_states is not None:
                grad_states[start : start + CHUNK] = weight[goal] - logs.exp_().to(weight.dtype) @ weight
        ctx.save_for_backward(states, weight, targets, grad_states)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        states, weight, targets, grad_states = ctx.saved_tensors
        if grad_states is not None:
            grad_states = grad_states.mul_(scale[:, None].to(grad_states.dtype))
        if not ctx.needs_input_grad[1]:
            return grad_states, None, None
        grad_weight = torch.zeros_like(weight)
        for start in range(0, len(states), CHUNK):
            part, goal = states[start : start + CHUNK], targets[start : start + CHUNK]
            right = F.linear(part, weight).float().softmax(dim=1).neg_()
            right[torch.arange(len(goal)), goal] += 1
            grad_weight.addmm_((right * scale[start : start + CHUNK, None]).to(weight.dtype).T, part)
        return grad_states, grad_weight, None


@torch.no_grad()
def judge(logits: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[M] -log p of each target, and [M] whether it is the likeliest word, without gradient."""
    nats, first = [states.new_zeros(0)], [targets.new_zeros(0, dtype=torch.bool)]
    for start in range(0, len(states), CHUNK):
        logs, goal = logits(states[start : start + CHUNK]).float().log_softmax(dim=1), targets[start : start + CHUNK]
        nats.append(-logs.gather(1, goal[:, None])[:, 0])
        first.append(logs.argmax(dim=1) == goal)
    return torch.cat(nats), torch.cat(first)


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """A decoder's output layer: states in, logits or losses out."""

    layer: nn.Module
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, network: Any) -> LanguageHead:
        """The head of a causal language model, checked against the model's own logits.

        Raises ModelError when the model does something to its logits that is not known here.
        """
        config = network.config.to_dict()
        scale = float(config.get("logit_scale") or 1.0) / float(config.get("logits_scaling") or 1.0)
        cap = float(config.get("final_logit_softcapping") or 0.0)
        head = cls(network.get_output_embeddings(), scale, cap)
        probe = torch.arange(1, 6, device=network.device)[None]
        with torch.no_grad():
            ours = head.logits(network.base_model(input_ids=probe, use_cache=False).last_hidden_state)
            theirs = network(input_ids=probe, use_cache=False).logits
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2):
            raise ModelError(
                f"{config.get('model_type')}: this family changes its logits in a way not known here; choose another"
            )
        return head

    def over(self, network: Any) -> LanguageHead:
        """The same head with the output layer of another network of this family."""
        return replace(self, layer=network.get_output_embeddings())

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        out: Tensor = self.layer(states) * self.scale
        return self.softcap * torch.tanh(out / self.softcap) if self.softcap else out

    def sum_nll(self, states: Tensor, targets: Tensor) -> Tensor:
        """[N, D] and [N] -> the sum of -log p(target)."""
        if (weight := self._plain()) is not None:
            return sum_nll(states, weight, None, targets)
        return self._nll(states, targets, 1.0).sum()

    def logprobs(self, states: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
        """[N, D] and [N] -> [N], log p(target) of a draw at this temperature."""
        if (weight := self._plain()) is not None:
            found: Tensor = _Logprobs.apply(states / temperature, weight, targets)  # type: ignore[no-untyped-call]
            return found
        return -self._nll(states, targets, temperature)

    def _nll(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """[N], -log p of each target; logits are made a few rows at a time, and again for the gradient."""

        def some(states: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(states).float() / temperature, targets, reduction="none")

        parts = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
        return torch.cat([checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])

    def _plain(self) -> Tensor | None:
        """The weight where the logits are states W^T and nothing else."""
        layer = self.layer
        as_they_are = self.scale == 1.0 and not self.softcap
        return layer.weight if isinstance(layer, nn.Linear) and layer.bias is None and as_they_are else None
