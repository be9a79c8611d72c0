"""A run folder read back, and what its answers say beyond the report's own numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import AnyObjective, Recipe, load_recipe
from tunesmith.evaluation.results import BASE
from tunesmith.metrics.calibration import coverage_curve
from tunesmith.metrics.resampling import groups_of
from tunesmith.metrics.significance import interval
from tunesmith.metrics.task_scores import LABEL_BREAK, PER_ROW, SCALES, Difference
from tunesmith.objectives import Classify
from tunesmith.report.predictions import STATED, Prediction, read_predictions, row_scores, rows_of_task
from tunesmith.report.schema import Report, read_report
from tunesmith.report.verdicts import is_not_beaten
from tunesmith.training.journal import Journal

EXAMPLES = 4
# A wider matrix cannot be read; then the commonest confusions are listed instead.
WIDEST_MATRIX = 10
LISTED = 15
BINS = 10
FEWEST_PER_BIN = 5


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Everything in a run folder that a report is written from."""

    folder: Path
    report: Report
    recipe: Recipe
    recipe_text: str
    journal: list[dict[str, Any]]
    predictions: list[Prediction]

    @property
    def objective(self) -> AnyObjective:
        """What is learned; of several tasks the first, which is the headline."""
        first = next(iter(self.recipe.parts.values()), self.recipe)
        return first.objective

    @property
    def labels_one(self) -> bool:
        """Whether each row has exactly one label."""
        return isinstance(self.objective, Classify) and not self.objective.multi

    @property
    def labels_many(self) -> bool:
        """Whether a row may have several labels."""
        return isinstance(self.objective, Classify) and self.objective.multi

    @property
    def data_name(self) -> str:
        """The training file without the folders that lead to it."""
        return ", ".join(Path(one.data.train).name for one in self.recipe.parts.values() or [self.recipe])


@dataclass(frozen=True, slots=True)
class Group:
    """Some rows worth reading, and how many there are of their sort (None: all rows are)."""

    title: str
    rows: list[Prediction]
    total: int | None
    right: tuple[bool, bool] | None = None  # whether the base and the tuned model are, where that is yes or no


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer: kind is base, baseline, control or tuned. `beats`: the tuned model does not beat it."""

    name: str
    kind: str
    score: float
    ci95: tuple[float, float] | None
    detail: str
    beats: bool = False
    gain: Difference | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often gold (down) was answered with each label (across), by base and by tuned."""

    labels: list[str]
    base: list[list[int]]
    tuned: list[list[int]]


@dataclass(frozen=True, slots=True)
class LabelLine:
    """How well base and tuned find one label."""

    label: str
    support: int
    base: float
    tuned: float


def read_facts(folder: Path) -> RunFacts:
    """What lies in a finished run's folder. Raises CheckpointError and RecipeError."""
    report = read_report(folder)
    recipe = folder / "recipe.yaml"
    return RunFacts(
        folder=folder,
        report=report,
        recipe=load_recipe(recipe)[0],
        recipe_text=recipe.read_text(encoding="utf-8"),
        journal=Journal(folder / "journal.jsonl").read(),
        predictions=rows_of_task(read_predictions(folder)),
    )


def contenders(facts: RunFacts) -> list[Contender]:
    """Base, baselines and controls on the headline's metric, then the tuned model, which should beat them all."""
    report, task = facts.report, facts.report.task
    kinds = [*((one, "baseline") for one in report.baselines), *((one, "control") for one in report.controls)]
    found = [
        Contender(
            name=one.name,
            kind=BASE if one.name == BASE else kind,
            score=one.score,
            ci95=one.ci95,
            detail=one.detail,
            beats=is_not_beaten(one, task),
            gain=one.gain,
            p_adjusted=one.p_adjusted,
        )
        for one, kind in kinds
        if one.metric == task.metric
    ]
    if not any(one.kind == BASE for one in found):
        found.insert(0, Contender(BASE, BASE, task.base, None, "", task.verdict != "better"))
    return [*found, Contender("tuned", "tuned", task.tuned, _tuned_interval(facts), facts.report.technique)]


def _tuned_interval(facts: RunFacts) -> tuple[float, float] | None:
    """The interval of the tuned model alone, where its score is a mean over rows."""
    metric = facts.report.task.metric
    scores = row_scores(facts.predictions, metric)
    if scores is None or (metric not in PER_ROW and metric not in STATED):
        return None
    return interval(scores[1], groups=groups_of(facts.predictions), scale=SCALES.get(metric, 1.0))


def groups_to_read(facts: RunFacts) -> list[Group]:
    """A few rows that tuning mended, a few that it broke, a few that both get wrong."""
    found = row_scores(facts.predictions, facts.report.task.metric)
    if found is None:
        return []
    base, tuned = found
    if np.isin([base, tuned], (0.0, 1.0)).all():
        return [
            _chosen(facts, "Fixed by tuning", (base == 0) & (tuned == 1), (False, True)),
            _chosen(facts, "Broken by tuning", (base == 1) & (tuned == 0), (True, False)),
            _chosen(facts, "Wrong before and after", (base == 0) & (tuned == 0), (False, False)),
        ]
    change, best = tuned - base, np.maximum(base, tuned)
    return [
        _first(facts, "Most improved", -change, int((change > 0).sum())),
        _first(facts, "Most worsened", change, int((change < 0).sum())),
        _first(facts, "Weakest before and after", best, None),
    ]


