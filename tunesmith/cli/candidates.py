"""The table of model candidates that `init` and `plan` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.cli.terminal import show, show_table
from tunesmith.report.formatting import duration, figure, metric_name, size

if TYPE_CHECKING:
    from tunesmith.pipelines.plan.report import Bounds, ModelCandidate, ModelChoice


def show_choice(choice: ModelChoice) -> None:
    """Print the reasons and the candidates, the cheapest first."""
    for reason in choice.reasons[:1]:
        show(reason)
    show_candidates(choice.candidates, choice.metric)
    show(f"recommended model: {choice.model}")
    for reason in choice.reasons[1:]:
        show(f"  - {reason}")


def show_candidates(candidates: Sequence[ModelCandidate], metric: str) -> None:
    """Print the table.

    Args:
        candidates: models, and baselines that predict labels.
        metric: of the scores; empty if there are none.
    """
    if not metric:
        rows = [(part.name, part.about, *_costs(part)) for part in candidates]
        show_table(("model", "", "time>", "memory>"), rows)
        return
    columns = ("model", "", f"{metric_name(metric)}>", "bounds", "", "time>", "memory>", "holds")
    show_table(columns, [_cells(part) for part in candidates])


def _cells(part: ModelCandidate) -> tuple[str, ...]:
    score = ("", "") if part.score is None else (figure(part.score.expected), _range(part.score))
    basis = f"measured on {part.rows} rows" if part.basis == "measured" else part.basis or part.note
    return (
        part.name,
        part.about,
        *score,
        basis,
        *_costs(part),
        "yes" if part.holds else "no",
    )


def _costs(part: ModelCandidate) -> tuple[str, str]:
    seconds = "" if part.seconds is None else duration(part.seconds.expected)
    return seconds, "" if part.memory is None else size(part.memory.expected)


def _range(bounds: Bounds) -> str:
    return f"{figure(bounds.low)} to {figure(bounds.high)}"
