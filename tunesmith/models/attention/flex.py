"""Attention of packed rows in one kernel: FlexAttention, with a mask made of the segments' intervals.

A token attends to its own segment and to those above it, up to its own position. Numbered in pre-order, everything
below a segment is one interval, so whether a segment is above another takes two comparisons, whatever the depth:

    segment     parent  interval
    0 prompt      -      [0, 3)
    1   answer    0      [1, 2)     attends to 1 and to 0, because 1 is in [0, 3)
    2   answer    0      [2, 3)
    3 prompt      -      [3, 4)

The kernel skips blocks of 128 x 128 pairs without a visible pair, and applies the mask only where some are hidden. On
CPU it has no backward pass, so there the levels of `packed` are used.

Letters: N packed tokens, V virtual tokens, K = V + N keys, H query heads, G key heads, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # queries and keys of a block; FlexAttention's own default
MASKED_AT_ONCE = 16 * BLOCK  # queries whose mask over all K keys is in memory at once, while blocks are counted
MIN_WIDTH = 16  # least head width of the kernel; only tiny test models are narrower
FAR = 2**31 - 1  # more than any position and any number of segments
VARIANTS = 64  # kernels per process: dtypes, head sizes, with and without gradient, with and without virtual tokens

# FlexAttention's form of a mask: batch, head, query and key to whether the query attends to the key.
Visible = Callable[[Tensor | None, Tensor | None, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that several rows may share."""

    size: int  # tokens
    parent: int  # index of the segment before it, -1 at the root
    position: int  # position of its first token in the row


def intervals(parents: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the pre-order number of each node, and the first number after those below it; parents come first."""
    size = [1] * len(parents)
    for node in reversed(range(len(parents))):
        if parents[node] >= 0:
            size[parents[node]] += size[node]
    enter: list[int] = []
    free = [0]  # the next number below a virtual root, then below each node
    for node, parent in enumerate(parents):
        enter.append(free[parent + 1])
        free[parent + 1] += size[node]
        free.append(enter[node] + 1)
    return enter, [first + count for first, count in zip(enter, size, strict=True)]


@dataclass(frozen=True, slots=True)
class SegmentMask:
    """The keys, K in all, that each of the N packed tokens attends to."""

    keys: Tensor  # [3, K] int32: interval of the token's segment, [enter, leave), and position in the row
    virtual: int  # V
    made: dict[tuple[bool, int | None], BlockMask] = field(default_factory=dict)  # by causal flag and window

    @classmethod
    def of(
        cls, segments: Sequence[Segment], starts: NDArray[np.int64], *, virtual: int, device: torch.device
    ) -> SegmentMask:
        """Return the mask of segments whose first tokens have these indices among the N."""
        order = starts.argsort()
        sizes = np.array([segment.size for segment in segments])[order]
        shift = [segment.position - start for segment, start in zip(segments, starts.tolist(), strict=True)]
        bounds = np.array([*intervals([segment.parent for segment in segments]), shift])[:, order]
        keys = np.empty((3, virtual + sizes.sum()), dtype=np.int32)
        keys[:, virtual:] = bounds.repeat(sizes, axis=1)
        keys[2, virtual:] += np.arange(sizes.sum(), dtype=np.int32)
        # Virtual tokens are above all segments, at negative positions: only distances count.
        keys[:, :virtual] = [[0] * virtual, [FAR] * virtual, range(-virtual, 0)]
        return cls(torch.from_numpy(keys).to(device), virtual)

    def visible(self, *, causal: bool, window: int | None) -> Visible:
        """Return the mask as a function; attention ends `window` tokens away."""
        # The kernel is compiled again if a size, offset or number changes: hence no views, and limits as tensors.
        enter, leave, position = (each.clone() for each in self.keys)
        own, own_position = (each[self.virtual :].clone() for each in (enter, position))
        end = FAR if window is None else window
        nearest, farthest = (enter.new_full((), limit) for limit in (0 if causal else 1 - end, end))

        def visible(_batch: Tensor | None, _head: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
            distance = own_position[q] - position[k]
            seen: Tensor = (enter[k] <= own[q]) & (own[q] < leave[k]) & (distance >= nearest) & (distance < farthest)
            return seen

        return visible

    def blocks(self, *, causal: bool, window: int | None) -> BlockMask:
        """Return the mask as FlexAttention takes it: made once, for all layers with this window."""
        if (causal, window) not in self.made:
            self.made[causal, window] = self._blocks(self.visible(causal=causal, window=window))
        return self.made[causal, window]

    def _blocks(self, visible: Visible) -> BlockMask:
        """Count visible pairs by block. torch's `create_block_mask` would hold all N * K pairs, as 4-byte distances."""
        keys = self.keys.shape[1]
        queries = keys - self.virtual
        every = torch.arange(-(-keys // BLOCK) * BLOCK, device=self.keys.device)
        counts = []
        for rows in every[: -(-queries // BLOCK) * BLOCK].split(MASKED_AT_ONCE):
            seen = visible(None, None, rows.clamp(max=queries - 1)[:, None], every.clamp(max=keys - 1))
            seen &= (rows < queries)[:, None] & (every < keys)
            counts.append(seen.view(len(rows) // BLOCK, BLOCK, -1, BLOCK).sum(dim=(1, 3)))
        count = torch.cat(counts)[None, None]  # [1, 1, blocks of N, blocks of K]
        full = count == BLOCK * BLOCK
        some, whole = (  # for each block of queries: the number of blocks of keys, and their indices first
            (each.sum(dim=-1, dtype=torch.int32), each.byte().argsort(dim=-1, descending=True, stable=True).int())
            for each in ((count > 0) & ~full, full)
        )
        return BlockMask.from_kv_blocks(*some, *whole, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(queries, keys))


@cache
def kernel() -> Callable[..., Tensor]:
    """Return FlexAttention, compiled for any number of tokens."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Beyond the limit it would run uncompiled and hold the scores of all pairs; with `fullgraph` that is an error.
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return compiled


@cache
def _capped(cap: float, device: torch.device) -> Callable[..., Tensor]:
    """Return FlexAttention's form of capped scores; the same function each time, so that it is compiled once."""
    limit = torch.full((), cap, device=device)

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _q: Tensor, _k: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    return capped


def flex_attend(states: Sequence[Tensor], mask: BlockMask, *, scale: float | None, cap: float | None) -> Tensor:
    """Compute attention [1, N, H, W] of query [1, H, N, W] to key and value [1, G, K, W], as in `capped_attention`."""
    kind = states[0].device.type
    width = states[0].shape[-1]
    # Under autocast, rotated queries and keys are float32 again; other kernels cast them by themselves.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states[2].dtype
    inputs = [state.to(dtype) for state in states]
    if width < MIN_WIDTH:
        inputs = [F.pad(state, (0, MIN_WIDTH - width)) for state in inputs]
    out = kernel()(
        *inputs,
        score_mod=None if cap is None else _capped(cap, states[0].device),
        block_mask=mask,
        scale=width**-0.5 if scale is None else scale,
        enable_gqa=states[0].shape[1] != states[1].shape[1],
        # The kernel for short queries has fewer cases, and would be compiled as well.
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    return out[..., : states[2].shape[-1]].transpose(1, 2)
