"""Task scores: metrics by name, base against tuned and every other arm, with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.data.examples.types import Reference
from tunesmith.display import Display, Displayed
from tunesmith.errors import RecipeError, briefly
from tunesmith.metrics import scores as metrics
from tunesmith.metrics.resampling import Clusters
from tunesmith.metrics.significance import (
    DRAWS,
    PairedComparison,
    around,
    compare_macro_f1,
    compare_paired,
    corpus_interval,
    holm,
    interval,
)
from tunesmith.plugins import offered, plugin

FloatArray = NDArray[np.float64]
RowMetric = Callable[[Sequence[Reference], Sequence[str]], FloatArray]

# Highest value of metrics where it is not 1; with those of installed packages that a recipe or a run has named.
SCALES: dict[str, float] = {"chrf": 100.0, "bleu": 100.0}

# How far the score of a package's metric may be outside its range, relative to it.
ROUNDING = 1e-6

# Separates the labels of a multi-label row within one text.
LABEL_BREAK = "\n"


def _sample_f1(gold: Sequence[str], given: Sequence[str]) -> FloatArray:
    """Return F1 of the label set of each row, [N]."""
    return metrics.multilabel_f1(
        *([text.split(LABEL_BREAK) if text else [] for text in side] for side in (gold, given))
    )


def _best(metric: Callable[[Sequence[str], Sequence[str]], FloatArray]) -> RowMetric:
    """Return the metric for rows with several accepted answers: the best value over them, as in SQuAD."""

    def best(gold: Sequence[Reference], given: Sequence[str]) -> FloatArray:
        accepted = [(one,) if isinstance(one, str) else one for one in gold]
        if len(accepted) != len(given) or sum(map(len, accepted)) == len(given):
            return metric(first_of(gold), given)
        counts = [len(answers) for answers in accepted]
        every = [answer for answers in accepted for answer in answers]
        repeated = [answer for answer, count in zip(given, counts, strict=True) for _ in range(count)]
        starts = np.cumsum([0, *counts[:-1]])
        return np.asarray(np.maximum.reduceat(metric(every, repeated), starts), dtype=np.float64)

    return best


def first_of(gold: Sequence[Reference]) -> list[str]:
    """Return the first accepted answer of each row."""
    return [one if isinstance(one, str) else one[0] for one in gold]


# Metrics with a value per row, whose mean is the score; and metrics of the whole set.
PER_ROW: dict[str, RowMetric] = {
    "accuracy": _best(metrics.accuracy),
    "sample_f1": _best(_sample_f1),
    "exact_match": _best(metrics.exact_match),
    "contains": _best(metrics.contains),
    "token_f1": _best(metrics.token_f1),
    "rouge_l": _best(metrics.rouge_l),
    "chrf": _best(metrics.chrf),
    "tool_calls": _best(metrics.tool_calls),
}
WHOLE: dict[str, Callable[[Sequence[Reference], Sequence[str]], float]] = {
    "macro_f1": lambda gold, given: metrics.macro_f1(first_of(gold), given),  # labels have one reference each
    "bleu": metrics.corpus_bleu,
}
# Metrics of the whole set in a form that is fast enough for resampling.
_RESAMPLED: dict[str, Callable[[Sequence[Reference], Sequence[str], Sequence[str]], metrics.RowStatistic]] = {
    "macro_f1": lambda gold, base, tuned: metrics.macro_f1_pair(first_of(gold), base, tuned),
    "bleu": metrics.corpus_bleu_pair,
}


def metric_or_plugin(name: Any, validate: Callable[[Any], Any]) -> Any:
    """Return the name of a metric that is one of a recipe's (`validate`), or that an installed package offers."""
    known = isinstance(name, str) and row_metric(name) is not None
    return name if known and name in offered("metrics") else validate(name)


def row_metric(name: str) -> RowMetric | None:
    """Return the metric of a name, built in or of an installed package; None for one without a value per row.

    Raises:
        RecipeError: a package offers it, but it cannot be imported, or is something else.
    """
    if name not in PER_ROW and name not in WHOLE and (found := plugin("metrics", name)) is not None:
        highest = getattr(found, "highest", 1.0)
        if not (isinstance(highest, int | float) and 0 < highest < math.inf):
            raise RecipeError(f"metric {name}: expected a number above 0 as its `highest`, got {highest!r}; correct it")
        PER_ROW[name] = _best(_checked(name, found, float(highest)))
        SCALES[name] = float(highest)
    return PER_ROW.get(name)


