"""How a run stands: better or worse, and whether something cheaper or meaningless did as well."""

from __future__ import annotations

from typing import Literal

from tunesmith.evaluation.results import BASE
from tunesmith.metrics.resampling import ALPHA
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.report.schema import MultitaskReport, Report, TaskReport

# Metrics that go from 0 to 100; others that are better when higher go from 0 to 1.
HUNDREDS = ("chrf",)
POINTS = 3.0  # that a task may lose beside its own model before it is named, sure or not
Status = Literal["good", "bad", "unsure", "plain"]
_MOODS: dict[str, Status] = {"better": "good", "worse": "bad", "inconclusive": "unsure"}


def status(report: Report) -> Status:
    """How the verdict should look: good only where nothing cheaper reaches the same and no gate is broken."""
    if report.broken_gates or (report.multitask is not None and regressed_tasks(report.multitask)):
        return "bad"
    found = _MOODS.get(report.task.verdict, "plain")
    reached = any(is_not_beaten(one, report.task) for one in [*report.baselines, *report.controls])
    return "unsure" if found == "good" and reached else found


def regressed_tasks(together: MultitaskReport) -> list[str]:
    """The tasks that are worse than their base."""
    return [part.name for part in together.tasks if part.task.verdict == "worse"]


def trails_single_task(part: TaskReport) -> bool:
    """Whether a task does worse than its own model: surely, or by more than three points of a hundred."""
    if part.single_task is None:
        return False
    return part.single_task.verdict == "worse" or _points(part.single_task) < -POINTS


def _points(task: TaskScore) -> float:
    """The difference in points of a hundred, where the metric has a highest value; else none."""
    if lower_is_better(task.metric):
        return 0.0
    return task.delta if task.metric in HUNDREDS else 100 * task.delta


def multitask_verdict(together: MultitaskReport, headline: str) -> str:
    """The verdict on several tasks: that of the first, then of each other, and which fell behind."""
    first, *others = together.tasks
    said = [f"{first.name}: {headline}", *(f"{part.name}: {part.verdict}" for part in others)]
    if worse := regressed_tasks(together):
        said.append(f"worse than the base: {', '.join(worse)}")
    if late := [
        f"{p.name} ({p.single_task.delta:+.3g} {p.single_task.metric})"
        for p in together.tasks
        if p.single_task and trails_single_task(p)
    ]:
        said.append(f"behind its own single-task model: {', '.join(late)}")
    elif all(part.single_task is not None for part in together.tasks):
        said.append("no task is behind its own single-task model")
    return ". ".join(said)


def scores_as_high(one: ArmScore, task: TaskScore) -> bool:
    """Whether a way to answer scores as well as the tuned model or better, by the same metric."""
    return one.score <= task.tuned if lower_is_better(task.metric) else one.score >= task.tuned


def arm_label(name: str, detail: str) -> str:
    """A way to answer by its name; the base by how it answered too, which may be a probe."""
    return f"{name}: {detail}" if name == BASE and detail else name


def is_not_beaten(one: ArmScore, task: TaskScore) -> bool:
    """Whether the tuned model does not surely beat this way to answer, by the same metric.

    The base is what the headline's own test, planned before any other, has judged. All else is judged by the
    p-value adjusted for the arms beside it, or by the score alone where a report has none.
    """
    if one.metric != task.metric:
        return False
    if one.name == BASE:
        return task.verdict != "better"
    return scores_as_high(one, task) or (one.p_adjusted is not None and one.p_adjusted >= ALPHA)
