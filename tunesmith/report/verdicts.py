"""Verdicts: better or worse, and which baselines and controls score as high."""

from __future__ import annotations

from typing import Literal

from tunesmith.evaluation.results import BASE
from tunesmith.metrics.resampling import ALPHA
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.report.schema import MultitaskReport, Report, TaskReport

# Metrics from 0 to 100; others that are better when higher go from 0 to 1.
HUNDREDS = ("chrf",)
# Difference to the single-task model, in hundredths, from which a task is listed even if it is not significant.
POINTS = 3.0
Status = Literal["good", "bad", "unsure", "plain"]
_STATUS: dict[str, Status] = {"better": "good", "worse": "bad", "inconclusive": "unsure"}


def status(report: Report) -> Status:
    """Return the colour class of a verdict.

    Returns:
        `good` only if the tuned model is better than the base, beats every baseline and control, and violates no gate.
    """
    if report.broken_gates or (report.multitask is not None and regressed_tasks(report.multitask)):
        return "bad"
    if report.task.verdict == "better" and any(
        is_not_beaten(arm, report.task) for arm in [*report.baselines, *report.controls]
    ):
        return "unsure"
    return _STATUS.get(report.task.verdict, "plain")


def regressed_tasks(multitask: MultitaskReport) -> list[str]:
    """Return the names of the tasks that are significantly worse than the base."""
    return [part.name for part in multitask.tasks if part.task.verdict == "worse"]


def trails_single_task(part: TaskReport) -> bool:
    """Return whether a task is significantly worse than its single-task model, or worse by more than POINTS."""
    single = part.single_task
    if single is None:
        return False
    if single.verdict == "worse":
        return True
    # Metrics without an upper bound, such as perplexity, have no hundredths.
    points = single.delta if single.metric in HUNDREDS else 100 * single.delta
    return not lower_is_better(single.metric) and points < -POINTS


def multitask_verdict(multitask: MultitaskReport, headline: str) -> str:
    """Return the verdict on several tasks, as sentences separated by ". ".

    Args:
        multitask: results of all tasks.
        headline: verdict on the first task.
    """
    first, *others = multitask.tasks
    sentences = [f"{first.name}: {headline}", *(f"{part.name}: {part.verdict}" for part in others)]
    if worse := regressed_tasks(multitask):
        sentences.append(f"worse than the base: {', '.join(worse)}")
    if behind := [
        f"{part.name} ({part.single_task.delta:+.3g} {part.single_task.metric})"
        for part in multitask.tasks
        if part.single_task and trails_single_task(part)
    ]:
        sentences.append(f"behind its own single-task model: {', '.join(behind)}")
    elif all(part.single_task is not None for part in multitask.tasks):
        sentences.append("no task is behind its own single-task model")
    return ". ".join(sentences)


def scores_as_high(arm: ArmScore, task: TaskScore) -> bool:
    """Return whether an arm scores at least as well as the tuned model."""
    return arm.score <= task.tuned if lower_is_better(task.metric) else arm.score >= task.tuned


def arm_label(name: str, detail: str) -> str:
    """Return the name of an arm; for the base with its detail, such as the prompt or probe that was used."""
    return f"{name}: {detail}" if name == BASE and detail else name


def is_not_beaten(arm: ArmScore, task: TaskScore) -> bool:
    """Return whether the tuned model fails to beat an arm significantly.

    The base is judged by the headline's own test, which was planned before any other. Every other arm is judged by
    its p-value adjusted for all arms of the list, or by the score alone in reports without adjusted p-values.

    Args:
        arm: score of the arm. With another metric than the task it is never reported as unbeaten.
        task: base against tuned model.
    """
    if arm.metric != task.metric:
        return False
    if arm.name == BASE:
        return task.verdict != "better"
    return scores_as_high(arm, task) or (arm.p_adjusted is not None and arm.p_adjusted >= ALPHA)
