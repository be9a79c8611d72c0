"""Encoded rows to tensors. Letters: B rows, T tokens of the longest tail, P tokens of the shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tunesmith.data.template import Encoded, Tokens

# A second, smaller pass through the network costs about this many tokens' worth of time (bench/NOTES.md).
WORTH_SHARING = 96


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one micro-batch, padded on the right, with what they share taken out in front."""

    ids: Tensor  # [B, T] int64, without the prefix
    learn: Tensor  # [B, T] bool, False on padding
    real: Tensor  # [B, T] bool, False on padding
    prefix: Tensor | None = None  # [P] int64, the ids that every row begins with
    labels: Tensor | None = None  # [B, K] float, what a head of the objective's own is to say

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding left out, a shared prefix counted once per row: what a user calls tokens."""
        return int(self.real.sum()) + len(self.ids) * (0 if self.prefix is None else len(self.prefix))

    @property
    def computed(self) -> int:
        """Tokens that pass through the network: a shared prefix counted once, padding counted."""
        return self.ids.numel() + (0 if self.prefix is None else len(self.prefix))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            ids=self.ids.to(device),
            learn=self.learn.to(device),
            real=self.real.to(device),
            prefix=None if self.prefix is None else self.prefix.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )


def collate(rows: Sequence[Encoded], *, pad: int, share: bool = True) -> Batch:
    """A batch of single-sequence rows; `share` takes out what all rows begin with where that pays."""
    sequences = [row.sequences[0] for row in rows]
    shared = shared_prefix(sequences) if share else 0
    if shared * (len(rows) - 1) < WORTH_SHARING:
        shared = 0
    width = max(len(tokens.ids) for tokens in sequences) - shared
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    learn = torch.zeros(len(rows), width, dtype=torch.bool)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(sequences):
        size = len(tokens.ids) - shared
        ids[row, :size] = torch.tensor(tokens.ids[shared:])
        learn[row, :size] = torch.tensor(tokens.learn[shared:])
        real[row, :size] = True
    prefix = torch.tensor(sequences[0].ids[:shared]) if shared else None
    labels = torch.tensor([row.label for row in rows]) if rows[0].label else None
    return Batch(ids, learn, real, prefix, labels)


def shared_prefix(sequences: Sequence[Tokens]) -> int:
    """Number of leading ids common to all rows, one short of each row's first learned id and of its end.

    The token before the first target must stay in the row: its state predicts that target.
    """
    first = sequences[0].ids
    limit = min(_last_context(tokens) for tokens in sequences)
    for position in range(limit):
        if any(tokens.ids[position] != first[position] for tokens in sequences):
            return position
    return limit


def _last_context(tokens: Tokens) -> int:
    """Largest prefix that may be cut off this row."""
    first_learned = tokens.learn.index(True) if True in tokens.learn else len(tokens.ids)
    return max(0, min(first_learned, len(tokens.ids)) - 1)
