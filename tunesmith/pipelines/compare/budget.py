"""Number of rows that fit into a time budget, and the resulting width of the confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tunesmith.pipelines.compare.arm_kinds import ARM_KINDS, kind_of

LEARN = 1.5  # forward and backward pass of a row, relative to answering it by the plain prompt
SHARE = 0.6  # share of the budget for training
FEWEST_TEST = 40  # rows
FEWEST_TRAIN = 64  # rows


class BudgetedRows(BaseModel):
    """Numbers of rows that fit into a time budget."""

    model_config = ConfigDict(frozen=True)

    test: int
    train: int
    note: str  # row counts and width of the interval, for the user
    seconds: float  # estimated time


def sizes(
    seconds: float, arms: Sequence[str], *, row: float, epochs: float, test_rows: int, train_rows: int
) -> BudgetedRows:
    """Compute how many of the test and training rows fit into a budget of seconds.

    The estimate uses fixed ratios to the seconds of one row by the plain prompt; a run may take 50 % longer. The
    numbers of rows have a minimum, so the estimated time may exceed the budget.
    """
    kinds = [kind_of(arm) for arm in arms]
    runs = {kind.run for kind in kinds} | {name for kind in kinds for name in (kind.retriever, kind.reranker)}
    answer_seconds = row * sum(kind_of(arm).row_time for arm in arms)
    train_time = sum(kind.train_time for name, kind in ARM_KINDS.items() if name in runs)
    train_seconds = row * LEARN * epochs * train_time
    answer_budget = seconds * (1 - SHARE) if train_seconds else seconds
    test = min(test_rows, max(FEWEST_TEST, int(answer_budget / max(answer_seconds, 1e-9))))
    rest = seconds - test * answer_seconds
    train = min(train_rows, max(FEWEST_TRAIN, int(rest / max(train_seconds, 1e-9)))) if train_seconds else train_rows
    note = (
        f"{test} of {test_rows} test rows: a share of one half has a 95 % interval of +-{100 * half_width(test):.0f} "
        f"points (all rows: +-{100 * half_width(test_rows):.0f}); {train} of {train_rows} training rows"
    )
    total = test * answer_seconds + train * train_seconds
    return BudgetedRows(test=test, train=train, note=note, seconds=total)


def half_width(rows: int) -> float:
    """Return half the width of the 95 % interval of a share of one half (normal approximation)."""
    return 1.96 * math.sqrt(0.25 / max(1, rows))
