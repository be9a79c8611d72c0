"""Attention of short rows on a CPU by batched matrix products.

torch's flash kernel is made for long rows. For up to 160 to 256 tokens, products over all rows and heads at once take a
half to a quarter of its time (bench/NOTES.md). Scores are computed again in the backward pass, so that no more is kept
than by the flash kernel.

Letters: S segments, H query heads, G key heads, T queries and K keys of a segment, W head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores T * K of a head up to which products are faster, and the same where a causal mask alone hides half of them: the
# flash kernel does not compute those.
MAX_SCORES, MAX_CAUSAL_SCORES = 1 << 16, 160 * 160
# Scores computed at a time: 2 MiB, which the processor's cache holds.
SCORES_AT_ONCE = 1 << 19


def short_attention(states: Sequence[Tensor], bias: Tensor | None, *, scale: float | None) -> Tensor:
    """Compute attention [S, H, T, W] in float32; under autocast, of states in its dtype.

    Every query attends to a key, and no segment is empty.

    Args:
        states: query [S, H, T, W], key and value [S, G, K, W].
        bias: added to the scores, float32; [S, T, K] or [1, T, K].
        scale: factor of the scores; None for W ** -0.5.
    """
    query, key, value = states
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (state.to(torch.get_autocast_dtype("cpu")) for state in states)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _ShortAttention.apply(query, key, value, bias, scale)  # type: ignore[no-untyped-call]
    return out


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:  # noqa: PLR0917 - `apply` takes no keywords
        ctx.save_for_backward(query, key, value)
        ctx.bias, ctx.scale = bias, scale  # the layout keeps the bias for all layers
        out = torch.empty_like(query)
        for part in _parts(query, key):
            queries, keys, values = (_by_key_head(state[part], key) for state in (query, key, value))
            weights = _weights(queries, keys, query[part], bias=_of_part(bias, part), scale=scale)
            out[part] = torch.bmm(weights.view(len(keys), -1, key.shape[2]), values).view_as(out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return *_gradients(ctx.saved_tensors, grad, bias=ctx.bias, scale=ctx.scale), None, None


def _gradients(states: Sequence[Tensor], grad: Tensor, *, bias: Tensor | None, scale: float) -> list[Tensor]:
    """Return the gradients of query, key and value, of the gradient [S, H, T, W] of the output."""
    query, key, value = states
    grads = [torch.empty_like(state) for state in (query, key, value)]
    for part in _parts(query, key):
        queries, keys, values, own = (_by_key_head(state[part], key) for state in (query, key, value, grad))
        weights = _weights(queries, keys, query[part], bias=_of_part(bias, part), scale=scale)
        # The gradient of softmax in one pass: weights * (gradient - its weighted sum over the keys).
        of_weights = torch.bmm(own, values.mT).view_as(weights)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, torch.float32)
        weights, of_scores = (scores.view(len(keys), -1, key.shape[2]) for scores in (weights, of_scores))
        found = (
            torch.bmm(of_scores, keys).mul_(scale),
            torch.bmm(of_scores.mT, queries).mul_(scale),
            torch.bmm(weights.mT, own),
        )
        for whole, one in zip(grads, found, strict=True):
            whole[part] = one.view_as(whole[part])
    return grads


def _parts(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Yield the segments whose scores are computed at a time."""
    size = max(1, SCORES_AT_ONCE // (query.shape[1] * query.shape[2] * key.shape[2]))
    yield from (slice(start, start + size) for start in range(0, len(query), size))


def _of_part(bias: Tensor | None, part: slice) -> Tensor | None:
    return bias if bias is None or len(bias) == 1 else bias[part]


def _by_key_head(state: Tensor, key: Tensor) -> Tensor:
    """Return [S * G, H / G * T, W] in float32: queries of heads that share a key head are multiplied together."""
    whole = state
    if state.dtype != torch.float32 or not state.is_contiguous():
        whole = torch.empty(state.shape, dtype=torch.float32).copy_(state)
    return whole.view(len(state) * key.shape[1], -1, state.shape[-1])


def _weights(queries: Tensor, keys: Tensor, query: Tensor, *, bias: Tensor | None, scale: float) -> Tensor:
    """Compute the softmax of the scores of grouped queries and keys. Returns [S, H, T, K], as `query` [S, H, T, W]."""
    scores = torch.bmm(queries, keys.mT).mul_(scale).view(*query.shape[:3], keys.shape[1])
    if bias is not None:
        scores += bias[:, None]
    return scores.softmax(dim=-1)
