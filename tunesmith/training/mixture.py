"""Which rows of several tasks a step sees: a pure function of (seed, step), so that resuming needs no replay."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from tunesmith.model.batch import split_by_tokens


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows of one task that run at once; `turn` is the pass over the task's rows that they belong to."""

    task: int
    turn: int
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Each task's rows in its own shuffled passes; a step takes from each what its share has come to.

    A step has `rows` rows, give or take one for each task but the first, and at least one.
    """

    lengths: tuple[tuple[int, ...], ...]  # of each task's rows
    shares: tuple[float, ...]  # of each task, together 1
    rows: int  # per step, no fewer than there are tasks
    tokens: int  # per micro-batch
    seed: int

    def drawn(self, task: int, step: int) -> int:
        """How many rows of a task the steps before this one took; tasks come by turns where a share is below a row."""
        return math.floor(self.shares[task] * self.rows * step + (task + 0.5) / len(self.shares))

    def window(self, step: int) -> list[Draw]:
        """The micro-batches of one step, task by task, the longest rows first."""
        return [draw for task in range(len(self.shares)) for draw in self._of(task, step)]

    def _of(self, task: int, step: int) -> list[Draw]:
        """A task's micro-batches; rows of two passes stay apart."""
        lengths = self.lengths[task]
        turns: dict[int, list[int]] = {}
        for place in range(self.drawn(task, step), self.drawn(task, step + 1)):
            turn, at = divmod(place, len(lengths))
            turns.setdefault(turn, []).append(_order(self.seed, task, turn, len(lengths))[at])
        found = []
        for turn, rows in turns.items():
            longest_first = sorted(rows, key=lambda row: (-lengths[row], row))
            found += [Draw(task, turn, batch) for batch in split_by_tokens(longest_first, lengths, self.tokens)]
        return found


@lru_cache(maxsize=32)
def _order(seed: int, task: int, turn: int, count: int) -> list[int]:
    """A task's rows in the order of one pass."""
    order = list(range(count))
    random.Random(f"{seed}/{task}/{turn}").shuffle(order)
    return order
