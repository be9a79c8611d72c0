"""The output layer of a decoder: losses and log-probabilities over the vocabulary, computed in chunks.

A 135M decoder with 49,152 words spends a fifth of its arithmetic here, and the logits of a batch of 4,096 positions
take 805 MB. So only the positions of learned ids come here, a chunk at a time, and the gradient is computed while the
chunk's logits are in memory.

Letters: N positions, M learned ids (the positions of a loss), D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.errors import ModelError
from tunesmith.models.once_per_shape import once_per_shape
from tunesmith.models.sharded import run_body

# Positions whose logits are in memory at a time. On a GPU each chunk reads the weight again, and writes its gradient.
CHUNK, GPU_CHUNK = 256, 2048


def _chunks(states: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield the positions of each chunk, and its parts of states [M, D] and targets [M]."""
    size = GPU_CHUNK if states.is_cuda else CHUNK
    for start in range(0, max(1, len(states)), size):  # one empty chunk where nothing is learned
        rows = slice(start, start + size)
        yield rows, states[rows], targets[rows]


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute float32 logits; from bfloat16 on a GPU, which sums in float32 anyway, without a rounding in between."""
    if not states.is_cuda or states.dtype == torch.float32:
        return F.linear(states, weight, bias).float()
    logits = torch.mm(states, weight.T, out_dtype=torch.float32)
    return logits if bias is None else logits + bias


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of two matrices to a float32 matrix; in bfloat16, a sum over chunks would lose the small ones."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


class _SumNll(torch.autograd.Function):
    """Sum of -log p(target), with the gradients computed in the forward pass.

    d loss / d logits = softmax(logits) - onehot(target): both gradients are ready when the loss is, and backward only
    scales them. Recomputing the logits in backward would cost another product with the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:  # noqa: PLR0917
        # `apply` takes no keywords.
        need_states, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_states = torch.empty_like(states) if need_states else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and need_bias else None
        total = states.new_zeros((), dtype=torch.float32)
        for rows, part, target in _chunks(states, targets):
            logits = _logits(part, weight, bias)
            logs = logits.logsumexp(dim=1, keepdim=True)
            total += (logs - logits.gather(1, target[:, None])).sum()
            if not any(ctx.needs_input_grad):
                continue
            grad_logits = logits.sub_(logs).exp_()
            grad_logits[torch.arange(len(target), device=target.device), target] -= 1
            grad_logits = grad_logits.to(weight.dtype)
            if grad_states is not None:
                grad_states[rows] = grad_logits @ weight
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, part)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
        ctx.save_for_backward(grad_states, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        return (*(None if grad is None else grad.mul_(scale) for grad in ctx.saved_tensors), None)


def sum_nll(states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Compute the sum of -log p(target) under the logits states W^T + bias, a scalar in nats.

    `states` [M, D] and `weight` [V, D] of one dtype, `bias` [V], `targets` [M] int64. Logits and sums are float32.
    """
    # Inside an autograd function, needs_input_grad is True even under no_grad: detach, or gradients are computed.
    if not torch.is_grad_enabled():
        states = states.detach()
        weight = weight.detach()
        bias = None if bias is None else bias.detach()
    total: Tensor = _SumNll.apply(states, weight, bias, targets)  # type: ignore[no-untyped-call]
    return total


class _Logprobs(torch.autograd.Function):
    """log p(target) of each position, with the gradient of the states computed in the forward pass.

    backward receives one value per position, which only scales that position's gradient. If the weight is trained too,
    its gradient needs the softmax again.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        grad_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        logprobs = states.new_empty(len(states), dtype=torch.float32)
        for rows, part, target in _chunks(states, targets):
            logs = _logits(part, weight).log_softmax(dim=1)
            logprobs[rows] = logs.gather(1, target[:, None])[:, 0]
            if grad_states is not None:
                grad_states[rows] = weight[target] - logs.exp_().to(weight.dtype) @ weight
        ctx.save_for_backward(states, weight, targets, grad_states)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (scale,) = grads
        states, weight, targets, grad_states = ctx.saved_tensors
        if grad_states is not None:
            grad_states = grad_states.mul_(scale[:, None].to(grad_states.dtype))
        if not ctx.needs_input_grad[1]:
            return grad_states, None, None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows, part, target in _chunks(states, targets):
            grad_logits = _logits(part, weight).softmax(dim=1).neg_()
            grad_logits[torch.arange(len(target), device=target.device), target] += 1
            grad_logits = (grad_logits * scale[rows, None]).to(weight.dtype)
            _add_product(grad_weight, grad_logits.T, part)
        return grad_states, grad_weight, None


@torch.no_grad()
def judge(logits: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Score each target without gradient.

    Args:
        logits: the output layer, from states [N, D] to logits [N, V].
        states: states of the positions, [M, D].
        targets: the ids at those positions, [M] int64.

    Returns:
        -log p of each target [M] in nats, and whether it is the most likely id [M] bool.
    """
    nats = [states.new_zeros(0)]
    top = [targets.new_zeros(0, dtype=torch.bool)]
    for _, part, target in _chunks(states, targets):
        logs = logits(part).float().log_softmax(dim=1)
        nats.append(-logs.gather(1, target[:, None])[:, 0])
        top.append(logs.argmax(dim=1) == target)
    return torch.cat(nats), torch.cat(top)


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """A decoder's output layer: states in, logits or losses out."""

    layer: nn.Module
    scale: float = 1.0  # factor of the logits (Cohere, Granite, Falcon-H1)
    softcap: float = 0.0  # c in c tanh(logits / c) (Gemma 2); 0 for none
    products: torch.dtype | None = None  # dtype of the matrix products; None for that of the layer's weight

    @classmethod
    def of(cls, network: Any) -> LanguageHead:
        """Return the head of a causal language model, after comparing it with the model's own logits.

        Raises:
            ModelError: if the model changes its logits in a way not implemented here.
        """
        config = network.config.to_dict()
        scale = float(config.get("logit_scale") or config.get("lm_head_multiplier") or 1.0)
        scale /= float(config.get("logits_scaling") or 1.0)
        softcap = float(config.get("final_logit_softcapping") or 0.0)
        head = cls(network.get_output_embeddings(), scale, softcap)
        if not _same_logits(network, head=head):
            raise ModelError(
                f"{config.get('model_type')}: this family changes its logits in an unsupported way; choose another"
            )
        return head

    def over(self, network: Any) -> LanguageHead:
        """Return the same head with the output layer of another network of this family."""
        return replace(self, layer=network.get_output_embeddings())

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        weight: Any = self.layer.weight
        mixed = nullcontext() if self.products is None else torch.autocast(states.device.type, dtype=self.products)
        with mixed:
            out: Tensor = self.layer(states.to(weight.dtype)) * self.scale
        return self.softcap * torch.tanh(out / self.softcap) if self.softcap else out

    def sum_nll(self, states: Tensor, targets: Tensor) -> Tensor:
        """Compute the sum of -log p(target) from states [M, D] and targets [M], a scalar in nats."""
        if (weight := self._plain_weight()) is not None:
            return sum_nll(states.to(weight.dtype), weight, None, targets)
        return self._nll(states, targets, 1.0).sum()

    def logprobs(self, states: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Compute log p(target) when sampling at a temperature, [M] in nats, from states [M, D] and targets [M]."""
        if (weight := self._plain_weight()) is not None:
            logprobs: Tensor = _Logprobs.apply((states / temperature).to(weight.dtype), weight, targets)  # type: ignore[no-untyped-call]
            return logprobs
        return -self._nll(states, targets, temperature)

    @torch.no_grad()
    def logprobs_at(self, states: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        """Compute log p(target) after the state at each index, [M] in nats, without gradient; of states [U, D]."""
        logprobs = states.new_empty(len(targets), dtype=torch.float32)
        weight = self._plain_weight()
        for rows, part, _ in _chunks(states, states):
            logits = self.logits(part).float() if weight is None else _logits(part.to(weight.dtype), weight)
            inside = (index >= rows.start) & (index < rows.stop)
            logprobs[inside] = logits.log_softmax(dim=1)[index[inside] - rows.start, targets[inside]]
        return logprobs

    def at_each(self, compute: Callable[[Tensor, Tensor], Tensor], states: Tensor, others: Tensor) -> Tensor:
        """Compute a value at each position, [M]; a chunk's logits are recomputed for the gradient.

        Args:
            compute: returns the values of a chunk from its logits and its part of `others`.
            states: states of the positions, [M, D].
            others: anything else, [M, ...].
        """

        def of_chunk(states: Tensor, others: Tensor) -> Tensor:
            return compute(self.logits(states).float(), others)

        # A head has no dropout, so checkpointing need not restore the state of the random generators.
        parts = [
            checkpoint(of_chunk, part, other, use_reentrant=False, preserve_rng_state=False)
            for _, part, other in _chunks(states, others)
        ]
        return torch.cat(parts)

    def _nll(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Compute -log p of each target, [M]."""

        def nll(logits: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(logits / temperature, targets, reduction="none")

        return self.at_each(nll, states, targets)

    def _plain_weight(self) -> Tensor | None:
        """Return the weight W, in the dtype of the products, if the logits are exactly states W^T."""
        layer = self.layer
        if not isinstance(layer, nn.Linear) or layer.bias is not None or self.scale != 1.0 or self.softcap:
            return None
        return layer.weight.to(self.products or layer.weight.dtype)


@once_per_shape
@torch.no_grad()
def _same_logits(network: Any, *, head: LanguageHead) -> bool:
    """Return whether a head computes the logits of a network."""
    probe = torch.arange(1, 6, device=network.device)[None]
    ours = head.logits(run_body(network, input_ids=probe, use_cache=False).last_hidden_state)
    theirs = network(input_ids=probe, use_cache=False).logits
    return torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2)
