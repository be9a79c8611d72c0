"""What questions begin with: found again, kept within its memory, forgotten with its run."""

from __future__ import annotations

import torch

from tunesmith.inference.serving.prefix_cache import PrefixCache, alike
from tunesmith.inference.serving.traffic_split import Splits


def past(columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One layer of one head of width one: 8 bytes a column; the number of a column is its value."""
    numbers = torch.arange(columns, dtype=torch.float32).view(1, 1, columns, 1)
    return [(numbers, numbers)]


def test_the_longest_known_beginning_is_found_and_never_the_whole_question():
    kept = PrefixCache(10_000)
    kept.keep(1, range(20), past(20))
    kept.keep(1, [*range(12), 99], past(13))
    size, found = kept.find(1, [*range(15), 50, 51])
    assert (size, found[0][0].shape[2]) == (15, 15)
    assert kept.find(1, range(20))[0] == 19
    assert kept.find(2, range(20)) == (0, ())  # another run's
    assert kept.find(1, range(5)) == (0, ())  # too short to be worth it


def test_virtual_tokens_come_with_what_they_stand_before():
    kept = PrefixCache(10_000)
    kept.keep(1, range(10), past(13))
    size, found = kept.find(1, [*range(9), 77], virtual=3)
    assert (size, found[0][0].shape[2]) == (9, 12)


def test_what_was_not_used_for_longest_goes_when_the_memory_is_full():
    kept = PrefixCache(400)  # two of 20 columns at 8 bytes
    for first in (0, 100):
        kept.keep(1, range(first, first + 20), past(20))
    kept.find(1, range(20))
    kept.keep(1, range(200, 220), past(20))
    assert [kept.find(1, range(first, first + 20))[0] for first in (0, 100, 200)] == [19, 0, 19]
    assert kept.bytes == 320
    kept.keep(1, range(60), past(60))  # larger than all there is
    assert kept.bytes == 320
    kept.forget([2])
    assert kept.bytes == 0


def test_two_questions_are_alike_up_to_their_first_difference():
    assert alike([1, 2, 3], [1, 2, 4, 5]) == 2
    assert alike([1, 2, 3], [1, 2, 3]) == 2
    assert alike([1], []) == 0


def test_a_split_gives_each_model_its_share_and_a_person_always_the_same():
    splits = Splits({"live": {"a": 3.0, "b": 1.0}})
    drawn = [splits.choose("live") for _ in range(4000)]
    assert 0.72 < drawn.count("a") / 4000 < 0.78
    people = [splits.choose("live", who=str(number)) for number in range(4000)]
    assert 0.72 < people.count("a") / 4000 < 0.78
    assert people == [splits.choose("live", who=str(number)) for number in range(4000)]
    assert splits.choose("other") == "other"


def test_a_question_that_comes_again_lies_there_once():
    room = PrefixCache(10 * 20 * 8)
    first, second = list(range(20)), list(range(100, 120))
    room.keep(1, first, past(20))
    for _ in range(20):
        room.keep(1, second, past(20))
    assert room.find(1, [*first, 5])[0] == 20
    assert room.bytes == 2 * 20 * 8
    room.keep(1, [*second, *range(20)], past(40))  # with what it begins with
    assert room.bytes == (20 + 40) * 8
    room.keep(2, second, past(20))
    assert room.bytes == (20 + 40 + 20) * 8
