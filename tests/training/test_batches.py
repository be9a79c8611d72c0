"""Which rows a step sees."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from tunesmith.models.batch import split_by_tokens
from tunesmith.training.batches import POOL, Sampler

LENGTHS = tuple(random.Random(0).choices(range(5, 201), k=403))


def windows(sampler: Sampler, epoch: int = 0) -> list[list[int]]:
    """The rows of each step of an epoch."""
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    return [[row for batch in sampler.window(step) for row in batch] for step in steps]


@pytest.mark.parametrize(("rows", "count"), [(403, 16), (16, 16), (5, 16), (33, 16), (403, 1), (256, 16)])
def test_every_row_is_seen_once_in_every_epoch(rows: int, count: int):
    sampler = Sampler(LENGTHS[:rows], count, 10_000, seed=0)
    assert sampler.steps_per_epoch == -(-rows // count)
    for epoch in range(3):
        found = windows(sampler, epoch)
        assert sorted(row for window in found for row in window) == list(range(rows))
        assert all(len(window) <= count for window in found)
        assert sum(len(window) < count for window in found) == (rows % count > 0)


def test_a_window_is_a_function_of_seed_and_step_alone():
    one, same = Sampler(LENGTHS, 16, 1000, seed=3), Sampler(LENGTHS, 16, 1000, seed=3)
    forwards = [one.window(step) for step in range(60)]
    backwards = [same.window(step) for step in reversed(range(60))]
    assert forwards == backwards[::-1]
    assert Sampler(LENGTHS, 16, 1000, seed=4).window(0) != one.window(0)


def test_epochs_differ():
    sampler = Sampler(LENGTHS, 16, 1000, seed=0)
    assert windows(sampler, 0) != windows(sampler, 1)


def test_rows_of_a_step_are_alike_in_length_and_steps_are_in_no_order_of_length():
    alike = Sampler(LENGTHS, 16, 10_000, seed=0)
    spread = mean(max(LENGTHS[r] for r in rows) - min(LENGTHS[r] for r in rows) for rows in windows(alike))
    assert spread < (max(LENGTHS) - min(LENGTHS)) / 4
    means = [mean(LENGTHS[row] for row in rows) for rows in windows(alike)]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_rows_are_alike_only_within_a_pool_so_that_windows_stay_random():
    lengths = tuple(range(4 * POOL * 2))  # two pools of windows of four rows
    first = {frozenset(rows) for rows in windows(Sampler(lengths, 4, 10_000, seed=0), 0)}
    second = {frozenset(rows) for rows in windows(Sampler(lengths, 4, 10_000, seed=0), 1)}
    assert len(first & second) < 4


def test_the_longest_rows_come_first_and_a_batch_stays_within_its_tokens():
    sampler = Sampler(LENGTHS, 16, 400, seed=0)
    for step in range(sampler.steps_per_epoch):
        batches = sampler.window(step)
        flat = [LENGTHS[row] for batch in batches for row in batch]
        assert flat == sorted(flat, reverse=True)
        assert all(len(batch) * LENGTHS[batch[0]] <= 400 for batch in batches)


def test_rows_are_cut_where_padding_to_the_longest_would_exceed_the_tokens():
    lengths = [10, 6, 5, 5, 2]
    assert split_by_tokens(range(5), lengths, 20) == [[0, 1], [2, 3, 4]]  # 3 x 10 > 20; 3 x 5 <= 20
    assert split_by_tokens(range(5), lengths, 4) == [[0], [1], [2], [3], [4]]  # a row alone may exceed it
    assert split_by_tokens(range(5), lengths, 1000) == [[0, 1, 2, 3, 4]]
    assert split_by_tokens([], lengths, 10) == []


def test_a_window_of_many_rows_does_not_look_at_all_their_lengths():
    class Lengths(tuple[int, ...]):
        def __hash__(self) -> int:
            raise AssertionError("all lengths were looked at")

        def __eq__(self, other: object) -> bool:
            raise AssertionError("all lengths were looked at")

    sampler = Sampler(Lengths(LENGTHS), 16, 1000, seed=3)
    assert sampler.window(3) == Sampler(LENGTHS, 16, 1000, seed=3).window(3)
