"""How often one side is preferred, and how often at equal length."""

from __future__ import annotations

import pytest

from tunesmith.metrics.win_rate import win_rate


def texts(*lengths: int) -> list[str]:
    return ["x" * length for length in lengths]


def test_a_tie_counts_half_and_the_p_value_is_the_sign_test():
    same = texts(*[10] * 10)
    found = win_rate([1.0] * 7 + [0.0] + [0.5] * 2, (same, same))
    assert (found.rate, found.ties, found.n) == (0.8, 2, 10)
    assert found.p_value == pytest.approx(18 / 256)  # 8 untied pairs: 2 (1 + 8) / 2^8
    assert found.controlled == pytest.approx(0.8, abs=0.01)  # nothing to take off where no answer is longer


def test_prompts_of_one_group_count_as_one():
    same, groups = texts(*[10] * 64), [str(i // 8) for i in range(64)]
    won = [float(i // 8 < 6) for i in range(64)]
    alone, grouped = win_rate(won, (same, same)), win_rate(won, (same, same), groups=groups)
    assert alone.p_value < 0.001
    assert grouped.p_value == pytest.approx(2 * (1 + 8 + 28) / 2**8)  # 6 of 8 groups or more, either way
    assert grouped.ci95[0] < 0.5 < alone.ci95[0]
    assert grouped.controlled_ci95[0] < alone.controlled_ci95[0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_few_groups_the_interval_stays_between_never_and_always(count: int):
    own, other = texts(*range(10, 30)), texts(*range(29, 9, -1))
    found = win_rate([float(i % 3 > 0) for i in range(20)], (other, own), groups=[str(i % count) for i in range(20)])
    for low, high in (found.ci95, found.controlled_ci95):
        assert 0 <= low < high <= 1


def test_winning_by_length_alone_is_worth_a_half():
    # the longer answer wins four times of five, whoever gave it; own answers are longer in three quarters of the pairs
    own, other = texts(*[30] * 30, *[10] * 10), texts(*[10] * 30, *[30] * 10)
    found = win_rate([1.0] * 24 + [0.0] * 6 + [1.0] * 2 + [0.0] * 8, (other, own))
    assert found.rate == 0.65
    assert found.controlled == pytest.approx(0.5, abs=0.05)
    assert found.controlled_ci95[0] < 0.5 < found.controlled_ci95[1]


def test_winning_at_any_length_is_kept():
    own = texts(*[10, 30] * 20)
    found = win_rate([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0] * 5, (texts(*[20] * 40), own))
    assert found.controlled == pytest.approx(0.75, abs=0.03)
    assert found.controlled_ci95[0] > 0.5


def test_a_side_that_always_wins_is_near_one():
    found = win_rate([1.0] * 20, (texts(*[20] * 20), texts(*range(10, 30))))
    assert 0.97 < found.controlled <= 1.0
    assert found.words == (1.0, 1.0)
    assert found.controlled_ci95 == found.ci95  # every draw is won: that is no certainty
    assert found.ci95[0] < 0.9
