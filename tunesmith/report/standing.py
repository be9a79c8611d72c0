"""How a run stands: better or worse, and whether something cheaper or meaningless did as well."""

from __future__ import annotations

from typing import Literal

from tunesmith.evaluation.tasks import Score, TaskScore
from tunesmith.report.figures import LOWER_IS_BETTER
from tunesmith.report.schema import Report

Mood = Literal["good", "bad", "unsure", "plain"]
_MOODS: dict[str, Mood] = {"better": "good", "worse": "bad", "inconclusive": "unsure"}


def mood(report: Report) -> Mood:
    """How the verdict should look: good only where nothing cheaper reaches the same and no gate is broken."""
    if report.broken_gates:
        return "bad"
    found = _MOODS.get(report.task.verdict, "plain")
    reached = any(holds_up(one, report.task) for one in [*report.baselines, *report.controls])
    return "unsure" if found == "good" and reached else found


def holds_up(one: Score, task: TaskScore) -> bool:
    """Whether a baseline or control reaches what the tuned model does, by the same metric."""
    if one.metric != task.metric:
        return False
    return one.score <= task.tuned if task.metric in LOWER_IS_BETTER else one.score >= task.tuned
