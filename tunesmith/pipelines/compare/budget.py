"""Number of rows that fit into a time budget, and the resulting width of the confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Time of one row, relative to a row of the plain prompt: includes longer prompts and settings tried on validation rows.
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
    "closed-book": 2.0,
    "no-context": 1.0,
    "oracle-context": 1.5,
}
SERVER = 2.0  # the same for a model behind a server
# Training time of one row, relative to a row of the `tuned` arm: row length times the share of rows used.
TRAINED = {"tuned": 1.0, "tuned-30%": 0.3, "tuned-10%": 0.1, "raft": 3.0, "closed-book": 3.0}
LEARN = 1.5  # forward and backward pass of a row, relative to answering it by the plain prompt
SHARE = 0.6  # share of the budget for training
FEWEST_TEST = 40  # rows
FEWEST_TRAIN = 64  # rows


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of rows that fit into a time budget."""

    test: int
    train: int
    note: str  # row counts and width of the interval, for the user
    seconds: float  # estimated time


def sizes(seconds: float, arms: Sequence[str], *, row: float, epochs: float, there: tuple[int, int]) -> Sizes:
    """Compute how many test and training rows fit into a time budget.

    The estimate uses fixed ratios; a run may take 50 % longer. The numbers of rows have a minimum, so the estimated
    time may exceed the budget.

    Args:
        seconds: the budget.
        arms: names of the arms of the comparison.
        row: seconds to answer one row by the plain prompt.
        epochs: passes over the training rows.
        there: number of available test rows and training rows.
    """
    test_rows, train_rows = there
    runs = {arm.partition("+")[0] for arm in arms}
    answer_seconds = row * sum(TIMES.get(arm, SERVER) for arm in arms)
    train_seconds = row * LEARN * epochs * sum(times for arm, times in TRAINED.items() if arm in runs)
    answer_budget = seconds * (1 - SHARE) if train_seconds else seconds
    test = min(test_rows, max(FEWEST_TEST, int(answer_budget / max(answer_seconds, 1e-9))))
    rest = seconds - test * answer_seconds
    train = min(train_rows, max(FEWEST_TRAIN, int(rest / max(train_seconds, 1e-9)))) if train_seconds else train_rows
    note = (
        f"{test} of {test_rows} test rows: a share of one half has a 95 % interval of +-{100 * half_width(test):.0f} "
        f"points (all rows: +-{100 * half_width(test_rows):.0f}); {train} of {train_rows} training rows"
    )
    return Sizes(test, train, note, test * answer_seconds + train * train_seconds)


def half_width(rows: int) -> float:
    """Return half the width of the 95 % interval of a share of one half (normal approximation)."""
    return 1.96 * math.sqrt(0.25 / max(1, rows))
