"""The answers a run left behind, row by row, and what each of them is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.errors import CheckpointError
from tunesmith.metrics.task_scores import PER_ROW

FloatArray = NDArray[np.float64]

FILE = "predictions.jsonl"
# A score of the whole set is looked at row by row through the metric nearest to it.
NEAREST = {"macro_f1": PER_ROW["accuracy"]}
# Metrics that are the mean of what a run states row by row.
STATED = ("reward", "preference_accuracy")


class Prediction(BaseModel):
    """One test row with what was right and what base and tuned answered.

    `score_base` and `score_tuned` stand for answers whose worth cannot be read off the text, such as the
    log-probability of a document; higher is better.
    """

    model_config = ConfigDict(frozen=True)

    where: str
    task: str = ""  # of a run of several
    group: str = ""
    question: str
    gold: str
    base: str
    tuned: str
    probabilities: dict[str, float] = {}
    score_base: float | None = None
    score_tuned: float | None = None
    counts: dict[str, dict[str, float]] = {}  # of a document: what its score was made of, for base and tuned

    @property
    def tokens(self) -> float | None:
        """How many tokens of a document were scored; None of anything else."""
        return self.counts["tuned"]["tokens"] if self.counts else None

    @property
    def confidence(self) -> float | None:
        """Probability of the likeliest label; None where none was stated."""
        return max(self.probabilities.values(), default=None)


def read_predictions(run: Path) -> list[Prediction]:
    """The test rows of a finished run, none if it kept none. Raises CheckpointError for a line that is not one."""
    path = run / FILE
    if not path.exists():
        return []
    found = []
    # Not `splitlines`: JSON lets line separators such as U+2028 stand inside a text.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            found.append(_prediction(line, f"{path}:{number}"))
    return found


def _prediction(line: str, place: str) -> Prediction:
    try:
        return Prediction.model_validate(json.loads(line))
    except ValidationError as error:
        fault: Any = error.errors()[0]
        finding = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    except ValueError as error:
        finding = f"not JSON ({error})"
    raise CheckpointError(f"{place}: {finding}; written by another version or changed by hand")


def rows_of_task(rows: Sequence[Prediction], task: str = "") -> list[Prediction]:
    """Of a run of several tasks the rows of one, else of its first, which is the headline; of any other run all."""
    first = rows[0].task if rows else ""
    wanted = task if task and first else first
    return [row for row in rows if row.task == wanted]


def row_scores(rows: Sequence[Prediction], metric: str) -> tuple[FloatArray, FloatArray] | None:
    """[N] and [N]: what the base's and the tuned model's answers are worth, higher being better.

    None where neither the answers nor the file can tell.
    """
    if not rows:
        return None
    told = [(a, b) for a, b in ((row.score_base, row.score_tuned) for row in rows) if a is not None and b is not None]
    if len(told) == len(rows):
        table = np.array(told, dtype=np.float64)
        return table[:, 0], table[:, 1]
    rate = PER_ROW.get(metric) or NEAREST.get(metric)
    if rate is None:
        return None
    gold = [row.gold for row in rows]
    return rate(gold, [row.base for row in rows]), rate(gold, [row.tuned for row in rows])
