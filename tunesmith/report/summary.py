"""A run in a few plain sentences, for a reader who knows no statistics."""

from __future__ import annotations

from math import exp

from tunesmith.evaluation.results import BASE, PreferenceDiagnostics, Retention, Style
from tunesmith.metrics.resampling import ALPHA
from tunesmith.metrics.task_scores import ArmScore, TaskScore
from tunesmith.report.formatting import count, figure, metric_name, share
from tunesmith.report.schema import Report
from tunesmith.report.verdicts import is_not_beaten

COUNTED = ("accuracy", "exact_match")  # metrics whose mean is a share of rows


def in_short(report: Report) -> list[str]:
    """What was gained, what else does as well, what it cost in general ability, and how it sounds."""
    told = [_gain(report.task), _rivals(report), _cost(report.retention)]
    told += [] if report.style is None else _sound(report.style)
    told += [] if report.preference_diagnostics is None else _judged(report.preference_diagnostics)
    return [*told, *(f"Alarm: {alarm}" + "." * (not alarm.endswith("?")) for alarm in report.warnings)]


def _gain(task: TaskScore) -> str:
    """Base to tuned, in rows where the metric counts rows."""
    if task.metric in COUNTED:
        base, tuned = (count(round(value * task.n)) for value in (task.base, task.tuned))
        line = f"Of {count(task.n)} test rows the base answers {base} as wanted, the tuned model {tuned}"
    else:
        line = f"Its {metric_name(task.metric)} goes from {figure(task.base)} to {figure(task.tuned)}"
    if task.verdict in ("better", "worse"):
        return f"{line}. That is more than chance."
    if task.verdict == "inconclusive":
        return f"{line}. So few rows cannot tell that from chance."
    return f"{line}. That is no difference worth the name."


def _rivals(report: Report) -> str:
    """Which cheaper or meaningless ways are beaten, and which are not."""
    others = [arm for arm in [*report.baselines, *report.controls] if _rival(arm, report.task)]
    if not others:
        return "Nothing cheaper was tried beside it."
    level = [arm.name for arm in others if is_not_beaten(arm, report.task)]
    if level:
        return f"Not surely better than: {', '.join(level)}."
    return f"Better than everything tried beside it: {', '.join(arm.name for arm in others)}."


def _rival(arm: ArmScore, task: TaskScore) -> bool:
    return arm.name != BASE and arm.metric == task.metric


def _cost(found: Retention | None) -> str:
    """What became of general ability."""
    if found is None:
        return "What it cost in general ability was not measured."
    change = exp(found.general_nll_tuned - found.general_nll_base) - 1
    line = f"Ordinary text surprises it {share(abs(change))} {'more' if change > 0 else 'less'} than the base"
    if not found.probe_n or found.p_value is None:
        return f"{line}."
    word = "more than chance" if found.p_value < ALPHA else "no more than chance"
    questions = f"of {count(found.probe_n)} general questions it lost {found.lost} and won {found.won}"
    return f"{line}; {questions}, {word}."


def _sound(found: Style) -> list[str]:
    """How far its answers can be told from people's; nothing where too few rows could say."""
    if found.auc_tuned is None or found.auc_base is None:
        return []
    return [
        "Side by side with what people wrote, a classifier picks out the base's answer in "
        f"{share(found.auc_base)} of pairs and the tuned one's in {share(found.auc_tuned)} (50 %: it guesses)."
    ]


def _judged(found: PreferenceDiagnostics) -> list[str]:
    """What became of the answers that people liked, and how much of the judgement is length."""
    told = []
    if found.chosen_logprob is not None:
        before, after = map(figure, found.chosen_logprob)
        told.append(f"Answers that people liked have a log-probability of {after} a token, {before} before.")
    if found.length_bias is not None:
        before, after = map(figure, found.length_bias)
        told.append(f"What it finds a pair's answers worth goes with their length by r = {after} ({before} before).")
    return told
