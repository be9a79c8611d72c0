"""Summary of a run in plain sentences, for readers without statistics."""

from __future__ import annotations

from math import exp

from tunesmith.evaluation.results import BASE, PreferenceDiagnostics
from tunesmith.metrics.resampling import ALPHA
from tunesmith.report.formatting import count, figure, metric_name, share
from tunesmith.report.ledger_lines import ledger_sentence
from tunesmith.report.schema import Report
from tunesmith.report.verdicts import is_not_beaten, rivalry

COUNTED = ("accuracy", "exact_match", "tool_calls")  # metrics whose mean is a share of rows
SIGNIFICANCE = {
    "better": "The difference is significant.",
    "worse": "The difference is significant.",
    "inconclusive": "The test set is too small to rule out chance.",
}


def in_short(report: Report) -> list[str]:
    """Return the summary, one paragraph per list item.

    The items are: gain over the base, baselines and controls, general ability, thinking, style, preferences, warnings.
    """
    task = report.task
    gain = f"The {metric_name(task.metric)} changes from {figure(task.base)} to {figure(task.tuned)}"
    if task.metric in COUNTED:
        base, tuned = (count(round(value * task.n)) for value in (task.base, task.tuned))
        gain = f"Of {count(task.n)} test rows the base answers {base} correctly, the tuned model {tuned}"
    significance = SIGNIFICANCE.get(task.verdict, "The difference is negligible.")
    if report.scored_rows is not None:
        significance += f" Rows of the verdict: {report.scored_rows.sentence}."
    lines = [f"{gain}. {significance}", _baselines(report), _general_ability(report)]
    if report.distillation is not None:
        sentence = report.distillation.sentence
        lines.insert(1, f"{sentence[0].upper()}{sentence[1:]}.")
    if report.thinking is not None:
        lines.append(f"Thinking, base to tuned: {ledger_sentence(report.thinking)}.")
    style = report.style
    if style is not None and style.auc_tuned is not None and style.auc_base is not None:
        lines.append(
            "A classifier that sees an answer next to the reference answer identifies the one of the base in "
            f"{share(style.auc_base)} of pairs, that of the tuned model in {share(style.auc_tuned)}. "
            "At 50 % it guesses."
        )
    preferences = report.preference_diagnostics or PreferenceDiagnostics()
    if preferences.chosen_logprob is not None:
        before, after = map(figure, preferences.chosen_logprob)
        lines.append(f"The mean log-probability of the chosen answers changes from {before} to {after} nats per token.")
    if preferences.length_bias is not None:
        before, after = map(figure, preferences.length_bias)
        lines.append(
            "The correlation between the score margin of a pair and its difference in length changes from "
            f"r = {before} to r = {after}."
        )
    return [*lines, *(f"Warning: {text}" + "." * (not text.endswith("?")) for text in report.warnings)]


def _baselines(report: Report) -> str:
    others = [
        arm for arm in [*report.baselines, *report.controls] if arm.name != BASE and arm.metric == report.task.metric
    ]
    if not others:
        return "No baseline was evaluated."
    if unbeaten := [rivalry(arm, report.task) for arm in others if is_not_beaten(arm, report.task)]:
        return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in unbeaten)
    return f"Better than every baseline and control: {', '.join(arm.name for arm in others)}."


def _general_ability(report: Report) -> str:
    retention = report.retention
    if retention is None:
        reason = f" ({report.retention_reason})" if report.retention_reason else ""
        return f"General ability was not measured{reason}."
    sentences = []
    if (rise := retention.rise) is not None:
        change = exp(rise) - 1
        sentences.append(
            f"Its perplexity on general text is {share(abs(change))} {'higher' if change > 0 else 'lower'} "
            "than that of the base."
        )
    if retention.probe_n and retention.p_value is not None:
        word = "significant" if retention.p_value < ALPHA else "not significant"
        sentences.append(
            f"Of {count(retention.probe_n)} general questions, {retention.lost} became wrong and "
            f"{retention.won} became right. This change is {word}."
        )
    return " ".join(sentences)
