"""Attention of rows of unequal length whose keys and values are in a slot cache: only attention pads, nothing else.

Letters: N tokens of all rows, B rows, T tokens of the longest, S cache columns attended to, H query heads, G key heads,
W head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RaggedAttention:
    """Index of N concatenated tokens among B rows padded to T, and the S columns each attends to."""

    queries: Tensor  # [B, T] int64 index among the N tokens; padding repeats a row's first
    flat_index: Tensor  # [N] int64 index into [B * T]
    distance: Tensor  # [B, T, S] int64, columns between a token and each column; negative for later tokens

    @classmethod
    def of(cls, sizes: Sequence[int], starts: Sequence[int], *, device: torch.device) -> RaggedAttention:
        """Return the index of rows with these `sizes` in tokens, whose first tokens are in these columns."""
        longest = max(sizes)
        width = max(start + size for start, size in zip(starts, sizes, strict=True))
        step = torch.arange(longest)
        own = torch.tensor(sizes)[:, None]
        inside = torch.where(step < own, step, 0)  # [B, T]
        first = torch.tensor(sizes).cumsum(0)[:, None] - own
        columns = torch.tensor(starts)[:, None] + inside
        return cls(
            (first + inside).to(device),
            torch.nonzero((step < own).flatten())[:, 0].to(device),
            (columns[:, :, None] - torch.arange(width)).to(device),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, window: int | None, scale: float | None) -> Tensor:
        """Compute attention [1, N, H, W] of tokens [1, H, N, W] to their rows' keys and values [B, G, S, W]."""
        visible = self.distance >= 0
        if window is not None:
            visible = visible & (self.distance < window)
        rows = query[0].transpose(0, 1)[self.queries].transpose(1, 2)  # [B, H, T, W]
        out = F.scaled_dot_product_attention(
            rows, key, value, attn_mask=visible[:, None], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.flat_index)[None]
