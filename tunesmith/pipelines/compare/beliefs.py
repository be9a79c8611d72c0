"""Table of common beliefs about prompting, retrieval and tuning against the measurements of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.pipelines.compare.report import NOT_MEASURED, ArmPage, TableRow
from tunesmith.pipelines.compare.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Belief:
    """A common belief, and its measurement."""

    belief: tuple[str, str, str]  # about prompting, retrieval and tuning
    measured: str  # the metrics
    cell: Callable[[ArmPage], str] | None = None  # measurement of an arm; None: the verdict


BELIEFS = {
    "General knowledge": Belief(
        ("yes", "yes", "yes"),
        "increase of nats per token on general text; share of 400 general questions answered correctly",
        lambda arm: str(arm.general or NOT_MEASURED),
    ),
    "Task-specific performance": Belief(
        ("sometimes limited", "good if retrieval is accurate", "excellent"),
        "the metric with its 95 % interval",
        lambda arm: str(arm.task),
    ),
    "Access to your domain data": Belief(
        ("only if added", "through the store", "trained in"),
        "the metric on rows whose answer is in the documents",
        lambda arm: NOT_MEASURED if arm.domain is None else f"{arm.domain:.3f} on {arm.domain_n} rows",
    ),
    "Custom tone and style": Belief(
        ("hard", "partly", "easy"),
        "AUC of generated against reference answers (0.5: indistinguishable); style rules satisfied",
        lambda arm: str(arm.style or NOT_MEASURED),
    ),
    "Fast inference": Belief(
        ("slower with long prompts", "slower by retrieval", "faster"),
        "seconds for one answer, median and 95th percentile; tokens of the prompt; answers per second",
        lambda arm: str(arm.latency),
    ),
    "Easy to update knowledge": Belief(
        ("change the prompt", "update the store", "retrain"),
        "share of changed facts answered with the new and with the old value; seconds to update",
        lambda arm: str(arm.update or NOT_MEASURED),
    ),
    "Needs labelled data": Belief(
        ("no", "sometimes", "yes"),
        "the metric, and the labelled rows used",
        lambda arm: f"{arm.task.score:.3f} with {arm.labels}",
    ),
    "Best use case": Belief(("a first try", "facts that change", "labels, tone, format"), "the verdict for these rows"),
}


def table(arms: Sequence[ArmPage], verdict: Verdict) -> list[TableRow]:
    """Build the table with one cell per arm; the text of the verdict is the last row."""
    rows = []
    for name, belief in BELIEFS.items():
        here = {arm.name: belief.cell(arm) for arm in arms} if belief.cell else {verdict.arm: verdict.text}
        rows.append(TableRow(row=name, belief=belief.belief, measured=belief.measured, here=here))
    return rows
