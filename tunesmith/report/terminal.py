"""The end of a run as lines for the terminal; whoever prints them owns the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.evaluation.results import Calibration, Retention
from tunesmith.metrics.task_scores import TaskScore
from tunesmith.report.formatting import (
    bounds,
    clean,
    count,
    duration,
    figure,
    metric_name,
    p_value,
    share,
    signed,
    size,
)
from tunesmith.report.schema import MultitaskReport, Report
from tunesmith.report.verdicts import arm_label, is_not_beaten, status, trails_single_task

COLOURS = {"good": "green", "bad": "red", "unsure": "yellow", "plain": ""}
# In the order in which people want to look at them.
FILES = {
    "report.html": "everything measured, to read in a browser",
    "README.md": "model card",
    "model": "the tuned model",
    "predictions.jsonl": "every test row with both answers",
}


def render(report: Report, folder: Path) -> list[RenderableType]:
    """What a run came to: headline, scores, general ability, cost and files, in the order to print them."""
    gap = Text("")
    parts: list[RenderableType] = [_headline(report), gap, _tasks(report.tasks), gap]
    if report.multitask is not None and (alone := _alone(report.multitask)) is not None:
        parts += [alone, gap]
    if report.baselines or report.controls:
        parts += [_others(report), gap]
    return [*parts, *costs(report), _cost(report), gap, _files(folder)]


def costs(report: Report) -> list[Text]:
    """What tuning did to general ability, what stated probabilities are worth, and what went wrong, a line each."""
    stated = [] if report.calibration is None else [_calibration(report.calibration)]
    alarms = [Text(f"alarm: {clean(alarm)}", style="yellow") for alarm in report.warnings]
    return [_retention(report.retention), *stated, *alarms]


def _headline(report: Report) -> Text:
    task = report.task
    colour = COLOURS[status(report)]
    line = Text(f"{metric_name(task.metric)} {figure(task.base)} → ")
    line.append(figure(task.tuned), style=f"bold {colour}".strip())
    line.append(f"  ({signed(task.delta)})", style=colour)
    return line.append("\n").append(clean(report.verdict), style=colour)


def _tasks(tasks: Sequence[TaskScore]) -> Table:
    """Base against tuned by every metric."""
    table = _table("metric", "base>", "tuned>", "difference>", "95 % interval>", "p-value>", "rows>")
    for task in tasks:
        name = metric_name(task.metric) if task.name == tasks[0].name else f"{task.name}: {metric_name(task.metric)}"
        values = (figure(task.base), figure(task.tuned), signed(task.delta), bounds(task.ci95, sign=True))
        _add(table, name, *values, p_value(task.p_value), count(task.n))
    return table


def _alone(together: MultitaskReport) -> Table | None:
    """Each task beside its own model; None where none was made."""
    made = [(part, part.single_task) for part in together.tasks if part.single_task is not None]
    table = _table("task", "metric", "alone>", "together>", "difference>", "95 % interval>", "")
    for part, one in made:
        values = (figure(one.base), figure(one.tuned), signed(one.delta), bounds(one.ci95, sign=True))
        _add(table, part.name, metric_name(one.metric), *values, "behind" if trails_single_task(part) else "")
    return table if made else None


def _others(report: Report) -> Table:
    """Baselines and controls, each marked if the tuned model does not beat it."""
    table = _table("against", "kind", "score>", "difference>", "p-value>", "adjusted>", "")
    kinds = [*((one, "baseline") for one in report.baselines), *((one, "control") for one in report.controls)]
    for one, kind in kinds:
        mark = "not beaten" if is_not_beaten(one, report.task) else ""
        gain, raw = (None, None) if one.gain is None else (one.gain.delta, one.gain.p_value)
        _add(
            table,
            arm_label(one.name, one.detail),
            kind,
            figure(one.score),
            signed(gain),
            p_value(raw),
            p_value(one.p_adjusted),
            mark,
        )
    if (tests := sum(one.gain is not None for one, _ in kinds)) > 1:
        table.caption = Text(f"adjusted: by Holm's method for these {tests} tests", justify="left")
    return table


def _retention(found: Retention | None) -> Text:
    """General ability in one line."""
    if found is None:
        return Text("general ability: not measured", style="dim")
    change = found.general_nll_tuned - found.general_nll_base
    line = f"general ability: {figure(found.general_nll_base)} → {figure(found.general_nll_tuned)} nats per token"
    line += f" ({signed(change)})"
    if found.probe_base is not None and found.probe_tuned is not None:
        line += f"; probe {share(found.probe_base)} → {share(found.probe_tuned)}, {found.lost} lost, {found.won} won"
        line += "" if found.p_value is None else f", {p_value(found.p_value)}"
    return Text(line)


def _calibration(found: Calibration) -> Text:
    """What stated probabilities are worth, in one line."""
    if found.temperature is None:
        return Text(f"stated probabilities off by {figure(found.ece)}, no temperature was fitted")
    line = f"stated probabilities off by {figure(found.ece_before)}, {figure(found.ece)} after calibration"
    if found.threshold is not None:
        line += (
            f"; answer from {share(found.threshold)} sure for {share(found.target_accuracy)} right on validation rows"
        )
    return Text(line)


def _cost(report: Report) -> Text:
    speed, memory = report.speed, size(report.memory.peak_bytes)
    pace = f"{count(speed.tokens_per_second)} tokens/s"
    return Text(f"trained {duration(speed.seconds)} of {duration(speed.total_seconds)}, {pace}, peak memory {memory}")


def _files(folder: Path) -> Text:
    """Those of the run's files that are there."""
    line = Text(f"in {clean(str(folder))}:")
    for name, what in FILES.items():
        if (folder / name).exists():
            line.append(f"\n  {name:<18}").append(what, style="dim")
    return line


def _table(*columns: str) -> Table:
    """An empty table; columns whose heading ends in `>` stand on the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(
            Text(column.removesuffix(">")), justify="right" if column.endswith(">") else "left", overflow="fold"
        )
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row; text from files is never taken for markup."""
    table.add_row(*(Text(clean(cell)) for cell in cells))
