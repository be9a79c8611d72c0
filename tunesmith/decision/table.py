"""The eight lines of the usual table, what is commonly believed beside what these rows say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunesmith.decision.page import NOT_MEASURED, ArmPage, TableRow
from tunesmith.decision.verdict import Verdict

# What people say of prompting, retrieval and tuning, and by what it is measured.
BELIEFS: dict[str, tuple[tuple[str, str, str], str]] = {
    "General knowledge": (
        ("yes", "yes", "yes"),
        "rise of nats per token on general text; share of 400 general questions right",
    ),
    "Task-specific performance": (
        ("sometimes limited", "good if retrieval is", "excellent"),
        "the metric with its 95 % interval",
    ),
    "Access to your domain data": (
        ("only if added", "through the store", "trained in"),
        "the metric on rows whose answer stands in the documents",
    ),
    "Custom tone and style": (
        ("hard", "partly", "easy"),
        "how well answers can be told from people's (0.5: not at all); rules kept",
    ),
    "Fast inference": (
        ("slower with long prompts", "slower by retrieval", "faster"),
        "seconds for one answer, median and 95th percentile; tokens of the prompt; answers per second",
    ),
    "Easy to update knowledge": (
        ("change the prompt", "update the store", "retrain"),
        "changed facts given as they are now, as they were, and seconds until then",
    ),
    "Needs labelled data": (("no", "sometimes", "yes"), "the metric, and the labelled rows used"),
    "Best use case": (("a first try", "facts that change", "labels, tone, format"), "the verdict for these rows"),
}


def table(arms: Sequence[ArmPage], verdict: Verdict) -> list[TableRow]:
    """The table with one cell per arm."""
    rows = []
    for name, (belief, measured) in BELIEFS.items():
        cell = _CELLS.get(name)
        here = {arm.name: cell(arm) for arm in arms} if cell else {verdict.arm: verdict.text}
        rows.append(TableRow(row=name, belief=belief, measured=measured, here=here))
    return rows


def _general(arm: ArmPage) -> str:
    if arm.general is None:
        return NOT_MEASURED
    probe = "" if arm.general.probe is None else f", {100 * arm.general.probe:.1f} % right"
    rise = round(arm.general.nats_rise, 3)  # what rounds to nothing has no sign
    return f"{rise:+.3f} nats{probe}" if rise else f"0.000 nats{probe}"


def _task(arm: ArmPage) -> str:
    score, bounds = arm.task.score, arm.task.ci95
    return f"{score:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def _domain(arm: ArmPage) -> str:
    return NOT_MEASURED if arm.domain is None else f"{arm.domain:.3f} on {arm.domain_n} rows"


def _style(arm: ArmPage) -> str:
    if arm.style is None:
        return NOT_MEASURED
    told = [] if arm.style.auc is None else [f"told apart {arm.style.auc:.2f}"]
    told += [f"{name} {100 * share:.0f} %" for name, share in arm.style.rules.items()]
    return "; ".join(told) or NOT_MEASURED


def _latency(arm: ArmPage) -> str:
    found = arm.latency
    alone = [] if found.p50 is None or found.p95 is None else [f"{found.p50:.2f} s, {found.p95:.2f} s"]
    tokens = [] if found.prompt_tokens is None else [f"{found.prompt_tokens:.0f} tokens"]
    return "; ".join([*alone, *tokens, f"{found.answers_per_second:.1f}/s"])


def price(value: float | None) -> str:
    """What something costs, however little."""
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _update(arm: ArmPage) -> str:
    known = arm.update
    if known is None:
        return NOT_MEASURED
    paid = "" if known.price is None else f", {price(known.price)} to pay"
    until = "" if known.seconds is None else f"{known.seconds:.1f} s{paid}: "
    return f"now {100 * known.new:.0f} %, as before {100 * known.old:.0f} %; {until}{known.how}"


def _labels(arm: ArmPage) -> str:
    return f"{arm.task.score:.3f} with {arm.labels}"


_CELLS: dict[str, Callable[[ArmPage], str]] = {
    "General knowledge": _general,
    "Task-specific performance": _task,
    "Access to your domain data": _domain,
    "Custom tone and style": _style,
    "Fast inference": _latency,
    "Easy to update knowledge": _update,
    "Needs labelled data": _labels,
}