def _checked(name: str, function: Callable[..., Any], highest: float) -> Callable[..., FloatArray]:
    """Return the metric of a package with its scores as an array; what is wrong with it is reported by its name."""

    def scores(gold: Sequence[str], given: Sequence[str]) -> FloatArray:
        try:
            found = np.array([float(score) for score in function(gold, given)])
        except Exception as error:  # code of others may raise anything
            raise RecipeError(
                f"metric {name}: it raised {type(error).__name__}: {briefly(error)}; correct it and resume the run"
            ) from error
        if len(found) != len(given):
            raise RecipeError(
                f"metric {name}: expected a score for each of {len(given)} answers, got {len(found)}; correct it"
            )
        if wrong := [score for score in found.tolist() if not -ROUNDING <= score / highest <= 1 + ROUNDING]:
            raise RecipeError(
                f"metric {name}: expected scores from 0 to {highest:g}, got {wrong[0]:g}; map them to this range, "
                "or set the function's attribute `highest`"
            )
        return found.clip(0.0, highest)

    return scores


# Further metrics reported for each headline metric.
BESIDE: dict[str, tuple[str, ...]] = {
    "accuracy": ("macro_f1",),
    "macro_f1": ("accuracy",),
    "sample_f1": ("accuracy",),
    "rouge_l": ("exact_match", "chrf"),
    "exact_match": ("token_f1", "rouge_l"),
    "contains": ("exact_match", "token_f1"),
    "chrf": ("bleu", "exact_match"),
}


class Difference(Displayed, BaseModel):
    """The difference between two sets of answers to the same rows; fields as in `PairedComparison`."""

    model_config = ConfigDict(frozen=True)

    delta: float
    ci95: tuple[float, float]
    p_value: float
    n: int
    clusters: int
    test: str
    smallest_detectable: float
    verdict: str
    rows_needed: int | None = None

    def display(self) -> Display:
        """Show the difference with its interval and the verdict."""
        return Display(f"{self.verdict}: {_difference(self)}, {self.n} rows")


class TaskScore(Difference):
    """Base against tuned model on the same test rows."""

    name: str
    metric: str
    base: float
    tuned: float
    sentence: str

    def display(self) -> Display:
        """Show both scores and their difference."""
        scores = f"{self.metric} {self.base:.3f} → {self.tuned:.3f}"
        return Display(f"{scores} ({_difference(self)}, {self.n} rows): {self.verdict}")


class Score(Displayed, BaseModel):
    """The score of one arm with its own interval."""

    model_config = ConfigDict(frozen=True)

    name: str
    metric: str
    score: float
    ci95: tuple[float, float] | None
    n: int
    detail: str = ""

    def display(self) -> Display:
        """Show the score with its interval."""
        interval = "" if self.ci95 is None else f" (95 % {self.ci95[0]:.3f} to {self.ci95[1]:.3f})"
        return Display(f"{self.name}: {self.metric} {self.score:.3f}{interval}, {self.n} rows")


class ArmScore(Score):
    """The score of one arm, and the gain of the tuned model over it."""

    gain: Difference | None = None
    p_adjusted: float | None = None  # p-value of the gain, adjusted by Holm's method for all arms of the list


def _difference(difference: Difference) -> str:
    low, high = difference.ci95
    p = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.3f}"
    return f"{difference.delta:+.3g}, 95 % {low:+.3g} to {high:+.3g}, {p}"


def task_score(
    metric: str,
    gold: Sequence[Reference],
    *,
    base: Sequence[str],
    tuned: Sequence[str],
    name: str,
    groups: Sequence[str] | None,
) -> TaskScore:
    """Score base and tuned answers and compare them.

    Args:
        metric: a key of PER_ROW, or "macro_f1".
        gold: reference answers, N; of several accepted ones the best counts.
        base: answers of the base model, N.
        tuned: answers of the tuned model, N.
        name: name of the task.
        groups: group of each row, or None.
    """
    return as_task(_compared(metric, gold, base, tuned, groups=groups), name=name, metric=metric)


def as_task(comparison: PairedComparison, *, name: str, metric: str) -> TaskScore:
    """Convert a comparison to the score of a task; `name` and `metric` are shown with it.

    Args:
        comparison: base and tuned model on the same rows.
        name: of the task.
        metric: its metric.
    """
    return TaskScore(**asdict(comparison), name=name, metric=metric, sentence=comparison.sentence)


