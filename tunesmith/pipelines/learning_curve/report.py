"""Schema, sentence and page of `tunesmith learning-curve`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tunesmith.config import ModelName
from tunesmith.display import Display, Displayed
from tunesmith.objectives import objective_class
from tunesmith.pipelines.learning_curve.fit_curve import FARTHEST, FitCheck, ScoreEstimate
from tunesmith.report.formatting import count, figure, metric_name
from tunesmith.report.html import environment
from tunesmith.report.plots import learning_curve_plot


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Size(_Part):
    """The scores of one training size."""

    rows: int  # training rows
    scores: list[float]  # one per seed
    mean: float


class Target(_Part):
    """The rows that a requested score takes."""

    score: float
    rows: int | None  # None: more rows than the curve can be extrapolated to, or not reachable
    out_of_reach: bool  # the score is above the interval of the ceiling


class LearningCurveReport(Displayed, _Part):
    """The measured learning curve and its extrapolation."""

    data: str
    model: ModelName
    objective: str
    technique: str
    metric: str
    lower_is_better: bool
    share: bool  # the score is a fraction, printed in percent
    train_rows: int
    test_rows: int
    sizes: list[Size]
    power_law: dict[str, float]  # ceiling, drop and power
    held_out: FitCheck
    expected: list[ScoreEstimate]  # for the requested rows; empty if the curve has errors
    curve: list[ScoreEstimate]  # points of the plot
    ceiling: ScoreEstimate | None
    target: Target | None
    faults: list[str]  # reasons against extrapolation
    notes: list[str]
    seconds: float
    sentence: str = ""

    def display(self) -> Display:
        """Show the result in a sentence; measured and predicted scores in a table."""
        rows = [(count(size.rows), summary(self, size.mean), "measured") for size in self.sizes]
        for point in self.expected:
            interval = f"{summary(self, point.low)} to {summary(self, point.high)}"
            rows.append((count(point.rows), summary(self, point.score), f"predicted, {interval}"))
        return Display(f"LearningCurve({self.data}): {self.sentence}", self.faults, ("rows", "score", ""), rows)


def summary(curve: LearningCurveReport, score: float) -> str:
    """Format a score: in percent if it is a fraction."""
    return f"{100 * score:.1f}" if curve.share else figure(score)


def sentence(curve: LearningCurveReport) -> str:
    """Return the result in one sentence."""
    # Documents are split into windows, which are the training rows: a small size has fewer windows, not documents.
    rows = "windows of documents" if objective_class(curve.objective).produces == "likelihood" else "rows"
    last = curve.sizes[-1]
    name = metric_name(curve.metric) + (" (%)" if curve.share else "")
    line = f"at {count(last.rows)} {rows} {name} {summary(curve, last.mean)}"
    if curve.faults:
        return f"{line}; no prediction for more {rows}: {'; '.join(curve.faults)}"
    for estimate in curve.expected:
        interval = f"{summary(curve, estimate.low)} to {summary(curve, estimate.high)}"
        line += f"; with {count(estimate.rows)} {rows} {summary(curve, estimate.score)} ({interval})"
    target = curve.target
    if target is None:
        return line
    if target.rows == curve.sizes[0].rows:
        reach = f"is reached with {count(target.rows)} {rows}, the smallest size"
    elif target.rows is not None:
        reach = f"takes about {count(target.rows)} {rows} like these"
    elif target.out_of_reach:
        reach = f"is out of reach of more {rows} like these"
    else:
        reach = f"takes more than {count(FARTHEST * last.rows)} {rows}, the limit of the extrapolation"
    return f"{line}; {summary(curve, target.score)} {reach}"


def page(curve: LearningCurveReport) -> str:
    """Return the HTML page; text from files is escaped."""
    scale = 100.0 if curve.share else 1.0
    held = curve.held_out
    points: dict[str, list[tuple[float, ...]]] = {
        "seeds": [(size.rows, scale * score) for size in curve.sizes for score in size.scores],
        "means": [(size.rows, scale * size.mean) for size in curve.sizes],
        "line": [(at.rows, scale * at.score, scale * at.low, scale * at.high) for at in curve.curve],
        "held": [(held.rows, scale * held.score, scale * held.low, scale * held.high)],
    }
    template = environment().get_template("need.html.jinja")
    return template.render(n=curve, said=lambda score: summary(curve, score), plot=learning_curve_plot(points))
