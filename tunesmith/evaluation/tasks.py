"""Answers to a score: which metric, base against tuned and every other way, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation import metrics
from tunesmith.evaluation.resampling import Clusters
from tunesmith.evaluation.significance import (
    DRAWS,
    PairedComparison,
    around,
    compare_macro_f1,
    compare_paired,
    corpus_interval,
    holm,
    interval,
)

Floats = NDArray[np.float64]

# Metrics whose scale is not 1.
SCALES = {"chrf": 100.0, "bleu": 100.0}

# Several labels of one row travel as one text, a line each.
LABEL_BREAK = "\n"


def _sample_f1(gold: Sequence[str], given: Sequence[str]) -> Floats:
    """F1 of each row's set of labels."""
    return metrics.multilabel_f1(
        *([text.split(LABEL_BREAK) if text else [] for text in side] for side in (gold, given))
    )


# Metrics with one number per row; their mean is the score. macro_f1 is a number of the whole set.
PER_ROW: dict[str, Callable[[Sequence[str], Sequence[str]], Floats]] = {
    "accuracy": metrics.accuracy,
    "sample_f1": _sample_f1,
    "exact_match": metrics.exact_match,
    "contains": metrics.contains,
    "token_f1": metrics.token_f1,
    "rouge_l": metrics.rouge_l,
    "chrf": metrics.chrf,
    "tool_calls": metrics.tool_calls,
}
WHOLE: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "macro_f1": metrics.macro_f1,
    "bleu": metrics.corpus_bleu,
}
# Those of the whole set that can be taken again and again over drawn rows.
_DRAWN = {"macro_f1": metrics.macro_f1_pair, "bleu": metrics.corpus_bleu_pair}
_COMPARED = {"macro_f1": compare_macro_f1}
# What is reported beside the headline.
BESIDE: dict[str, tuple[str, ...]] = {
    "accuracy": ("macro_f1",),
    "macro_f1": ("accuracy",),
    "sample_f1": ("accuracy",),
    "rouge_l": ("exact_match", "chrf"),
    "exact_match": ("token_f1", "rouge_l"),
    "contains": ("exact_match", "token_f1"),
    "chrf": ("bleu", "exact_match"),
}


class Difference(BaseModel):
    """What two sets of answers to the same rows differ by, and how sure that is."""

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


class TaskScore(Difference):
    """Base against tuned on the same frozen test rows."""

    name: str
    metric: str
    base: float
    tuned: float
    sentence: str


class Score(BaseModel):
    """One way to answer, scored alone."""

    model_config = ConfigDict(frozen=True)

    name: str
    metric: str
    score: float
    ci95: tuple[float, float] | None
    n: int
    detail: str = ""


class Arm(Score):
    """One way to answer, and what the tuned model gains over it.

    `p_adjusted`: the p-value of that gain, adjusted by Holm's method for all arms that stand beside this one.
    """

    gain: Difference | None = None
    p_adjusted: float | None = None


def task_score(
    metric: str,
    gold: Sequence[str],
    sides: tuple[Sequence[str], Sequence[str]],
    *,
    name: str,
    groups: Sequence[str] | None,
) -> TaskScore:
    """The comparison of `sides` = (base answers, tuned answers)."""
    return as_task(_compared(metric, gold, sides, groups), name=name, metric=metric)


def as_task(found: PairedComparison, *, name: str, metric: str) -> TaskScore:
    """A comparison under a task's name."""
    return TaskScore(**asdict(found), name=name, metric=metric, sentence=found.sentence)


def arms(
    metric: str,
    gold: Sequence[str],
    ways: Mapping[str, Sequence[str]],
    tuned: Sequence[str],
    *,
    groups: Sequence[str] | None,
) -> list[Arm]:
    """Each way's answers scored and compared with the tuned ones; all of them are the family that Holm adjusts for."""
    found = {name: _compared(metric, gold, (given, tuned), groups) for name, given in ways.items()}
    adjusted = holm({name: one.p_value for name, one in found.items()})
    return [
        Arm(
            **score(metric, gold, given, name=name, groups=groups).model_dump(),
            gain=Difference(**asdict(found[name])),
            p_adjusted=adjusted[name],
        )
        for name, given in ways.items()
    ]


def _compared(
    metric: str, gold: Sequence[str], sides: tuple[Sequence[str], Sequence[str]], groups: Sequence[str] | None
) -> PairedComparison:
    base, tuned = sides
    if metric in _COMPARED:
        return _COMPARED[metric](gold, base, tuned, groups=groups)
    return compare_paired(PER_ROW[metric](gold, base), PER_ROW[metric](gold, tuned), groups=groups)


def value(metric: str, gold: Sequence[str], given: Sequence[str]) -> float:
    """One number for a set of answers."""
    return float(PER_ROW[metric](gold, given).mean()) if metric in PER_ROW else WHOLE[metric](gold, given)


def score(
    metric: str,
    gold: Sequence[str],
    given: Sequence[str],
    *,
    name: str,
    groups: Sequence[str] | None = None,
) -> Score:
    """A set of answers scored alone; the interval of a metric of the whole set is a bootstrap over clusters."""
    if metric in PER_ROW:
        bounds: tuple[float, float] | None = interval(
            PER_ROW[metric](gold, given), groups=groups, scale=SCALES.get(metric, 1.0)
        )
    else:
        bounds = _drawn_interval(metric, gold, given, groups)
    return Score(name=name, metric=metric, score=value(metric, gold, given), ci95=bounds, n=len(gold))


def _drawn_interval(
    metric: str, gold: Sequence[str], given: Sequence[str], groups: Sequence[str] | None
) -> tuple[float, float] | None:
    """None for a metric that cannot be drawn, or where there is but one cluster to draw from."""
    clusters = Clusters.of(len(gold), groups)
    if metric not in _DRAWN or clusters.count < 2:
        return None
    statistic, centred = _DRAWN[metric](gold, given, given), metric == "macro_f1"
    return corpus_interval(statistic, len(gold), groups=groups, scale=SCALES.get(metric, 1.0), centred=centred)


def redrawn(
    metric: str,
    gold: Sequence[str],
    ways: Mapping[str, Sequence[str]],
    *,
    groups: Sequence[str] | None,
) -> dict[str, Floats]:
    """Each way's score on the same DRAWS test sets, made of clusters drawn with repeats."""
    clusters, rng = Clusters.of(len(gold), groups), np.random.default_rng(0)
    if metric in PER_ROW:
        rows = [PER_ROW[metric](gold, given) for given in ways.values()]
        drawn = clusters.drawn_rates(rows, np.ones(len(gold)), rng, DRAWS)
        return {name: drawn[:, column] for column, name in enumerate(ways)}
    statistics = {name: _DRAWN[metric](gold, given, given) for name, given in ways.items()}
    scores: dict[str, list[float]] = {name: [] for name in ways}
    for chosen in clusters.drawn_rows(rng, DRAWS):
        for name, statistic in statistics.items():
            scores[name].append(statistic(chosen)[0])
    found = {name: np.array(scores[name]) for name in ways}
    if metric == "macro_f1":
        return {name: around(value(metric, gold, ways[name]), drawn) for name, drawn in found.items()}
    return found