def arms(
    metric: str,
    gold: Sequence[Reference],
    ways: Mapping[str, Sequence[str]],
    tuned: Sequence[str],
    *,
    groups: Sequence[str] | None,
) -> list[ArmScore]:
    """Score each arm and compare it with the tuned model.

    Args:
        metric: a key of PER_ROW, or "macro_f1".
        gold: reference answers, N; of several accepted ones the best counts.
        ways: answers of each arm by name, N each; p-values are adjusted for this whole family.
        tuned: answers of the tuned model, N.
        groups: group of each row, or None.
    """
    comparisons = {name: _compared(metric, gold, given, tuned, groups=groups) for name, given in ways.items()}
    scores = {name: score(metric, gold, given, name=name, groups=groups) for name, given in ways.items()}
    return arm_scores(scores, comparisons)


def arm_scores(scores: Mapping[str, Score], comparisons: Mapping[str, PairedComparison]) -> list[ArmScore]:
    """Join the scores of arms and their comparisons with the tuned model; p-values are adjusted for all arms (Holm)."""
    adjusted = holm({name: comparison.p_value for name, comparison in comparisons.items()})
    return [
        ArmScore(**own.model_dump(), gain=Difference(**asdict(comparisons[name])), p_adjusted=adjusted[name])
        for name, own in scores.items()
    ]


def _compared(
    metric: str, gold: Sequence[Reference], base: Sequence[str], tuned: Sequence[str], *, groups: Sequence[str] | None
) -> PairedComparison:
    if metric == "macro_f1":
        return compare_macro_f1(first_of(gold), base, tuned, groups=groups)
    return compare_paired(PER_ROW[metric](gold, base), PER_ROW[metric](gold, tuned), groups=groups)


def value(metric: str, gold: Sequence[Reference], given: Sequence[str]) -> float:
    """Return the score of a set of answers.

    Args:
        metric: one of PER_ROW or WHOLE.
        gold: reference of each row, [N].
        given: answer to each row, [N].
    """
    return float(PER_ROW[metric](gold, given).mean()) if metric in PER_ROW else WHOLE[metric](gold, given)


def score(
    metric: str,
    gold: Sequence[Reference],
    given: Sequence[str],
    *,
    name: str,
    groups: Sequence[str] | None = None,
) -> Score:
    """Score a set of answers, with its 95 % interval.

    Args:
        metric: a key of PER_ROW or WHOLE.
        gold: reference answers, N; of several accepted ones the best counts.
        given: answers, N.
        name: name of the arm.
        groups: group of each row, or None.

    Returns:
        The score; `ci95` is None for a metric of the whole set with fewer than two clusters to resample.
    """
    scale = SCALES.get(metric, 1.0)
    bounds: tuple[float, float] | None = None
    if metric in PER_ROW:
        bounds = interval(PER_ROW[metric](gold, given), groups=groups, scale=scale)
    elif metric in _RESAMPLED and Clusters.of(len(gold), groups).count > 1:
        statistic = _RESAMPLED[metric](gold, given, given)
        bounds = corpus_interval(statistic, len(gold), groups=groups, scale=scale, centred=metric == "macro_f1")
    return Score(name=name, metric=metric, score=value(metric, gold, given), ci95=bounds, n=len(gold))


def redrawn(
    metric: str,
    gold: Sequence[Reference],
    ways: Mapping[str, Sequence[str]],
    *,
    groups: Sequence[str] | None,
) -> dict[str, FloatArray]:
    """Return the scores of each arm on the same bootstrap test sets, one value per test set.

    Args:
        metric: one of PER_ROW or WHOLE.
        gold: reference of each row, [N].
        ways: arm -> answer to each row, [N].
        groups: group of each row, [N]; None treats rows as independent.
    """
    clusters = Clusters.of(len(gold), groups)
    rng = np.random.default_rng(0)
    if metric in PER_ROW:
        rows = [PER_ROW[metric](gold, given) for given in ways.values()]
        resampled = clusters.drawn_rates(rows, np.ones(len(gold)), rng, DRAWS)
        return {name: resampled[:, column] for column, name in enumerate(ways)}
    statistics = {name: _RESAMPLED[metric](gold, given, given) for name, given in ways.items()}
    scores: dict[str, list[float]] = {name: [] for name in ways}
    for resample in clusters.drawn_rows(rng, DRAWS):
        for name, statistic in statistics.items():
            scores[name].append(statistic(resample)[0])
    by_arm = {name: np.array(scores[name]) for name in ways}
    if metric == "macro_f1":
        return {name: around(value(metric, gold, ways[name]), resampled) for name, resampled in by_arm.items()}
    return by_arm
