"""Predictions of a run on its test rows, and the score of every row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from tunesmith.data.examples.types import Reference
from tunesmith.data.files import read_text
from tunesmith.errors import CheckpointError
from tunesmith.metrics.task_scores import PER_ROW, row_metric

FloatArray = NDArray[np.float64]

FILE = "predictions.jsonl"
# A metric of the whole set has no value per row; rows are scored with the closest metric that has.
NEAREST = {"macro_f1": PER_ROW["accuracy"]}
# Metrics that are the mean of scores stored per row.
STATED = ("reward", "preference_accuracy")


class Prediction(BaseModel):
    """A test row with the reference answer and the answers of base and tuned model.

    `score_base` and `score_tuned` are stored where the text of an answer does not determine its score, such as the
    log-probability of a document or a reward. Higher is better.
    """

    model_config = ConfigDict(frozen=True)

    where: str  # file:line
    task: str = ""  # empty unless the run has several tasks
    group: str = ""
    question: str  # prompt
    gold: str  # reference answer
    accepted: tuple[str, ...] = ()  # all accepted answers, if there are several
    base: str
    tuned: str
    probabilities: dict[str, float] = {}  # label -> probability stated by the tuned model
    score_base: float | None = None
    score_tuned: float | None = None
    thoughts: dict[str, str] = {}  # before the answers of base and tuned model, if they think
    counts: dict[str, dict[str, float]] = {}  # of a document: sums behind the scores of base and tuned model

    @property
    def reference(self) -> Reference:
        """Reference for scoring: all accepted answers, or the only one."""
        return self.accepted or self.gold

    @property
    def tokens(self) -> float | None:
        """Number of scored tokens of a document, else None."""
        return self.counts["tuned"]["tokens"] if self.counts else None

    @property
    def confidence(self) -> float | None:
        """Probability of the most likely label, None without probabilities."""
        return max(self.probabilities.values(), default=None)


def read_predictions(run: Path) -> list[Prediction]:
    """Read the predictions of a run.

    Args:
        run: the run folder.

    Returns:
        One item per test row; empty if the run has no file of predictions.

    Raises:
        CheckpointError: a line is not a prediction.
    """
    path = run / FILE
    if not path.exists():
        return []
    rows = []
    # `splitlines` would also split at line separators such as U+2028, which JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(Prediction.model_validate(json.loads(line)))
        except ValueError as error:
            problem = f"invalid JSON ({error})"
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise CheckpointError(
                f"{path}:{number}: {problem}; the file was changed or written by another version, tune the run again"
            ) from None
    return rows


def rows_of_task(rows: Sequence[Prediction], task: str = "") -> list[Prediction]:
    """Return the rows of one task; the empty name is the first, which is the headline. A single task ignores it."""
    first = rows[0].task if rows else ""
    name = task if task and first else first
    return [row for row in rows if row.task == name]


def row_scores(rows: Sequence[Prediction], metric: str) -> tuple[FloatArray, FloatArray] | None:
    """Compute the scores of N rows of the base model and of the tuned model, each [N], higher being better.

    The headline metric is not used if all rows have stored scores. Returns None if neither stored scores nor the texts
    determine them.
    """
    if not rows:
        return None
    pairs = [(row.score_base, row.score_tuned) for row in rows]
    stored = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(stored) == len(rows):
        table = np.array(stored, dtype=np.float64)
        return table[:, 0], table[:, 1]
    score = row_metric(metric) or NEAREST.get(metric)
    if score is None:
        return None
    gold = [row.reference for row in rows]
    return score(gold, [row.base for row in rows]), score(gold, [row.tuned for row in rows])
