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
    """Print the table of models and baselines; `metric` is that of the scores, empty if there are none."""
    if not metric:
        show_table(("model", "time>", "memory>"), [(part.name, *_costs(part)) for part in candidates])
        return
    columns = ("model", f"{metric_name(metric)}>", "bounds", "", "time>", "memory>", "holds")
    show_table(columns, [_cells(part) for part in candidates])
    for part in candidates:
        if part.basis == "measured":
            show(f"{part.name}: {part.about}, cross-validated on {part.rows} rows")
    show("expected: from earlier runs; holds: may score as high as the best, within the margin")


def _cells(part: ModelCandidate) -> tuple[str, ...]:
    score = ("", "") if part.score is None else (figure(part.score.expected), _range(part.score))
    return (part.name, *score, part.basis or part.note, *_costs(part), "yes" if part.holds else "no")


def _costs(part: ModelCandidate) -> tuple[str, str]:
    seconds = "" if part.seconds is None else duration(part.seconds.expected)
    return seconds, "" if part.memory is None else size(part.memory.expected)


def _range(bounds: Bounds) -> str:
    return f"{figure(bounds.low)} to {figure(bounds.high)}"
