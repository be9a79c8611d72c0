"""Rows of unequal length in one line of tokens, whose keys and values lie elsewhere: nothing but attention is padded.

Letters: N tokens of all rows, B rows, T tokens of the longest, S columns looked at, H heads, G key heads, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ragged:
    """Where each of N tokens stands among B rows that are padded to T, and what it sees of S columns."""

    queries: Tensor  # [B, T] int64 index among the N tokens; padding repeats a row's first
    places: Tensor  # [N] int64 index into [B * T]
    seen: Tensor  # [B, T, S] int64, columns between a token and each column; below 0 lies what comes later

    @classmethod
    def of(cls, sizes: Sequence[int], starts: Sequence[int], *, device: torch.device) -> Ragged:
        """Rows of so many tokens each, the first of them in these columns."""
        longest, width = max(sizes), max(start + size for start, size in zip(starts, sizes, strict=True))
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
        """[1, N, H, W]: what tokens [1, H, N, W] read of their row's keys and values [B, G, S, W]."""
        seen = self.seen >= 0
        if window is not None:
            seen = seen & (self.seen < window)
        rows = query[0].transpose(0, 1)[self.queries].transpose(1, 2)  # [B, H, T, W]
        read = F.scaled_dot_product_attention(
            rows, key, value, attn_mask=seen[:, None], scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return read.transpose(1, 2).flatten(0, 1).index_select(0, self.places)[None]
