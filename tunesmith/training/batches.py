"""The rows of a run as micro-batches, step by step: of a single task (`Batches`) or of several (`MultitaskBatches`).

Every shuffle is a function of the seed and the epoch, so a resumed run gets the same batches. The rows of a step do not
depend on the number of processes either; each process makes micro-batches of its share of them.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tunesmith.config import Recipe
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
        """Return the micro-batches of one optimizer step as row indices, the longest rows first.

        Args:
            step: the step.
            world: the processes that share its rows; the micro-batches are those of this process.
        """
        return self.cut(self.step_rows(step), world)

    def cut(self, rows: Sequence[int], world: World = SINGLE) -> list[list[int]]:
        """Return the share of this process in some rows, the longest first, as micro-batches."""
        mine = [rows[i] for i in world.share([self.lengths[row] for row in rows])]
        return split_by_tokens(mine, self.lengths, self.tokens)


@lru_cache(maxsize=2)
def _order_of_epoch(sampler: Sampler, epoch: int) -> tuple[array[int], array[int]]:
    """Shuffle the rows, sort them by length within pools, cut them into steps and shuffle these.

    Returns:
        The rows in order, and where each step starts in them.
    """
    rng = random.Random(f"{sampler.seed}/{epoch}")
    order = _shuffled(rng, len(sampler.lengths))
    for start in range(0, len(order), sampler.rows * POOL):
        pool = slice(start, start + sampler.rows * POOL)
        order[pool] = array("i", sorted(order[pool], key=sampler.lengths.__getitem__))
    starts = array("i", range(0, len(order), sampler.rows))
    rng.shuffle(starts)
    return order, starts


def _shuffled(rng: random.Random, count: int) -> array[int]:
    """Return the indices of rows in random order: 4 bytes per row, where a list of integers takes 36."""
    order = array("i", range(count))
    rng.shuffle(order)
    return order


@dataclass(frozen=True, slots=True)
class Draw:
    """A micro-batch of one task: row indices, and the epoch of that task that they belong to."""

    task: int
    epoch: int
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The rows of each step of a multitask run: every task has epochs of its own and contributes by its share.

    A step has `rows` rows, give or take one for each task but the first, and at least one.
    """

    lengths: tuple[Sequence[int], ...]  # tokens of each row of each task
    shares: tuple[float, ...]  # of each task, in total 1
    rows: int  # per step, at least as many as tasks
    tokens: int  # per micro-batch
    seed: int

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
        """Return the micro-batches of one step, task by task, the longest rows first; none mixes two epochs.

        Args:
            step: the step.
            world: the processes that share its rows; the micro-batches are those of this process.
        """
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
def _task_order(seed: int, task: int, epoch: int, count: int) -> array[int]:
    """Shuffle the row indices of a task for one epoch."""
    return _shuffled(random.Random(f"{seed}/{task}/{epoch}"), count)


def tokens_of(recipe: Recipe) -> int:
    """Return the tokens of a micro-batch, before any out-of-memory error lowers them."""
    return TOKENS_PER_PASS if recipe.schedule.batch_tokens == "auto" else recipe.schedule.batch_tokens


def batches_of(prepared: TrainingContext, *, whole: bool = False) -> Batches | MultitaskBatches:
    """Return the training rows of a run as batches; `whole` as in `models.batch.pack`."""
    if SINGLE_TASK in prepared.tasks:
        return Batches(prepared, prepared.train, prepared.general, whole=whole)
    tasks = {name: Batches(task, task.train, whole=whole) for name, task in prepared.tasks.items()}
    return MultitaskBatches(prepared, tasks, tokens=tokens_of(prepared.recipe))


class Batches:
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
        sizes = [sizes_of(rows)[: self._own], longest]
        lengths = array("i", (size + recipe.objective.completion_budget for part in sizes for size in part))
        self.sampler = Sampler(lengths, recipe.schedule.batch_rows, tokens_of(recipe), recipe.seed)

    def of(
        self,
        indices: Sequence[int],
        epoch: int | str = HELD_OUT,
        *,
        pairs: Mapping[int, tuple[Tokens, ...]] | None = None,
    ) -> Batch:
        """Collate rows into one batch.

        Args:
            indices: indices of the rows.
            epoch: selects the general rows and the masked words.
            pairs: `mismatched` of all rows of their step; by default of these.
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

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps that use every row once."""
        return self.sampler.steps_per_epoch

    def widest(self, step: int) -> int:
        """Return rows times longest row of the largest micro-batch of a step, in tokens."""
        return max(len(rows) * self.sampler.lengths[rows[0]] for rows in self.sampler.window(step))

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

    def halve(self, step: int) -> int:
        """Limit micro-batches to half the tokens of the largest one of this step.

        Returns:
            The new limit; 0 if each micro-batch has one row already.
        """
        return self._halve(self.sampler.window(step, current_world()))

    def recompute(self, step: int) -> bool:
        """Return False: where these train alone, a head, nothing is kept inside of layers."""
        return False

    def halve_all(self) -> int:
        """Limit micro-batches as `halve` does, by the batches of `all`."""
        return self._halve(self.sampler.cut(self._longest_first(), current_world()))

    def at_once(self, tokens: int) -> None:
        """Limit the tokens of a micro-batch; a longer row is a micro-batch by itself."""
        self.sampler = replace(self.sampler, tokens=tokens)

    def _halve(self, batches: Sequence[Sequence[int]]) -> int:
        half = max((len(rows) * self.sampler.lengths[rows[0]] for rows in batches if len(rows) > 1), default=0) // 2
        if half:
            self.at_once(half)
        return half

    def _longest_first(self) -> list[int]:
        lengths = self.sampler.lengths
        return sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))


class MultitaskBatches:
    """The rows of several tasks as the micro-batches of each step; every micro-batch has rows of one task."""

    def __init__(self, prepared: TrainingContext, tasks: Mapping[str, Batches], *, tokens: int) -> None:
        self._tasks = dict(tasks)
        self.mixture = mixture_of(prepared, tokens=tokens)

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps that use as many rows as all tasks have."""
        return -(-sum(map(len, self.mixture.lengths)) // self.mixture.rows)

    def widest(self, step: int) -> int:
        """Return rows times longest row of the largest micro-batch of a step, in tokens."""
        return max(len(d.rows) * self.mixture.lengths[d.task][d.rows[0]] for d in self.mixture.window(step))

    def window(self, step: int) -> list[Batch]:
        """Return the micro-batches of one optimizer step: of several processes, those of this one."""
        tasks = list(self._tasks.items())
        pairs = {(d.task, d.epoch): tasks[d.task][1].mismatched(d.rows) for d in self.mixture.step_rows(step)}
        batches = []
        for draw in self.mixture.window(step, current_world()):
            name, rows = tasks[draw.task]
            batch = rows.of(draw.rows, draw.epoch, pairs=pairs[draw.task, draw.epoch])
            batches.append(replace(batch, task=name))
        return batches

    def halve(self, step: int) -> int:
        """Limit micro-batches to half the tokens of the largest one of this step.

        Returns:
            The new limit; 0 if each micro-batch has one row already.
        """
        lengths = self.mixture.lengths
        window = self.mixture.window(step, current_world())
        sizes = [len(draw.rows) * lengths[draw.task][draw.rows[0]] for draw in window if len(draw.rows) > 1]
        half = max(sizes, default=0) // 2
        if half:
            self.at_once(half)
        return half

    def at_once(self, tokens: int) -> None:
        """Limit the tokens of a micro-batch; a longer row is a micro-batch by itself."""
        self.mixture = replace(self.mixture, tokens=tokens)


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
