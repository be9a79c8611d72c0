"""Table of common beliefs about prompting, retrieval and tuning against the measurements of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.pipelines.compare.report import NOT_MEASURED, ArmPage, TableRow
from tunesmith.pipelines.compare.verdict import Verdict
from tunesmith.report.formatting import price


def _general(arm: ArmPage) -> str:
    if arm.general is None:
        return NOT_MEASURED
    probe = "" if arm.general.probe is None else f", {100 * arm.general.probe:.1f} % right"
    rise = round(arm.general.nats_rise, 3)
    return f"{rise:+.3f} nats{probe}" if rise else f"0.000 nats{probe}"  # zero is printed without a sign


def _task(arm: ArmPage) -> str:
    score, bounds = arm.task.score, arm.task.ci95
    return f"{score:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def _style(arm: ArmPage) -> str:
    if arm.style is None:
        return NOT_MEASURED
    parts = [] if arm.style.auc is None else [f"AUC {arm.style.auc:.2f}"]
    parts += [f"{name} {100 * share:.0f} %" for name, share in arm.style.rules.items()]
    return "; ".join(parts) or NOT_MEASURED


def _latency(arm: ArmPage) -> str:
    latency = arm.latency
    seconds = [] if latency.p50 is None or latency.p95 is None else [f"{latency.p50:.2f} s, {latency.p95:.2f} s"]
    tokens = [] if latency.prompt_tokens is None else [f"{latency.prompt_tokens:.0f} tokens"]
    return "; ".join([*seconds, *tokens, f"{latency.answers_per_second:.1f}/s"])


def _update(arm: ArmPage) -> str:
    update = arm.update
    if update is None:
        return NOT_MEASURED
    cost = "" if update.price is None else f", price {price(update.price)}"
    seconds = "" if update.seconds is None else f"{update.seconds:.1f} s{cost}: "
    return f"new {100 * update.new:.0f} %, old {100 * update.old:.0f} %; {seconds}{update.how}"


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
        _general,
    ),
    "Task-specific performance": Belief(
        ("sometimes limited", "good if retrieval is", "excellent"),
        "the metric with its 95 % interval",
        _task,
    ),
    "Access to your domain data": Belief(
        ("only if added", "through the store", "trained in"),
        "the metric on rows whose answer is in the documents",
        lambda arm: NOT_MEASURED if arm.domain is None else f"{arm.domain:.3f} on {arm.domain_n} rows",
    ),
    "Custom tone and style": Belief(
        ("hard", "partly", "easy"),
        "AUC of generated against reference answers (0.5: indistinguishable); style rules satisfied",
        _style,
    ),
    "Fast inference": Belief(
        ("slower with long prompts", "slower by retrieval", "faster"),
        "seconds for one answer, median and 95th percentile; tokens of the prompt; answers per second",
        _latency,
    ),
    "Easy to update knowledge": Belief(
        ("change the prompt", "update the store", "retrain"),
        "share of changed facts answered with the new and with the old value; seconds to update",
        _update,
    ),
    "Needs labelled data": Belief(
        ("no", "sometimes", "yes"),
        "the metric, and the labelled rows used",
        lambda arm: f"{arm.task.score:.3f} with {arm.labels}",
    ),
    "Best use case": Belief(("a first try", "facts that change", "labels, tone, format"), "the verdict for these rows"),
}


def table(arms: Sequence[ArmPage], verdict: Verdict) -> list[TableRow]:
    """Build the table with one cell per arm.

    Args:
        arms: the measured arms.
        verdict: its text is the last row.
    """
    rows = []
    for name, belief in BELIEFS.items():
        here = {arm.name: belief.cell(arm) for arm in arms} if belief.cell else {verdict.arm: verdict.text}
        rows.append(TableRow(row=name, belief=belief.belief, measured=belief.measured, here=here))
    return rows
