"""A comparison's page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

from tunesmith.decision.page import Comparison
from tunesmith.report.html import environment
from tunesmith.report.plots import arms_plot, worth_plot


def page(found: Comparison) -> str:
    """The comparison's page; everything that came from rows, documents and models is escaped."""
    ranked = sorted(found.arms, key=lambda arm: -arm.score)
    scores = [(arm.name, arm.score, arm.ci95 or (arm.score, arm.score)) for arm in ranked]
    paces = [
        (arm.name, arm.pace.build_seconds + arm.pace.seconds_per_1000, arm.score) for arm in ranked if arm.candidate
    ]
    return (
        environment()
        .get_template("compare.html.jinja")
        .render(
            c=found,
            arms=ranked,
            scores=arms_plot(scores, metric=found.metric, chosen=found.verdict.arm),
            worth=worth_plot(paces, metric=found.metric, chosen=found.verdict.arm),
        )
    )
