"""Answers to a score: which metric, base against tuned, with interval and p-value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation import metrics
from tunesmith.evaluation.significance import Comparison, compare_macro_f1, compare_paired, interval

Floats = NDArray[np.float64]

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
    "token_f1": metrics.token_f1,
    "rouge_l": metrics.rouge_l,
    "chrf": metrics.chrf,
}
WHOLE: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "macro_f1": metrics.macro_f1,
    "bleu": metrics.corpus_bleu,
    "corpus_chrf": metrics.corpus_chrf,
}
# What is reported beside the headline.
BESIDE: dict[str, tuple[str, ...]] = {
    "accuracy": ("macro_f1",),
    "macro_f1": ("accuracy",),
    "sample_f1": ("accuracy",),
    "rouge_l": ("exact_match", "chrf"),
    "exact_match": ("token_f1", "rouge_l"),
    "chrf": ("bleu", "exact_match"),
}


class TaskScore(BaseModel):
    """Base against tuned on the same frozen test rows."""

    model_config = ConfigDict(frozen=True)

    name: str
    metric: str
    base: float
    tuned: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    n: int
    clusters: int
    test: str
    smallest_detectable: float
    verdict: str
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


def task_score(
    metric: str,
    gold: Sequence[str],
    sides: tuple[Sequence[str], Sequence[str]],
    *,
    name: str,
    groups: Sequence[str] | None,
) -> TaskScore:
    """The comparison of `sides` = (base answers, tuned answers)."""
    base, tuned = sides
    if metric == "macro_f1":
        found = compare_macro_f1(gold, base, tuned, groups=groups)
    else:
        found = compare_paired(PER_ROW[metric](gold, base), PER_ROW[metric](gold, tuned), groups=groups)
    return as_task(found, name=name, metric=metric)


def as_task(found: Comparison, *, name: str, metric: str) -> TaskScore:
    """A comparison under a task's name."""
    return TaskScore(
        name=name,
        metric=metric,
        base=found.base,
        tuned=found.tuned,
        delta=found.delta,
        ci95=found.ci95,
        p_value=found.p_value,
        n=found.n,
        clusters=found.clusters,
        test=found.test,
        smallest_detectable=found.smallest_detectable,
        verdict=found.verdict,
        sentence=found.sentence,
    )


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
    """A set of answers scored alone, with an interval where the metric has a number per row."""
    rows: Any = PER_ROW[metric](gold, given) if metric in PER_ROW else None
    bounds = None if rows is None else interval(rows, groups=groups)
    return Score(name=name, metric=metric, score=value(metric, gold, given), ci95=bounds, n=len(gold))
