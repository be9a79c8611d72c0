"""How many rows a time allows, and what fewer rows cost in certainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# What an arm's row takes, in rows of the plain prompt: longer prompts, and the settings tried on validation rows.
TIMES = {
    "prompt": 1.5,
    "few-shot": 4.0,
    "rag": 3.0,
    "tf-idf": 0.1,
    "tuned": 2.5,
    "tuned-30%": 2.5,
    "tuned-10%": 2.5,
    "tuned+rag": 2.0,
    "raft": 4.0,
    "taught": 2.0,
    "no-context": 1.0,
    "oracle-context": 1.5,
}
SERVER = 2.0
# Runs, by the length of their rows and the part of them that they learn.
TRAINED = {"tuned": 1.0, "tuned-30%": 0.3, "tuned-10%": 0.1, "raft": 3.0, "taught": 3.0}
# A row learned once, forward and back, in rows answered by the plain prompt; and the share of the time for learning.
LEARN, SHARE = 1.5, 0.6
FEWEST_TEST, FEWEST_TRAIN = 40, 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Test rows that are asked and training rows that are learned, with what that means in words, and takes."""

    test: int
    train: int
    note: str
    seconds: float


def sizes(seconds: float, arms: Sequence[str], *, row: float, epochs: float, there: tuple[int, int]) -> Sizes:
    """What fits into a time; `row` is the seconds of one plainly prompted row, `there` the test and training rows.

    Estimates by fixed ratios: a run may take half as long again. Never fewer rows than a test needs to say anything,
    so `seconds` may be more than there are.
    """
    test_rows, train_rows = there
    asked = row * sum(TIMES.get(arm, SERVER) for arm in arms)
    learned = row * LEARN * epochs * sum(times for arm, times in TRAINED.items() if arm in _runs(arms))
    for_asking = seconds * (1 - SHARE) if learned else seconds
    test = min(test_rows, max(FEWEST_TEST, int(for_asking / max(asked, 1e-9))))
    left = seconds - test * asked
    train = min(train_rows, max(FEWEST_TRAIN, int(left / max(learned, 1e-9)))) if learned else train_rows
    wide, whole = half_width(test), half_width(test_rows)
    note = (
        f"{test} of {test_rows} test rows: a share of one half is known to +-{100 * wide:.0f} points "
        f"(all rows: +-{100 * whole:.0f}); {train} of {train_rows} training rows"
    )
    return Sizes(test, train, note, test * asked + train * learned)


def half_width(rows: int) -> float:
    """Half of the 95 % interval of a share of one half."""
    return 1.96 * math.sqrt(0.25 / max(1, rows))


def _runs(arms: Sequence[str]) -> set[str]:
    return {arm.partition("+")[0] for arm in arms}