def _chosen(facts: RunFacts, title: str, mask: NDArray[np.bool_], right: tuple[bool, bool]) -> Group:
    """Rows under the mask: where probabilities are stated the surest, else some from all over the file."""
    rows = [facts.predictions[i] for i in np.flatnonzero(mask)]
    if any(row.probabilities for row in rows):
        return Group(title, sorted(rows, key=lambda row: -(row.confidence or 0))[:EXAMPLES], len(rows), right)
    step = max(1.0, len(rows) / EXAMPLES)
    return Group(title, [rows[int(i * step)] for i in range(min(EXAMPLES, len(rows)))], len(rows), right)


def _first(facts: RunFacts, title: str, order: NDArray[np.float64], total: int | None) -> Group:
    """The rows with the smallest numbers, no more than there are of the sort."""
    some = np.argsort(order, kind="stable")[: EXAMPLES if total is None else min(EXAMPLES, total)]
    return Group(title, [facts.predictions[i] for i in some], total)


def confusion(facts: RunFacts) -> Confusion | None:
    """The confusion of both models, where each row has one of a few labels."""
    rows = facts.predictions
    labels = sorted({text for row in rows for text in (row.gold, row.base, row.tuned)})
    if not facts.labels_one or not 1 < len(labels) <= WIDEST_MATRIX:
        return None
    base, tuned = Counter((row.gold, row.base) for row in rows), Counter((row.gold, row.tuned) for row in rows)
    return Confusion(
        labels,
        [[base[gold, given] for given in labels] for gold in labels],
        [[tuned[gold, given] for given in labels] for gold in labels],
    )


def confusions(facts: RunFacts) -> list[tuple[str, str, int, int]]:
    """The commonest wrong answers (gold, given, times by base, times by tuned), where a matrix would be too wide."""
    if not facts.labels_one or confusion(facts) is not None:
        return []
    base = Counter((row.gold, row.base) for row in facts.predictions if row.gold != row.base)
    tuned = Counter((row.gold, row.tuned) for row in facts.predictions if row.gold != row.tuned)
    pairs = sorted(base.keys() | tuned.keys(), key=lambda pair: (-tuned[pair], -base[pair], pair))
    return [(*pair, base[pair], tuned[pair]) for pair in pairs[:LISTED]]


def label_lines(facts: RunFacts) -> list[LabelLine]:
    """F1 of each label of the test rows, the worst of the tuned model first; none if nothing is labelled."""
    if not isinstance(facts.objective, Classify) or not facts.predictions:
        return []
    split = _labels if facts.labels_many else _one
    sides = [[split(text) for text in (row.gold, row.base, row.tuned)] for row in facts.predictions]
    gold, base, tuned = ([row[side] for row in sides] for side in range(3))
    support = Counter(label for row in gold for label in row)
    before, after = _f1(gold, base), _f1(gold, tuned)
    lines = [LabelLine(label, support[label], before[label], after[label]) for label in sorted(support)]
    return sorted(lines, key=lambda line: line.tuned)


def _labels(text: str) -> set[str]:
    return set(text.split(LABEL_BREAK)) if text else set()


def _one(text: str) -> set[str]:
    return {text}


def _f1(gold: Sequence[set[str]], given: Sequence[set[str]]) -> dict[str, float]:
    """F1 of each label in gold."""
    wanted, used = Counter(la for row in gold for la in row), Counter(la for row in given for la in row)
    right = Counter(label for g, h in zip(gold, given, strict=True) for label in g & h)
    return {label: 2 * right[label] / (wanted[label] + used[label]) for label in wanted}


def _stated(facts: RunFacts) -> tuple[list[float], list[bool]]:
    """Confidence and rightness of the rows with one stated label."""
    rows = [row for row in facts.predictions if row.confidence is not None and facts.labels_one]
    return [row.confidence or 0.0 for row in rows], [row.tuned == row.gold for row in rows]


def reliability(facts: RunFacts) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, rows) of the tuned model in bins of about equally many rows."""
    confidence, right = _stated(facts)
    bins = min(BINS, len(confidence) // FEWEST_PER_BIN)
    if bins < 2:
        return []
    order = np.argsort(confidence, kind="stable")
    sure, correct = np.array(confidence)[order], np.array(right, dtype=float)[order]
    parts = zip(np.array_split(sure, bins), np.array_split(correct, bins), strict=True)
    return [(float(a.mean()), float(b.mean()), len(a)) for a, b in parts]


def coverage(facts: RunFacts) -> list[tuple[float, float]]:
    """(share answered, accuracy of those answers): the report's own curve, else read off the answers."""
    if facts.report.calibration is not None and facts.report.calibration.coverage:
        return list(facts.report.calibration.coverage)
    confidence, right = _stated(facts)
    return coverage_curve(confidence, right) if confidence else []


def curve(facts: RunFacts, key: str) -> list[tuple[float, float]]:
    """(step, value) of the journal lines that have this key and a finite value."""
    points = [(line["step"], line[key]) for line in facts.journal if key in line]
    return [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]
