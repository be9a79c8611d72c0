"""Dropout on a CPU with masks of 16 random bits per element.

`Tensor.bernoulli_` runs on one thread and takes 10 ns per element; a mask of raw bits of SFC64 takes a tenth of that
(bench/NOTES.md). A mask is made again in the backward pass instead of being kept. Each has a seed from torch's
generator, so it repeats with torch's seed.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # a probability is rounded to a multiple of 1 / LEVELS


class Masks:
    """A stream of dropout masks for one probability; the same seed and shapes have the same masks."""

    def __init__(self, probability: float, seed: int) -> None:
        self._dropped = min(round(probability * LEVELS), LEVELS - 1)
        self._scale = LEVELS / (LEVELS - self._dropped)  # of the values that are kept
        self._bits = np.random.SFC64(seed)

    def next(self, like: Tensor) -> Tensor:
        """Return the next mask, of the shape and dtype of `like`: 1 where a value is kept, otherwise 0."""
        size = like.numel()
        bits = torch.from_numpy(self._bits.random_raw(-(-size // 4))).view(torch.int16)[:size]
        mask = torch.empty(like.shape, dtype=like.dtype)
        # Written in this dtype at once: `where` with a bool mask takes six times as long as a product.
        torch.ge(bits.view(mask.shape), self._dropped - LEVELS // 2, out=mask)
        return mask

    def apply(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the values that a mask keeps, scaled, and zeros."""
        return (values * mask).mul_(self._scale)


def draw_seed() -> int:
    """Return a seed from torch's generator."""
    return int(torch.empty((), dtype=torch.int64).random_())


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        ctx.how = probability, draw_seed()
        masks = Masks(*ctx.how)
        return masks.apply(x, masks.next(x))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        masks = Masks(*ctx.how)
        return masks.apply(grads[0], masks.next(grads[0])), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` whose masks on a CPU are those of this file."""

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        if not (self.training and x.is_cpu and 0 < self.p < 1):
            return super().forward(x)
        return cast(Tensor, _Dropout.apply(x, self.p))  # type: ignore[no-untyped-call]


def install(network: nn.Module) -> None:
    """Replace the dropout of a network, in place."""
    for module in network.modules():
        if type(module) is nn.Dropout and not module.inplace:
            module.__class__ = FastDropout
