"""How much more data: the shape of the answer, its one sentence, and its page."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from tunesmith.pipelines.learning_curve.fit_curve import FARTHEST
from tunesmith.report.formatting import count, figure, metric_name
from tunesmith.report.html import environment
from tunesmith.report.plots import learning_curve_plot


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Size(_Part):
    """What was measured with so many training rows: a score for each seed."""

    rows: int
    scores: list[float]
    mean: float


class Expected(_Part):
    """A score to expect with so many rows, and its 95 % interval."""

    rows: int
    score: float
    low: float
    high: float


class FitCheck(Expected):
    """The largest size as the smaller ones foretold it, and as it was measured."""

    measured: float
    inside: bool
    width: float


class Target(_Part):
    """A score that was asked for, and how many rows it takes; None: more than may be asked, or no number of them."""

    score: float
    rows: int | None
    out_of_reach: bool


class LearningCurveReport(_Part):
    """What more rows would buy. `faults` says why nothing is foretold; then there are no `expected`."""

    data: str
    model: str
    objective: str
    technique: str
    metric: str
    lower_is_better: bool
    share: bool  # a fraction that people read in percent
    train_rows: int
    test_rows: int
    sizes: list[Size]
    power_law: dict[str, float]
    held_out: FitCheck
    expected: list[Expected]
    curve: list[Expected]  # what the plot draws
    ceiling: Expected | None
    target: Target | None
    faults: list[str]
    notes: list[str]
    seconds: float
    sentence: str = ""


def schema() -> str:
    """The JSON schema of `need --json`."""
    return json.dumps(LearningCurveReport.model_json_schema(), indent=1)


def summary(need: LearningCurveReport, score: float) -> str:
    """A score as people read it."""
    return f"{100 * score:.1f}" if need.share else figure(score)


def sentence(need: LearningCurveReport) -> str:
    """The whole answer in one line."""
    # Of documents windows are learned and drawn: a small size has fewer of them, not fewer documents.
    last, rows = need.sizes[-1], "windows of documents" if need.objective == "domain" else "rows"
    name = metric_name(need.metric) + (" (%)" if need.share else "")
    line = f"at {count(last.rows)} {rows} {name} {summary(need, last.mean)}"
    if need.faults:
        return f"{line}; more {rows} are not foretold: {'; '.join(need.faults)}"
    line += "".join(
        f"; with {count(one.rows)} {rows} {summary(need, one.score)} "
        f"({summary(need, one.low)} to {summary(need, one.high)})"
        for one in need.expected
    )
    if need.target is None:
        return line
    wanted = summary(need, need.target.score)
    if need.target.rows == need.sizes[0].rows:
        return f"{line}; {wanted} is reached with the {count(need.target.rows)} {rows} that are the fewest tried"
    if need.target.rows is not None:
        return f"{line}; {wanted} takes about {count(need.target.rows)} {rows} like these"
    reach = f"is out of reach of more {rows} like these" if need.target.out_of_reach else _beyond(last.rows, rows)
    return f"{line}; {wanted} {reach}"


def _beyond(largest: int, rows: str) -> str:
    return f"takes more than {count(FARTHEST * largest)} {rows}, which is as far as this curve may be asked"


def page(need: LearningCurveReport) -> str:
    """The page; everything that came from files is escaped."""
    template = environment().get_template("need.html.jinja")
    return template.render(n=need, said=lambda score: summary(need, score), plot=learning_curve_plot(need_points(need)))


def need_points(need: LearningCurveReport) -> dict[str, list[tuple[float, ...]]]:
    """What the plot shows: every seed, the means, the fitted line with its band, and the test of the fit."""
    scale = 100.0 if need.share else 1.0
    held = need.held_out
    return {
        "seeds": [(one.rows, scale * score) for one in need.sizes for score in one.scores],
        "means": [(one.rows, scale * one.mean) for one in need.sizes],
        "line": [(one.rows, scale * one.score, scale * one.low, scale * one.high) for one in need.curve],
        "held": [(held.rows, scale * held.score, scale * held.low, scale * held.high)],
    }
