"""A comparison's page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from tunesmith.decision.page import Comparison
from tunesmith.report.html import environment
from tunesmith.report.plots import arms_plot, worth_plot


def page(found: Comparison) -> str:
    """The comparison's page; everything that came from rows, documents and models is escaped."""
    ranked = sorted(found.arms, key=lambda arm: -arm.task.score)
    scores = [(arm.name, arm.task.score, arm.task.ci95 or (arm.task.score, arm.task.score)) for arm in ranked]
    costs = [
        (arm.name, arm.cost.build_seconds + arm.cost.seconds_per_1000, arm.task.score)
        for arm in ranked
        if arm.candidate
    ]
    return (
        environment()
        .get_template("compare.html.jinja")
        .render(
            c=found,
            arms=ranked,
            scores=arms_plot(scores, metric=found.metric, chosen=found.verdict.arm),
            worth=worth_plot(costs, metric=found.metric, chosen=found.verdict.arm),
        )
    )
