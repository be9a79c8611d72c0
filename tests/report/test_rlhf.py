"""What the report over a loop says of its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.metrics.win_rate import WinRate
from tunesmith.pipelines.rlhf.report import verdict_of

ABOVE, BELOW, HALF = (0.55, 0.7), (0.3, 0.45), (0.42, 0.59)


@pytest.mark.parametrize(
    ("plain", "controlled", "said"),
    [
        (ABOVE, ABOVE, "better: "),
        (HALF, ABOVE, "better at equal length only: "),
        (BELOW, ABOVE, "better at equal length only: "),
        (ABOVE, HALF, "no effect at equal length: "),
        (HALF, HALF, "no effect: "),
        (HALF, BELOW, "worse at equal length only: "),
        (BELOW, BELOW, "worse: "),
    ],
)
def test_an_end_is_better_only_where_it_is_so_both_as_it_is_and_at_equal_length(
    plain: tuple[float, float], controlled: tuple[float, float], said: str
):
    won = WinRate(
        rate=0.5, ci95=plain, p_value=0.026, controlled=0.6, controlled_ci95=controlled, ties=12, n=128, words=(17, 26)
    )
    rounds: Any = [SimpleNamespace(over_start=won)]
    assert verdict_of(rounds).startswith(said)
    assert "60.0\N{NO-BREAK SPACE}% at equal length" in verdict_of(rounds)
    assert "without length control 50.0\N{NO-BREAK SPACE}% of 128 held-out prompts, 12 ties, p = 0.026" in verdict_of(
        rounds
    )


@pytest.mark.parametrize(("ties", "n"), [(60, 64), (0, 4)])
def test_a_handful_of_pairs_that_were_decided_is_no_effect_however_narrow_their_interval(ties: int, n: int):
    won = WinRate(
        rate=0.53, ci95=ABOVE, p_value=0.125, controlled=0.6, controlled_ci95=ABOVE, ties=ties, n=n, words=(17, 26)
    )
    rounds: Any = [SimpleNamespace(over_start=won)]
    assert verdict_of(rounds).startswith("no effect: ")
