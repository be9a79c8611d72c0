"""How a run stands: better or worse, and whether something cheaper or meaningless did as well."""

from __future__ import annotations

from typing import Literal

from tunesmith.evaluation.resampling import ALPHA
from tunesmith.evaluation.significance import lower_is_better
from tunesmith.evaluation.tasks import Arm, TaskScore
from tunesmith.report.schema import Report

BASE = "base"  # the arm that the headline compares with
Mood = Literal["good", "bad", "unsure", "plain"]
_MOODS: dict[str, Mood] = {"better": "good", "worse": "bad", "inconclusive": "unsure"}


def mood(report: Report) -> Mood:
    """How the verdict should look: good only where nothing cheaper reaches the same and no gate is broken."""
    if report.broken_gates:
        return "bad"
    found = _MOODS.get(report.task.verdict, "plain")
    reached = any(holds_up(one, report.task) for one in [*report.baselines, *report.controls])
    return "unsure" if found == "good" and reached else found


def reaches(one: Arm, task: TaskScore) -> bool:
    """Whether a way to answer scores as well as the tuned model or better, by the same metric."""
    return one.score <= task.tuned if lower_is_better(task.metric) else one.score >= task.tuned


def holds_up(one: Arm, task: TaskScore) -> bool:
    """Whether the tuned model does not surely beat this way to answer, by the same metric.

    The base is what the headline's own test, planned before any other, has judged. All else is judged by the
    p-value adjusted for the arms beside it, or by the score alone where a report has none.
    """
    if one.metric != task.metric:
        return False
    return reaches(one, task) or (one.name != BASE and one.p_adjusted is not None and one.p_adjusted >= ALPHA)
