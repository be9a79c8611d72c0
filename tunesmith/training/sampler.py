"""Which rows a step sees: a pure function of (seed, epoch, step), so that resuming needs no replay."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.model.batch import split_by_tokens

# Windows whose rows are sorted by length together: enough to make rows of a window alike in length. Where there are no
# more windows than that, all epochs have the same in another order; the short window of a pool has its longest rows.
POOL = 16


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Windows of row numbers, one window per optimizer step, cut into micro-batches of like length.

    A sampler equals only itself: to remember its epochs, nobody has to look at all lengths.
    """

    lengths: tuple[int, ...]
    rows: int  # per optimizer step
    tokens: int  # per micro-batch, padding included
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every row once."""
        return -(-len(self.lengths) // self.rows)

    def window(self, step: int) -> list[list[int]]:
        """Micro-batches of row numbers for one optimizer step, the longest rows first."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = sorted(_epoch(self, epoch)[place], key=lambda row: (-self.lengths[row], row))
        return split_by_tokens(rows, self.lengths, self.tokens)


@lru_cache(maxsize=2)
def _epoch(sampler: Sampler, epoch: int) -> list[list[int]]:
    """All windows of one epoch: shuffled rows, sorted by length within pools, windows shuffled again."""
    chance = random.Random(f"{sampler.seed}/{epoch}")
    order = list(range(len(sampler.lengths)))
    chance.shuffle(order)
    windows = []
    for start in range(0, len(order), sampler.rows * POOL):
        pool = sorted(order[start : start + sampler.rows * POOL], key=lambda row: sampler.lengths[row])
        windows += [pool[first : first + sampler.rows] for first in range(0, len(pool), sampler.rows)]
    chance.shuffle(windows)
    return windows
