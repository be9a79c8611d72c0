"""Attention of short rows on a CPU by batched matrix products.

torch's flash kernel is made for long rows. For up to 160 to 256 tokens, products over all rows and heads at once take a
half to a quarter of its time (bench/NOTES.md). Scores are computed again in the backward pass, so that no more is kept
than by the flash kernel. With dropout, which torch's kernel for CPUs does not have, rows of any length are computed so.

Letters: S segments, H query heads, G key heads, T queries and K keys of a segment, W head width; s segments of a part,
t and k the queries and keys of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models.kernels.dropout import Masks, draw_seed

# Scores T * K of a head up to which products are faster, and the same where a causal mask alone hides half of them: the
# flash kernel does not compute those.
MAX_SCORES, MAX_CAUSAL_SCORES = 1 << 16, 160 * 160
# Scores computed at a time: 2 MiB, which the processor's cache holds.
SCORES_AT_ONCE = 1 << 19


@dataclass(frozen=True, slots=True)
class _Weights:
    """Computes weights from scores, the same in both passes."""

    bias: Tensor | None  # [S, T, K] or [1, T, K] float32, kept by the layout for all layers
    extents: NDArray[np.int64]  # [S, 2]
    scale: float
    dropout: float
    seed: int  # of the dropout

    def masks(self) -> Masks | None:
        """Return the dropout masks, from the first."""
        return Masks(self.dropout, self.seed) if self.dropout else None

    def parts(self, heads: int) -> Iterator[tuple[slice, slice, slice]]:
        """Yield the segments whose scores are computed at a time, and their queries and keys without padding."""
        start = 0
        while start < len(self.extents):
            queries, keys = self.extents[start].tolist()
            stop = start + max(1, SCORES_AT_ONCE // (heads * queries * keys))
            yield slice(start, stop), slice(queries), slice(keys)
            start = stop

    def of(self, queries: Tensor, keys: Tensor, part: tuple[slice, slice, slice], *, heads: int) -> Tensor:
        """Compute the softmax [s, H, t, k] of the scores of grouped queries and keys."""
        rows, own, seen = part
        scores = torch.bmm(queries, keys.mT).mul_(self.scale).view(-1, heads, own.stop, seen.stop)
        if self.bias is not None:
            scores += self.bias[rows if len(self.bias) > 1 else slice(1), None, own, seen]
        return scores.softmax(dim=-1)


def short_attention(
    states: Sequence[Tensor],
    bias: Tensor | None,
    *,
    scale: float | None,
    extents: NDArray[np.int64] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute attention [S, H, T, W] in float32; under autocast, of states in its dtype.

    Every query attends to a key, and no segment is empty.

    Args:
        states: query [S, H, T, W], key and value [S, G, K, W].
        bias: added to the scores, float32; [S, T, K] or [1, T, K].
        scale: factor of the scores; None for W ** -0.5.
        extents: [S, 2] queries and keys after which this segment and all later ones are padding, whose outputs are not
            computed; None if nothing is padded.
        dropout: probability that a weight is dropped.
    """
    query, key, value = states
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (state.to(torch.get_autocast_dtype("cpu")) for state in states)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if extents is None:
        extents = np.tile([query.shape[2], key.shape[2]], (len(query), 1))
    weights = _Weights(bias, extents, scale, dropout, draw_seed() if dropout else 0)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _ShortAttention.apply(query, key, value, weights)  # type: ignore[no-untyped-call]
    return out


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, how: _Weights) -> Tensor:  # noqa: PLR0917 - `apply` takes no keywords
        ctx.save_for_backward(query, key, value)
        ctx.how = how
        out, masks = torch.empty_like(query), how.masks()
        for part in how.parts(query.shape[1]):
            rows, own, seen = part
            queries = _by_key_head(query[rows, :, own], key)
            keys, values = (_by_key_head(state[rows, :, seen], key) for state in (key, value))
            weights = how.of(queries, keys, part, heads=query.shape[1])
            if masks is not None:
                weights = masks.apply(weights, masks.next(weights))
            target = out[rows, :, own]
            target.copy_(torch.bmm(weights.view(len(keys), -1, seen.stop), values).view_as(target))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return *_gradients(ctx.saved_tensors, grad, ctx.how), None


def _gradients(states: Sequence[Tensor], grad: Tensor, how: _Weights) -> list[Tensor]:
    """Return the gradients of query, key and value, of the gradient [S, H, T, W] of the output."""
    query, key, value = states
    grads, masks = [torch.zeros_like(state) for state in (query, key, value)], how.masks()
    for part in how.parts(query.shape[1]):
        rows, own, seen = part
        queries, upstream = (_by_key_head(state[rows, :, own], key) for state in (query, grad))
        keys, values = (_by_key_head(state[rows, :, seen], key) for state in (key, value))
        weights = how.of(queries, keys, part, heads=query.shape[1])
        of_weights, kept = torch.bmm(upstream, values.mT).view_as(weights), weights
        if masks is not None:
            mask = masks.next(weights)
            of_weights, kept = masks.apply(of_weights, mask), masks.apply(weights, mask)
        # The gradient of softmax in one pass: weights * (gradient - its weighted sum over the keys).
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, torch.float32)
        kept, of_scores = (scores.view(len(keys), -1, seen.stop) for scores in (kept, of_scores))
        found = (
            torch.bmm(of_scores, keys).mul_(how.scale),
            torch.bmm(of_scores.mT, queries).mul_(how.scale),
            torch.bmm(kept.mT, upstream),
        )
        for whole, tokens, one in zip(grads, (own, seen, seen), found, strict=True):
            target = whole[rows, :, tokens]
            target.copy_(one.view_as(target))
    return grads


def _by_key_head(state: Tensor, key: Tensor) -> Tensor:
    """Return [s * G, H / G * t, W] in float32: queries of heads that share a key head are multiplied together."""
    whole = state
    if state.dtype != torch.float32 or not state.is_contiguous():
        whole = torch.empty(state.shape, dtype=torch.float32).copy_(state)
    return whole.view(len(state) * key.shape[1], -1, state.shape[-1])
