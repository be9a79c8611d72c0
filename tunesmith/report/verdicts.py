"""Verdicts: better or worse, and which baselines and controls score as high."""

from __future__ import annotations

from typing import Literal

from tunesmith.evaluation.results import BASE
from tunesmith.metrics.resampling import ALPHA
from tunesmith.metrics.significance import lower_is_better
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.report.formatting import apart, p_value
from tunesmith.report.schema import MultitaskReport, Report, TaskReport

# Metrics from 0 to 100; others that are better when higher go from 0 to 1.
HUNDREDS = ("chrf",)
# Metrics that score a row as right or wrong; on such scores the exact McNemar test is used.
BINARY = ("accuracy", "exact_match", "contains", "preference_accuracy", "preference_accuracy_summed")
# Difference to the single-task model, in hundredths, from which a task is listed even if it is not significant.
POINTS = 3.0
Status = Literal["good", "bad", "unsure", "plain"]
_STATUS: dict[str, Status] = {"better": "good", "worse": "bad", "inconclusive": "unsure"}


def status(report: Report) -> Status:
    """Return the colour class of a verdict.

    It is `good` only if the tuned model is better than the base, every baseline and control, and violates no gate.
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
    """Return the verdict on several tasks, after that on the first, as sentences separated by ". "."""
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


def rivalry(arm: ArmScore, task: TaskScore) -> str:
    """Compare an arm that is not beaten with the tuned model, as a sentence without a full stop.

    Such as `TF-IDF scores higher: 0.981 against 0.970, adjusted p = 0.210`, or the opposite direction.
    """
    theirs, ours = apart(arm.score, task.tuned)
    adjusted = arm.p_adjusted is not None and arm.name != BASE  # the base is judged by the test of the headline
    p = task.p_value if arm.name == BASE else arm.p_adjusted if adjusted else arm.gain.p_value if arm.gain else None
    test = "" if p is None else f", {'adjusted ' if adjusted else ''}{p_value(p)}"
    if arm.score == task.tuned:
        return f"{arm.name} scores the same: {theirs}{test}"
    if scores_as_high(arm, task):
        word = "better" if lower_is_better(task.metric) else "higher"
        surely = "significantly " if p is not None and p < ALPHA else ""
        return f"{arm.name} scores {surely}{word}: {theirs} against {ours}{test}"
    return f"not significantly better than {arm.name}: {ours} against {theirs}{test}"


def name_of_test(task: TaskScore) -> str:
    """Return the name of the test behind a p-value; McNemar's test says why it applies to a graded metric."""
    if task.test.startswith("McNemar") and task.metric not in BINARY:
        return f"{task.test} (every row scored 0 or 1)"
    return task.test


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
