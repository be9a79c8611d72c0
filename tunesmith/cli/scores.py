"""A report as people read it: the verdict, base against tuned, and what else was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.cli.terminal import number, p_value, show, show_table

if TYPE_CHECKING:
    from tunesmith.evaluation.tasks import Score
    from tunesmith.report.schema import Report


def show_scores(report: Report) -> None:
    """The verdict, every metric of both models, the other ways to answer, and what it cost."""
    show(report.verdict)
    rows = []
    for task in report.tasks:
        values = (number(task.base), number(task.tuned), number(task.delta))
        rows.append((task.metric, *values, bounds(task.ci95), p_value(task.p_value), str(task.n)))
    show_table(("metric", "base>", "tuned>", "delta>", "95 % interval", "p>", "rows>"), rows)
    others = [_beside(other) for other in report.baselines]
    others += [_beside(other, "control: ") for other in report.controls]
    show_table(("beside it", "score>", "95 % interval", "how"), others)
    for line in costs(report):
        show(line)


def costs(report: Report) -> list[str]:
    """What tuning did to general ability, and how far the probabilities can be believed, a line each."""
    lines = []
    if (kept := report.retention) is not None:
        text = f"general text: {number(kept.general_nll_base)} -> {number(kept.general_nll_tuned)} nats/token"
        if kept.probe_base is not None and kept.probe_tuned is not None:
            shares = f"{number(kept.probe_base)} -> {number(kept.probe_tuned)} of {kept.probe_n} right"
            text += f"; general questions: {shares} ({kept.lost} lost, {kept.won} won)"
        lines.append(text)
    if (stated := report.calibration) is not None:
        errors = f"{number(stated.ece_before)} before calibration, {number(stated.ece)} now"
        lines.append(f"stated probabilities are off by {errors} (expected calibration error)")
    return lines


def bounds(ci95: tuple[float, float] | None) -> str:
    """An interval in words."""
    return "-" if ci95 is None else f"{number(ci95[0])} to {number(ci95[1])}"


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def _beside(other: Score, kind: str = "") -> tuple[str, str, str, str]:
    return kind + other.name, number(other.score), bounds(other.ci95), one_line(other.detail)
