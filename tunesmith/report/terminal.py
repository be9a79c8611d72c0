"""Result of a run as Rich renderables; the caller prints them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from tunesmith.evaluation.results import ThinkingLedger
from tunesmith.metrics.task_scores import TaskScore
from tunesmith.report.formatting import (
    bounds,
    clean,
    clock,
    count,
    duration,
    figure,
    forecast_text,
    metric_name,
    p_value,
    reused_line,
    share,
    signed,
    size,
)
from tunesmith.report.ledger_lines import ledger_lines, ledger_rows_sentence
from tunesmith.report.schema import Forecast, MultitaskReport, Report
from tunesmith.report.tables import FittedTable
from tunesmith.report.verdicts import arm_label, is_not_beaten, status, trails_single_task

COLOURS = {"good": "green", "bad": "red", "unsure": "yellow", "plain": ""}
# Columns that are left out first in a narrow terminal.
DROPPED = ("kind", "rows", "p-value")
DISTILLED = ("distillation", "score>", "95 % interval>", "parameters>", "size>", "rows/s>")
# Listed in this order if they exist.
FILES = {
    "report.html": "all results, for a browser",
    "README.md": "model card",
    "model": "the tuned model",
    "predictions.jsonl": "test rows with both answers",
}


def render(report: Report, folder: Path) -> list[RenderableType]:
    """Return the result of the run in a folder: headline, scores, general ability, cost and files."""
    task = report.task
    colour = COLOURS[status(report)]
    headline = Text(f"{metric_name(task.metric)} {figure(task.base)} → ")
    headline.append(figure(task.tuned), style=f"bold {colour}".strip())
    headline.append(f"  ({signed(task.delta)})", style=colour)
    headline.append("\n").append(clean(report.verdict), style=colour)

    gap = Text("")
    parts: list[RenderableType] = [headline, gap, _tasks(report.tasks), gap]
    if report.multitask is not None and any(part.single_task for part in report.multitask.tasks):
        parts += [_single_tasks(report.multitask), gap]
    if report.baselines or report.controls:
        parts += [_baselines(report), gap]
    if report.distillation is not None:
        table = FittedTable(DISTILLED, report.distillation.rows(), drop=("parameters", "95 % interval"))
        table.caption = report.distillation.sentence
        parts += [table, gap]
    if report.thinking is not None:
        parts += [_thinking(report.thinking), gap]

    speed = report.speed
    resumed = report.forecast is not None and report.forecast.within is None
    cost = (
        f"training {duration(speed.seconds)}, whole run {'over ' if resumed else ''}{duration(speed.total_seconds)}, "
        f"{count(speed.tokens_per_second)} tokens/s, peak memory {size(report.memory.peak_bytes)}"
    )
    if report.forecast is not None:
        cost += f"\n{forecast_line(report.forecast)}"
    if report.reused:
        cost += f"\n{reused_line(report.reused)}"
    files = Text(f"in {clean(str(folder))}:")
    for name, description in FILES.items():
        if (folder / name).exists():
            files.append(f"\n  {name:<18}").append(description, style="dim")
    return [*parts, *costs(report), Text(cost), gap, files]


def forecast_line(forecast: Forecast) -> str:
    """Return the forecast of the run and the time it took, such as `forecast 2:40 (1:50 to 4:10), took 2:29`."""
    expected = forecast_text(forecast.seconds, forecast.low, forecast.high)
    line = f"forecast {expected}, took {clock(forecast.actual_seconds)}"
    if forecast.within is None:
        return f"{line} since it was resumed"
    return line if forecast.within else f"{line}, outside the bounds"


def costs(report: Report) -> list[Text]:
    """Return one line each for general ability, calibration and every warning."""
    lines = [] if report.scored_rows is None else [Text(f"rows of the verdict: {report.scored_rows.sentence}")]
    lines.append(_general_ability(report))
    if (calibration := report.calibration) is not None:
        line = f"calibration error {figure(calibration.ece)} (no temperature was fitted)"
        if calibration.temperature is not None:
            scaled = f"{figure(calibration.ece)} after temperature scaling"
            line = f"calibration error {figure(calibration.ece_before)} ({scaled})"
            if calibration.threshold is not None:
                line += f"; of the answers with a confidence of at least {share(calibration.threshold)},"
                line += f" at least {share(calibration.target_accuracy)} were correct (validation rows)"
        lines.append(Text(line))
    if report.thinking_reason:
        lines.append(Text(f"thinking ledger: not measured ({clean(report.thinking_reason)})", style="dim"))
    if (calls := report.tool_calls) is not None:
        lines.append(Text(f"tool calls, base → tuned: {calls.sentence(report.task.n)}"))
    return [*lines, *(Text(f"warning: {clean(warning)}", style="yellow") for warning in report.warnings)]


def _general_ability(report: Report) -> Text:
    """Return one line on general ability, or why it was not measured."""
    retention = report.retention
    if retention is None:
        reason = f" ({clean(report.retention_reason)})" if report.retention_reason else ""
        return Text(f"general ability: not measured{reason}", style="dim")
    parts = []
    if (rise := retention.rise) is not None:
        before, after = figure(retention.general_nll_base), figure(retention.general_nll_tuned)
        parts.append(f"{before} → {after} nats per token ({signed(rise)})")
    if retention.probe_base is not None and retention.probe_tuned is not None:
        line = f"general questions {share(retention.probe_base)} → {share(retention.probe_tuned)} correct"
        line += f", {retention.lost} lost, {retention.won} won"
        parts.append(line + ("" if retention.p_value is None else f", {p_value(retention.p_value)}"))
    return Text(f"general ability: {'; '.join(parts)}")


def _tasks(tasks: Sequence[TaskScore]) -> FittedTable:
    """Return base against tuned model by every metric."""
    table = FittedTable(
        ("metric", "base>", "tuned>", "difference>", "95 % interval>", "p-value>", "rows>"), [], drop=DROPPED
    )
    for task in tasks:
        name = metric_name(task.metric) if task.name == tasks[0].name else f"{task.name}: {metric_name(task.metric)}"
        values = (figure(task.base), figure(task.tuned), signed(task.delta), bounds(task.ci95, sign=True))
        table.add(name, *values, p_value(task.p_value), count(task.n))
    return table


def _thinking(ledger: ThinkingLedger) -> FittedTable:
    """Return the thinking ledger, base against tuned model."""
    table = FittedTable(
        ("thinking", "base>", "tuned>", "difference>", "95 % interval>", "p-value>"),
        [],
        drop=("p-value", "95 % interval"),
    )
    for line in ledger_lines(ledger):
        table.add(line.name, line.base, line.tuned, line.delta, line.interval, line.p_value)
    table.caption = ledger_rows_sentence(ledger)
    return table


def _single_tasks(multitask: MultitaskReport) -> FittedTable:
    """Return each task of the multitask model against its single-task model."""
    table = FittedTable(
        ("task", "metric", "single-task>", "multitask>", "difference>", "95 % interval>", ""), [], drop=DROPPED
    )
    for part in multitask.tasks:
        if (task := part.single_task) is not None:
            values = (figure(task.base), figure(task.tuned), signed(task.delta), bounds(task.ci95, sign=True))
            mark = "behind" if trails_single_task(part) else ""
            table.add(part.name, metric_name(task.metric), *values, mark)
    return table


def _baselines(report: Report) -> FittedTable:
    """Return baselines and controls, each marked if the tuned model does not beat it."""
    table = FittedTable(("against", "kind", "score>", "difference>", "p-value>", "adjusted>", ""), [], drop=DROPPED)
    arms = [*((arm, "baseline") for arm in report.baselines), *((arm, "control") for arm in report.controls)]
    for arm, kind in arms:
        table.add(
            arm_label(arm.name, arm.detail),
            kind,
            figure(arm.score),
            signed(arm.gain.delta if arm.gain else None),
            p_value(arm.gain.p_value if arm.gain else None),
            p_value(arm.p_adjusted),
            "not beaten" if is_not_beaten(arm, report.task) else "",
        )
    if (tests := sum(arm.gain is not None for arm, _ in arms)) > 1:
        table.caption = f"adjusted: by Holm's method for these {tests} tests"
    return table
