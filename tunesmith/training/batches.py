"""The rows of a run as micro-batches, step by step: of one task, or of several by their shares."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tunesmith.config import Recipe
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.models.batch import TOKENS_PER_PASS, Batch, collate, split_by_tokens
from tunesmith.objectives import Multitask
from tunesmith.training.prepare import TrainingContext, masking_of


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


# The pass whose hidden words rows have outside training: the same ones at each validation.
HELD_OUT = "held out"


def tokens_of(recipe: Recipe) -> int:
    """Tokens that run at once, as long as memory holds them."""
    return TOKENS_PER_PASS if recipe.schedule.batch_tokens == "auto" else recipe.schedule.batch_tokens


def parts_of(prepared: TrainingContext) -> dict[str, Batches]:
    """The training rows of each of several tasks."""
    return {name: Batches(part, part.train) for name, part in prepared.parts.items()}


def batches_of(prepared: TrainingContext) -> Batches | MultitaskBatches:
    """The training rows of a run, of one task or of several."""
    if not prepared.parts:
        return Batches(prepared, prepared.train, prepared.general)
    return MultitaskBatches(prepared, parts_of(prepared), tokens=tokens_of(prepared.recipe))


class Batches:
    """Encoded rows of one task as the batches of each step; `general` stands for the last rows, anew in each pass."""

    def __init__(
        self, prepared: TrainingContext, rows: Sequence[Encoded], general: Sequence[Sequence[Encoded]] = ()
    ) -> None:
        recipe = prepared.recipe
        self._rows = rows
        self._general = general
        self._share = prepared.base.family == "decoder"
        self._masking = masking_of(recipe.objective, prepared.template, recipe.seed)
        # Answers that are still to be drawn take their room too.
        drawn = recipe.objective.completion_budget
        lengths = tuple(row.size + drawn for row in self._longest(rows))
        self.sampler = Sampler(lengths, recipe.schedule.batch_rows, tokens_of(recipe), recipe.seed)

    def of(self, numbers: Sequence[int], turn: int | str = HELD_OUT) -> Batch:
        """These rows as one batch; words are hidden as the turn, a pass over the rows, hides them."""
        rows = [self._row(i, turn) for i in numbers]
        if self._masking is not None:
            rows = [self._masking.hide(row, turn) for row in rows]
        return collate(rows, share=self._share)

    def _row(self, number: int, turn: int | str) -> Encoded:
        """A row as this pass has it: general rows are others in each."""
        own = len(self._rows) - len(self._general[0]) if self._general else len(self._rows)
        if number < own or not isinstance(turn, int):
            return self._rows[number]
        return self._general[turn % len(self._general)][number - own]

    def _longest(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """For each row the longest that ever stands in its place."""
        places = zip(*self._general, strict=True)
        own = rows[: len(rows) - len(self._general[0])] if self._general else rows
        return [*own, *(max(place, key=lambda row: row.size) for place in places)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every row once."""
        return self.sampler.steps_per_epoch

    def widest(self, step: int) -> int:
        """Rows times longest row of the largest micro-batch of this step."""
        return max(len(rows) * self.sampler.lengths[rows[0]] for rows in self.sampler.window(step))

    def window(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step."""
        turn = step // self.sampler.steps_per_epoch
        return [replace(self.of(numbers, turn), step=step) for numbers in self.sampler.window(step)]

    def halve(self, step: int) -> int:
        """Half the tokens that the largest micro-batch of this step takes, the bound from now on; 0 for lone rows."""
        return self._halve(self.sampler.window(step))

    def halve_all(self) -> int:
        """The same of the micro-batches of all rows."""
        return self._halve(self._all())

    def _halve(self, batches: Sequence[Sequence[int]]) -> int:
        half = max((len(rows) * self.sampler.lengths[rows[0]] for rows in batches if len(rows) > 1), default=0) // 2
        if half:
            self.at_once(half)
        return half

    def at_once(self, tokens: int) -> None:
        """Run no more than so many tokens at once, a row alone apart."""
        self.sampler = replace(self.sampler, tokens=tokens)

    def all(self) -> list[Batch]:
        """Every row once, batches of like length."""
        return [self.of(numbers) for numbers in self._all()]

    def _all(self) -> list[list[int]]:
        lengths = self.sampler.lengths
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        return split_by_tokens(order, lengths, self.sampler.tokens)


class MultitaskBatches:
    """The rows of several tasks as the micro-batches of each step."""

    def __init__(self, prepared: TrainingContext, parts: Mapping[str, Batches], *, tokens: int) -> None:
        assert isinstance(prepared.recipe.objective, Multitask)
        self._learner = prepared.recipe.objective.make_learner()
        self._parts = dict(parts)
        self.mixture = mixture_of(prepared, tokens=tokens)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see as many rows as all tasks have."""
        return -(-sum(map(len, self.mixture.lengths)) // self.mixture.rows)

    def widest(self, step: int) -> int:
        """Rows times longest row of the largest micro-batch of this step."""
        return max(len(d.rows) * self.mixture.lengths[d.task][d.rows[0]] for d in self.mixture.window(step))

    def window(self, step: int) -> list[Batch]:
        """The micro-batches of one optimizer step, each with what its loss counts."""
        names = list(self._parts)
        drawn = [(names[draw.task], draw) for draw in self.mixture.window(step)]
        batches = [replace(self._parts[name].of(draw.rows, draw.turn), task=name) for name, draw in drawn]
        return self._learner.scaled(batches)

    def halve(self, step: int) -> int:
        """Half the tokens that the largest micro-batch of this step takes, the bound from now on; 0 for lone rows."""
        lengths = self.mixture.lengths
        window = self.mixture.window(step)
        sizes = [len(draw.rows) * lengths[draw.task][draw.rows[0]] for draw in window if len(draw.rows) > 1]
        half = max(sizes, default=0) // 2
        if half:
            self.at_once(half)
        return half

    def at_once(self, tokens: int) -> None:
        """Run no more than so many tokens at once, a row alone apart."""
        self.mixture = replace(self.mixture, tokens=tokens)


def mixture_of(prepared: TrainingContext, *, tokens: int) -> Mixture:
    """Which rows each step of a run takes."""
    recipe = prepared.recipe
    assert isinstance(recipe.objective, Multitask)
    sizes = {name: len(part.train) for name, part in prepared.parts.items()}
    return Mixture(
        lengths=tuple(tuple(row.size for row in part.train) for part in prepared.parts.values()),
        shares=tuple(recipe.objective.shares(sizes).values()),
        rows=recipe.schedule.batch_rows,
        tokens=tokens,
        seed=recipe.seed,
    )
