"""Metrics of labelled spans over all rows: F1, precision and recall of exact spans, and F1 of overlapping ones.

N rows. A span is exact if its first and last character and its label are those of a reference span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.examples.types import Span
from tunesmith.metrics.resampling import Clusters
from tunesmith.metrics.significance import PairedComparison, corpus_compare, corpus_interval
from tunesmith.metrics.task_scores import ArmScore, Score, arm_scores

FloatArray = NDArray[np.float64]
Spans = Sequence[Sequence[Span]]  # of each row
# The headline metric, and those reported with it.
METRICS = ("entity_f1", "entity_precision", "entity_recall", "overlap_f1")
# What became of a reference span, and predicted spans where there is none.
SpanOutcome = Literal["exact", "other_bounds", "other_label", "missed", "spurious"]
SPAN_OUTCOMES: tuple[SpanOutcome, ...] = get_args(SpanOutcome)


def counts(gold: Spans, given: Spans) -> FloatArray:
    """Count for each row, [N, 4]: exact spans, predicted and reference spans, and pairs of both that overlap."""
    table = np.zeros((len(gold), 4))
    for i, (right, found) in enumerate(zip(gold, given, strict=True)):
        table[i] = len(set(right) & set(found)), len(found), len(right), _pairs(right, found)
    return table


def value(metric: str, table: FloatArray) -> float:
    """Return one of METRICS from the counts of rows, [N, 4]; without any span, 1."""
    exact, given, gold, pairs = table.sum(axis=0)
    if not given + gold:
        return 1.0
    below = {"entity_precision": given, "entity_recall": gold}.get(metric, (given + gold) / 2)
    return float((pairs if metric == "overlap_f1" else exact) / max(below, 0.5))


def row_f1(gold: Spans, given: Spans) -> list[float]:
    """Return the F1 of the exact spans of each row, 1 for a row without any, [N]."""
    return [value("entity_f1", row[None]) for row in counts(gold, given)]


def outcomes(gold: Spans, given: Spans, label: str = "") -> dict[SpanOutcome, int]:
    """Count what became of the reference spans, and predicted spans that touch none.

    Args:
        gold: reference spans of each row, [N].
        given: predicted spans, [N].
        label: only spans of this label are counted; empty: all.
    """
    found: dict[SpanOutcome, int] = dict.fromkeys(SPAN_OUTCOMES, 0)
    for right, spans in zip(gold, given, strict=True):
        for span in (one for one in right if label in ("", one.label)):
            touching = [other for other in spans if overlap(span, other)]
            same = any(other.label == span.label for other in touching)
            name: SpanOutcome = "other_bounds" if same else "other_label" if touching else "missed"
            found["exact" if span in spans else name] += 1
        found["spurious"] += sum(
            not any(overlap(span, other) for other in right) for span in spans if label in ("", span.label)
        )
    return found


def compare(metric: str, gold: Spans, base: Spans, tuned: Spans, *, groups: Sequence[str] | None) -> PairedComparison:
    """Compare the spans of base and tuned model by a paired bootstrap over rows, or over groups of rows.

    Args:
        metric: one of METRICS.
        gold: reference spans of each row, [N].
        base: predicted by the base model, [N].
        tuned: predicted by the tuned model, [N].
        groups: group of each row, or None.
    """
    before, after = counts(gold, base), counts(gold, tuned)
    moved = [set(a) != set(b) for a, b in zip(base, tuned, strict=True)]
    return corpus_compare(
        lambda rows: (value(metric, before[rows]), value(metric, after[rows])), moved, groups=groups, scale=1.0
    )


def score(metric: str, gold: Spans, given: Spans, *, name: str, groups: Sequence[str] | None) -> Score:
    """Score predicted spans, with a 95 % interval by document.

    Args:
        metric: one of METRICS.
        gold: reference spans of each row, [N].
        given: predicted spans, [N].
        name: of the arm.
        groups: group of each row, or None.
    """
    table = counts(gold, given)
    bounds = None
    if Clusters.of(len(gold), groups).count > 1:
        bounds = corpus_interval(lambda rows: (value(metric, table[rows]), 0.0), len(gold), groups=groups)
    return Score(name=name, metric=metric, score=value(metric, table), ci95=bounds, n=len(gold))


def arms(
    metric: str, gold: Spans, ways: Mapping[str, Spans], tuned: Spans, *, groups: Sequence[str] | None
) -> list[ArmScore]:
    """Score each arm and compare it with the tuned model; p-values are adjusted for the whole family.

    Args:
        metric: one of METRICS.
        gold: reference spans of each row, [N].
        ways: spans of each arm by name, [N] each.
        tuned: spans of the tuned model, [N].
        groups: group of each row, or None.
    """
    comparisons = {name: compare(metric, gold, given, tuned, groups=groups) for name, given in ways.items()}
    scores = {name: score(metric, gold, given, name=name, groups=groups) for name, given in ways.items()}
    return arm_scores(scores, comparisons)


def _pairs(one: Sequence[Span], other: Sequence[Span]) -> int:
    """Return the most pairs of overlapping spans of one label in which each span is at most once."""
    count = 0
    for label in {span.label for span in one}:
        left, right = ([span for span in sorted(spans) if span.label == label] for spans in (one, other))
        i = j = 0
        while i < len(left) and j < len(right):
            met = overlap(left[i], right[j])
            before = left[i].end <= right[j].start
            count, i, j = count + met, i + (met or before), j + (met or not before)
    return count


def overlap(one: Span, other: Span) -> bool:
    """Return whether two spans have a character in common."""
    return one.start < other.end and other.start < one.end
