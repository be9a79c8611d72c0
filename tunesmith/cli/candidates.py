"""The table of model candidates that `init` and `plan` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.cli.terminal import show, show_table
from tunesmith.report.formatting import duration, figure, metric_name, size

if TYPE_CHECKING:
    from tunesmith.pipelines.plan.report import Bounds, ModelCandidate, ModelChoice


def show_choice(choice: ModelChoice) -> None:
    """Print the reasons and the candidates, the cheapest first."""
    for reason in choice.reasons[:1]:
        show(reason)
    heading = metric_name(choice.metric) if choice.metric else "score"
    columns = ("model", "", f"{heading}>", "95 % / bounds", "", "time>", "memory>", "holds")
    show_table(columns, [_cells(part) for part in choice.candidates])
    show(f"recommended model: {choice.model}")
    for reason in choice.reasons[1:]:
        show(f"  - {reason}")


def _cells(part: ModelCandidate) -> tuple[str, ...]:
    score = ("", "") if part.score is None else (figure(part.score.expected), _range(part.score))
    basis = f"measured on {part.rows} rows" if part.basis == "measured" else part.basis or part.note
    return (
        part.name,
        part.about,
        *score,
        basis,
        "" if part.seconds is None else f"{duration(part.seconds.expected)}",
        "" if part.memory is None else f"{size(part.memory.expected)}",
        "yes" if part.holds else "no",
    )


def _range(bounds: Bounds) -> str:
    return f"{figure(bounds.low)} to {figure(bounds.high)}"
