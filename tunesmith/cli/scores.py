"""What a report says beside its scores, in lines for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.cli.terminal import number

if TYPE_CHECKING:
    from tunesmith.report.schema import Report


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


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())
