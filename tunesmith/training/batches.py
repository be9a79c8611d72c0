"""The rows of a run as micro-batches, step by step: of a single task (`Batches`) or of several (`MultitaskBatches`).

Every shuffle is a function of the seed and the epoch, so a resumed run gets the same batches. The rows of a step do not
depend on the number of processes either; each process makes micro-batches of its share of them.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import nsmallest
from itertools import chain
from typing import Any, cast

from tunesmith.config import Recipe
from tunesmith.data.stored import array_of
from tunesmith.data.tokenization.token_store import sizes_of
from tunesmith.data.tokenization.tokens import Encoded, Tokens
from tunesmith.models.batch import TOKENS_PER_PASS, Batch, collate, mismatched, split_by_tokens
from tunesmith.models.world import World, current_world
from tunesmith.objectives.base import SINGLE_TASK
from tunesmith.training.prepare import TrainingContext, masking_of

# Steps whose rows are sorted by length together: enough for rows of similar length in a step. With fewer steps per
# epoch than that, all epochs have the same batches in another order; the short step of a pool has its longest rows.
POOL = 16

# The epoch that masks words outside training: the same words at every validation.
HELD_OUT = "held out"
SINGLE = World()


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """The row indices of each optimizer step, cut into micro-batches of similar length.

    Compared by identity, so that the cache of epochs need not hash all lengths.
    """

    lengths: Sequence[int]  # tokens of each row
    rows: int  # per optimizer step
    tokens: int  # per micro-batch, padding included
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps that use every row once."""
        return -(-len(self.lengths) // self.rows)

    def step_rows(self, step: int) -> list[int]:
        """Return the row indices of one optimizer step, the longest rows first."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order, starts = _order_of_epoch(self, epoch)
        chosen = order[starts[index] : starts[index] + self.rows]
        return sorted(chosen, key=lambda row: (-self.lengths[row], row))

    def window(self, step: int, world: World = SINGLE) -> list[list[int]]:
        """Return the micro-batches of this process in one step as row indices, the longest rows first."""
        return self.cut(self.step_rows(step), world)

    def padded(self, rows: Sequence[int]) -> int:
        """Return the tokens of a micro-batch, each row counted with the length of the longest."""
        return len(rows) * self.lengths[rows[0]]

    def cut(self, rows: Sequence[int], world: World = SINGLE) -> list[list[int]]:
        """Return the share of this process in some rows, the longest first, as micro-batches."""
        mine = [rows[i] for i in world.share([self.lengths[row] for row in rows])]
        return split_by_tokens(mine, self.lengths, self.tokens)


@lru_cache(maxsize=2)
def _order_of_epoch(sampler: Sampler, epoch: int) -> tuple[memoryview, memoryview]:
    """Shuffle the rows, sort them by length within pools, cut them into steps and shuffle these.

    Returns:
        The rows in order, and where each step starts in them.
    """
    rng = random.Random(f"{sampler.seed}/{epoch}")
    order = _shuffled(rng, range(len(sampler.lengths)))
    for start in range(0, len(order), sampler.rows * POOL):
        pool = slice(start, start + sampler.rows * POOL)
        by_length = sorted(order[pool], key=sampler.lengths.__getitem__)
        order[pool] = array_of(len(by_length), "<i4", by_length).data
    return order, _shuffled(rng, range(0, len(order), sampler.rows))


def _shuffled(rng: random.Random, numbers: range) -> memoryview:
    """Return integers in random order: 4 bytes for each, where a list of integers takes 36."""
    order = array_of(len(numbers), "<i4", numbers).data
    rng.shuffle(cast(MutableSequence[int], order))
    return order


@dataclass(frozen=True, slots=True)
class Draw:
    """A micro-batch of one task: row indices, and the epoch of that task that they belong to."""

    task: int
    epoch: int
    rows: list[int]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The rows of each step of a multitask run: every task has separate epochs and contributes by its share.

    A step has `rows` rows, give or take one for each task but the first, and at least one.
    """

    lengths: tuple[Sequence[int], ...]  # tokens of each row of each task
    shares: tuple[float, ...]  # of each task, in total 1
    rows: int  # per step, at least as many as tasks
    tokens: int  # per micro-batch
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps that use as many rows as all tasks have."""
        return -(-sum(map(len, self.lengths)) // self.rows)

    def padded(self, draw: Draw) -> int:
        """Return the tokens of a micro-batch, each row counted with the length of the longest."""
        return len(draw.rows) * self.lengths[draw.task][draw.rows[0]]

    def drawn(self, task: int, step: int) -> int:
        """Return the rows of a task used before this step; tasks alternate if a share is below one row."""
        return math.floor(self.shares[task] * self.rows * step + (task + 0.5) / len(self.shares))

    def step_rows(self, step: int) -> list[Draw]:
        """Return the rows of one step, task by task and epoch by epoch, the longest rows first."""
        draws = []
        for task, lengths in enumerate(self.lengths):
            epochs: dict[int, list[int]] = {}
            for position in range(self.drawn(task, step), self.drawn(task, step + 1)):
                epoch, index = divmod(position, len(lengths))
                epochs.setdefault(epoch, []).append(_task_order(self.seed, task, epoch, len(lengths))[index])
            draws += [
                Draw(task, epoch, sorted(rows, key=lambda row: (-lengths[row], row))) for epoch, rows in epochs.items()
            ]
        return draws

    def window(self, step: int, world: World = SINGLE) -> list[Draw]:
        """Return the micro-batches of this process in one step, task by task; none mixes two epochs."""
        draws = self.step_rows(step)
        chosen = set(world.share([self.lengths[draw.task][row] for draw in draws for row in draw.rows]))
        batches, first = [], 0
        for draw in draws:
            mine = [row for i, row in enumerate(draw.rows, first) if i in chosen]
            first += len(draw.rows)
            parts = split_by_tokens(mine, self.lengths[draw.task], self.tokens)
            batches += [Draw(draw.task, draw.epoch, part) for part in parts]
        return batches


@lru_cache(maxsize=32)
def _task_order(seed: int, task: int, epoch: int, count: int) -> memoryview:
    """Shuffle the row indices of a task for one epoch."""
    return _shuffled(random.Random(f"{seed}/{task}/{epoch}"), range(count))


def tokens_of(recipe: Recipe) -> int:
    """Return the tokens of a micro-batch, before any out-of-memory error lowers them."""
    return TOKENS_PER_PASS if recipe.schedule.batch_tokens == "auto" else recipe.schedule.batch_tokens


def batches_of(prepared: TrainingContext, *, whole: bool = False) -> StepBatches:
    """Return the training rows of a run as batches; `whole` as in `models.batch.pack`."""
    if SINGLE_TASK in prepared.tasks:
        return Batches(prepared, prepared.train, prepared.general, whole=whole)
    tasks = {name: Batches(task, task.train, whole=whole) for name, task in prepared.tasks.items()}
    return MultitaskBatches(prepared, tasks, tokens=tokens_of(prepared.recipe))


class StepBatches(ABC):
    """The rows of a run as the micro-batches of each step, and the limit of tokens of a micro-batch."""

    sampler: Sampler | Mixture

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of one epoch."""
        return self.sampler.steps_per_epoch

    @abstractmethod
    def window(self, step: int) -> list[Batch]:
        """Return the micro-batches of one optimizer step: of several processes, those of this one."""

    @abstractmethod
    def largest(self, tokens: int) -> Batch:
        """Return the longest rows in one micro-batch of at most `tokens` tokens, and at most the rows of a step."""

    def widest(self, step: int) -> int:
        """Return rows times longest row of the largest micro-batch of a step, in tokens."""
        parts: list[Any] = [*self.sampler.window(step)]
        return max(map(self.sampler.padded, parts))

    def halve(self, step: int) -> int:
        """Limit micro-batches to half the tokens of the largest of a step; return 0 if each has one row already."""
        return self._halve(self.sampler.window(step, current_world()))

    def at_once(self, tokens: int) -> None:
        """Limit the tokens of a micro-batch; a longer row is a micro-batch by itself."""
        self.sampler = replace(self.sampler, tokens=tokens)

    def _halve(self, parts: Iterable[Any]) -> int:
        half = max((self.sampler.padded(part) for part in parts if len(part) > 1), default=0) // 2
        if half:
            self.at_once(half)
        return half


class Batches(StepBatches):
    """Encoded rows of one task as the micro-batches of each step.

    Args:
        prepared: the context of the task.
        rows: its training or validation rows.
        general: general rows of each epoch, which replace the last rows, for replay.
        whole: run every token of a row, as `models.batch.pack` does.
    """

    def __init__(
        self,
        prepared: TrainingContext,
        rows: Sequence[Encoded],
        general: Sequence[Sequence[Encoded]] = (),
        *,
        whole: bool = False,
    ) -> None:
        recipe = prepared.recipe
        self._rows = rows
        self._general = general
        self._own = len(rows) - len(general[0]) if general else len(rows)  # rows that are the same in every epoch
        self._share = prepared.base.family == "decoder"
        self._whole = whole
        self._masking = masking_of(recipe.objective, prepared.template, recipe.seed)
        # An objective that needs the reference at every step, but samples nothing, compares with other completions.
        objective = recipe.objective
        self._mismatches = objective.reference == "per_step" and not objective.samples_completions
        # The longest row that any epoch has at an index, and the completions that are sampled for it.
        longest = [max(row.size for row in choices) for choices in zip(*general, strict=True)]
        budget = recipe.objective.completion_budget
        sizes = (size + budget for size in chain(sizes_of(rows)[: self._own], longest))
        lengths = array_of(len(rows), "<i4", sizes).data
        self.sampler: Sampler = Sampler(lengths, recipe.schedule.batch_rows, tokens_of(recipe), recipe.seed)

    def of(
        self,
        indices: Sequence[int],
        epoch: int | str = HELD_OUT,
        *,
        pairs: Mapping[int, tuple[Tokens, ...]] | None = None,
    ) -> Batch:
        """Collate rows into one batch, with the general rows and the masked words of an epoch.

        `pairs` are `mismatched` of all rows of their step; by default of these.
        """
        if isinstance(epoch, int) and self._general:
            general = self._general[epoch % len(self._general)]
            rows = [self._rows[i] if i < self._own else general[i - self._own] for i in indices]
        else:
            rows = [self._rows[i] for i in indices]
        if self._masking is not None:
            rows = [self._masking.hide(row, epoch) for row in rows]
        batch = collate(rows, share=self._share, whole=self._whole)
        if not self._mismatches:
            return batch
        pairs = self.mismatched(indices) if pairs is None else pairs
        return replace(batch, mismatched=tuple(tokens for i in indices for tokens in pairs[i]))

    def mismatched(self, rows: Sequence[int]) -> dict[int, tuple[Tokens, ...]]:
        """Return the rows of one step with the completions of others, by row; empty if no loss compares with them."""
        pairs = mismatched([self._rows[i] for i in rows]) if self._mismatches else []
        return dict(zip(rows, pairs, strict=False))

    def window(self, step: int) -> list[Batch]:
        """Return the micro-batches of one optimizer step: of several processes, those of this one."""
        epoch, rows = step // self.sampler.steps_per_epoch, self.sampler.step_rows(step)
        pairs = self.mismatched(rows)
        parts = self.sampler.cut(rows, current_world())
        return [replace(self.of(part, epoch, pairs=pairs), step=step) for part in parts]

    def all(self) -> list[Batch]:
        """Return every row once, in batches of similar length: of several processes, the share of this one."""
        return self.micro_batches(self._longest_first(), current_world())

    def micro_batches(self, rows: Sequence[int], world: World = SINGLE) -> list[Batch]:
        """Return some rows, the longest first, in batches: of several processes, the share of this one."""
        pairs = self.mismatched(rows)
        return [self.of(part, pairs=pairs) for part in self.sampler.cut(rows, world)]

    def recompute(self, step: int) -> bool:
        """Return False: where these train alone, a head, nothing is kept inside of layers."""
        return False

    def largest(self, tokens: int) -> Batch:
        """Return the longest rows in one micro-batch of at most `tokens` tokens, and at most the rows of a step."""
        lengths = self.sampler.lengths
        rows = nsmallest(self.sampler.rows, range(len(lengths)), key=lambda row: (-lengths[row], row))
        return self.of(split_by_tokens(rows, lengths, tokens)[0], 0)

    def halve_all(self) -> int:
        """Limit micro-batches as `halve` does, by the batches of `all`."""
        return self._halve(self.sampler.cut(self._longest_first(), current_world()))

    def _longest_first(self) -> list[int]:
        lengths = self.sampler.lengths
        return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


class MultitaskBatches(StepBatches):
    """The rows of several tasks as the micro-batches of each step; every micro-batch has rows of one task."""

    def __init__(self, prepared: TrainingContext, tasks: Mapping[str, Batches], *, tokens: int) -> None:
        self._tasks = dict(tasks)
        self.sampler: Mixture = mixture_of(prepared, tokens=tokens)

    def window(self, step: int) -> list[Batch]:
        """Return the micro-batches of one optimizer step: of several processes, those of this one."""
        tasks = list(self._tasks.items())
        pairs = {(d.task, d.epoch): tasks[d.task][1].mismatched(d.rows) for d in self.sampler.step_rows(step)}
        batches = []
        for draw in self.sampler.window(step, current_world()):
            name, rows = tasks[draw.task]
            batch = rows.of(draw.rows, draw.epoch, pairs=pairs[draw.task, draw.epoch])
            batches.append(replace(batch, task=name))
        return batches

    def largest(self, tokens: int) -> Batch:
        """Return the largest micro-batch of one task, as `Batches.largest` does."""
        found = [replace(rows.largest(tokens), task=name) for name, rows in self._tasks.items()]
        return max(found, key=lambda batch: batch.forward_tokens)


def mixture_of(prepared: TrainingContext, *, tokens: int) -> Mixture:
    """Return which rows each step of a multitask run uses, in micro-batches of at most `tokens` tokens."""
    recipe = prepared.recipe
    shares = recipe.objective.task_shares({name: len(task.train) for name, task in prepared.tasks.items()})
    return Mixture(
        lengths=tuple(sizes_of(task.train) for task in prepared.tasks.values()),
        shares=tuple(shares.values()),
        rows=recipe.schedule.batch_rows,
        tokens=tokens,
        seed=recipe.seed,
    )
