"""Contents of a finished run folder, and the tables that reports derive from its predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.config import AnyObjective, Recipe, load_recipe
from tunesmith.data.remote import last_part
from tunesmith.display import model_label
from tunesmith.evaluation.results import BASE
from tunesmith.metrics.calibration import coverage_curve
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import interval
from tunesmith.metrics.task_scores import LABEL_BREAK, PER_ROW, SCALES, ArmScore
from tunesmith.report.predictions import STATED, Prediction, read_predictions, row_scores, rows_of_task
from tunesmith.report.schema import Report, read_report
from tunesmith.report.verdicts import is_not_beaten
from tunesmith.training.journal import Journal

EXAMPLES_SHOWN = 4  # rows per group
# A wider confusion matrix is unreadable; the most frequent confusions are listed instead.
MAX_MATRIX_LABELS = 10
LISTED = 15  # rows of the tables of labels and of confusions
MAX_BINS = 10  # of the reliability plot
MIN_ROWS_PER_BIN = 5


@dataclass(frozen=True, slots=True)
class Published:
    """A repository of the Hub for a run, and what its card states."""

    repo: str  # owner/name
    base: str  # alias, or Hub id with the commit
    licence: str  # identifier of the Hub; `other` if it is not known
    licence_reason: str = ""  # of `other`
    datasets: tuple[str, ...] = ()  # Hub ids of the rows


@dataclass(frozen=True, slots=True)
class RunData:
    """Contents of a run folder that reports are written from."""

    folder: Path
    report: Report
    recipe: Recipe
    recipe_text: str
    journal: list[dict[str, Any]]  # lines of the training log
    predictions: list[Prediction]  # of the first task
    published: Published | None = None  # where the card is for the Hub, not for the run folder

    @property
    def objective(self) -> AnyObjective:
        """Objective of the run; with several tasks that of the first, which is the headline."""
        return next(iter(self.recipe.parts.values()), self.recipe).objective

    @property
    def data_name(self) -> str:
        """Names of the training files without their folders."""
        return ", ".join(last_part(part.data.train) for part in self.recipe.parts.values() or [self.recipe])

    @property
    def title(self) -> str:
        """Data, objective, technique and model of the run in words."""
        report = self.report
        return f"{self.data_name}: {report.objective} with {report.technique} on {model_label(report.model)}"


@dataclass(frozen=True, slots=True)
class Group:
    """Example rows of one kind."""

    title: str
    rows: list[Prediction]
    total: int | None  # rows of this kind in the test set; None if the kind is a ranking of all rows
    right: tuple[bool, bool] | None = None  # whether base and tuned model are right; None without a yes or no


class Contender(ArmScore):
    """An arm of the headline metric: the base, a baseline, a control or the tuned model."""

    kind: str
    not_beaten: bool = False  # the tuned model does not beat this arm significantly


@dataclass(frozen=True, slots=True)
class Confusion:
    """Confusion matrices of base and tuned model: rows are reference labels, columns are predicted labels."""

    labels: list[str]
    base: list[list[int]]
    tuned: list[list[int]]


@dataclass(frozen=True, slots=True)
class LabelScore:
    """F1 of one label."""

    label: str
    support: int  # test rows with this label
    base: float
    tuned: float


def read_run_data(folder: Path) -> RunData:
    """Read the folder of a finished run.

    Raises:
        CheckpointError: the folder is not a finished run, or a file in it cannot be read.
        RecipeError: its recipe is invalid.
    """
    report = read_report(folder)
    recipe = folder / "recipe.yaml"
    return RunData(
        folder=folder,
        report=report,
        recipe=load_recipe(recipe)[0],
        recipe_text=recipe.read_text(encoding="utf-8"),
        journal=Journal(folder / "journal.jsonl").read(),
        predictions=rows_of_task(read_predictions(folder)),
    )


def contenders(run: RunData) -> list[Contender]:
    """Return the arms scored by the headline metric: base, baselines and controls, then the tuned model."""
    report, task = run.report, run.report.task
    kinds = [*((arm, "baseline") for arm in report.baselines), *((arm, "control") for arm in report.controls)]
    arms = [
        Contender(**dict(arm), kind=BASE if arm.name == BASE else kind, not_beaten=is_not_beaten(arm, task))
        for arm, kind in kinds
        if arm.metric == task.metric
    ]
    common: dict[str, Any] = {"metric": task.metric, "n": task.n}
    if not any(arm.kind == BASE for arm in arms):
        not_beaten = task.verdict != "better"
        arms.insert(0, Contender(name=BASE, kind=BASE, score=task.base, ci95=None, not_beaten=not_beaten, **common))
    # The tuned model has an interval only if its score is a mean over rows.
    ci95 = None
    scores = row_scores(run.predictions, task.metric)
    if scores is not None and (task.metric in PER_ROW or task.metric in STATED):
        ci95 = interval(scores[1], groups=groups_of(run.predictions), scale=SCALES.get(task.metric, 1.0))
    tuned = Contender(name="tuned", kind="tuned", score=task.tuned, ci95=ci95, detail=report.technique, **common)
    return [*arms, tuned]


def groups_to_read(run: RunData) -> list[Group]:
    """Return example rows: improved, worsened, and wrong or weak before and after tuning."""
    scores = row_scores(run.predictions, run.report.task.metric)
    if scores is None:
        return []
    base, tuned = scores
    if np.isin([base, tuned], (0.0, 1.0)).all():
        groups = []
        for title, before, after in (
            ("Fixed by tuning", False, True),
            ("Broken by tuning", True, False),
            ("Wrong before and after", False, False),
        ):
            rows = [run.predictions[i] for i in np.flatnonzero((base == before) & (tuned == after))]
            if any(row.probabilities for row in rows):
                shown = sorted(rows, key=lambda row: -(row.confidence or 0))[:EXAMPLES_SHOWN]
            else:  # spread evenly over the file
                step = max(1.0, len(rows) / EXAMPLES_SHOWN)
                shown = [rows[int(i * step)] for i in range(min(EXAMPLES_SHOWN, len(rows)))]
            groups.append(Group(title, shown, len(rows), (before, after)))
        return groups
    change = tuned - base
    groups = []
    for title, order, total in (
        ("Most improved", -change, int((change > 0).sum())),
        ("Most worsened", change, int((change < 0).sum())),
        ("Weakest before and after", np.maximum(base, tuned), None),
    ):
        first = np.argsort(order, kind="stable")[: EXAMPLES_SHOWN if total is None else min(EXAMPLES_SHOWN, total)]
        groups.append(Group(title, [run.predictions[i] for i in first], total))
    return groups


def confusion(run: RunData) -> Confusion | None:
    """Return the confusion matrices of both models; None unless each row has one of a few labels."""
    rows = run.predictions
    labels = sorted({text for row in rows for text in (row.gold, row.base, row.tuned)})
    if run.objective.label_mode != "single" or not 1 < len(labels) <= MAX_MATRIX_LABELS:
        return None
    base = Counter((row.gold, row.base) for row in rows)
    tuned = Counter((row.gold, row.tuned) for row in rows)
    return Confusion(
        labels,
        [[base[gold, predicted] for predicted in labels] for gold in labels],
        [[tuned[gold, predicted] for predicted in labels] for gold in labels],
    )


def confusions(run: RunData) -> list[tuple[str, str, int, int]]:
    """Return the most frequent errors if a matrix would be too wide: labels, and counts of base and tuned model."""
    if run.objective.label_mode != "single" or confusion(run) is not None:
        return []
    base = Counter((row.gold, row.base) for row in run.predictions if row.gold != row.base)
    tuned = Counter((row.gold, row.tuned) for row in run.predictions if row.gold != row.tuned)
    pairs = sorted(base.keys() | tuned.keys(), key=lambda pair: (-tuned[pair], -base[pair], pair))
    return [(*pair, base[pair], tuned[pair]) for pair in pairs[:LISTED]]


def label_scores(run: RunData) -> list[LabelScore]:
    """Return the F1 of each label of the test rows, lowest of the tuned model first; empty without labels."""
    mode = run.objective.label_mode
    if mode is None or not run.predictions:
        return []

    def labels(text: str) -> set[str]:
        return {text} if mode == "single" else set(text.split(LABEL_BREAK)) if text else set()

    gold = [labels(row.gold) for row in run.predictions]
    support = Counter(label for row in gold for label in row)
    base = _f1(gold, [labels(row.base) for row in run.predictions])
    tuned = _f1(gold, [labels(row.tuned) for row in run.predictions])
    scores = [LabelScore(label, support[label], base[label], tuned[label]) for label in sorted(support)]
    return sorted(scores, key=lambda score: score.tuned)


def _f1(gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> dict[str, float]:
    """Compute F1 of each label in `gold`: 2 TP / (2 TP + FP + FN)."""
    expected = Counter(label for row in gold for label in row)
    given = Counter(label for row in predicted for label in row)
    right = Counter(label for a, b in zip(gold, predicted, strict=True) for label in a & b)
    return {label: 2 * right[label] / (count + given[label]) for label, count in expected.items()}


def _confidence(run: RunData) -> tuple[list[float], list[bool]]:
    """Return confidence and correctness of the rows with stated probabilities of a single label."""
    rows = [row for row in run.predictions if row.confidence is not None and run.objective.label_mode == "single"]
    return [row.confidence or 0.0 for row in rows], [row.tuned == row.gold for row in rows]


def reliability(run: RunData) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, rows) of the tuned model in bins with equal numbers of rows."""
    confidence, right = _confidence(run)
    bins = min(MAX_BINS, len(confidence) // MIN_ROWS_PER_BIN)
    if bins < 2:
        return []
    order = np.argsort(confidence, kind="stable")
    stated = np.array_split(np.array(confidence)[order], bins)
    correct = np.array_split(np.array(right, dtype=float)[order], bins)
    return [(float(a.mean()), float(b.mean()), len(a)) for a, b in zip(stated, correct, strict=True)]


def coverage(run: RunData) -> list[tuple[float, float]]:
    """Return (share of rows answered, accuracy of these answers): the curve of the report, else of the predictions."""
    if run.report.calibration is not None and run.report.calibration.coverage:
        return list(run.report.calibration.coverage)
    confidence, right = _confidence(run)
    return coverage_curve(confidence, right) if confidence else []


def curve(run: RunData, key: str) -> list[tuple[float, float]]:
    """Return (step, value) of the lines of the training log that have this key and a finite value."""
    points = [(line["step"], line[key]) for line in run.journal if key in line]
    return [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]
