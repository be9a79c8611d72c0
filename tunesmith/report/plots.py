"""Plots as SVG inside a page, in the colours and fonts of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

from tunesmith.report.formatting import metric_name

Points = Sequence[tuple[float, float]]

# Inches. Readable at this size on a phone; larger screens scale it up.
WIDTH, HEIGHT = 4.6, 2.9
# More points than pixels only enlarge the page.
MAX_POINTS = 400
MAX_NAME_CHARS = 24
# Costs that differ by more than this factor leave room for labels of the powers of ten only.
ONE_DECADE = 10
# A loss whose highest value is this many times that of most steps gets a logarithmic axis.
SPIKE = 3

# Placeholders: matplotlib needs colours, the browser knows those of the page. `_inline` replaces them.
_INK, _FAINT, _TUNED, _BASE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_VARIABLES = {_INK: "var(--muted)", _FAINT: "var(--line)", _TUNED: "var(--tuned)", _BASE: "var(--base)"}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@dataclass(slots=True)
class _Sheet:
    """Axes of a new figure, and its SVG after the `with` block."""

    axes: Any
    svg: str = field(default="")


def loss_plot(train: Points, validation: Points, *, best_step: int, name: str = "loss") -> str:
    """Plot training and validation loss, or reward, over steps; the step of the saved checkpoint is marked.

    Returns SVG; empty without training points, as all plots here without points.
    """
    if not train:
        return ""
    text = f"Training {name} from {train[0][1]:.3g} to {train[-1][1]:.3g} over {train[-1][0]:.0f} steps"
    if validation:
        best, word = (min, "lowest") if name == "loss" else (max, "highest")
        step, value = best(validation, key=lambda point: point[1])
        text += f"; {word} validation {name} {value:.3g} at step {step:.0f}"
    from matplotlib.ticker import LogLocator, NullLocator

    with _sheet("loss", text, xlabel="step", ylabel=name) as sheet:
        axes = sheet.axes
        axes.plot(*_columns(thin(train)), color=_BASE, linewidth=1.2, label="training")
        if validation:
            axes.plot(*_columns(validation), "o-", color=_TUNED, linewidth=1.8, markersize=4.5, label="validation")
            axes.axvline(best_step, color=_TUNED, linewidth=1, linestyle=(0, (2, 3)), label="saved")
        values = [value for _, value in [*train, *validation]]
        lowest, highest = min(values), max(values)
        # The first steps may be high enough to flatten the rest of the curve; no point is cut off.
        usual = sorted(values)[int(0.9 * (len(values) - 1))]
        if name == "loss" and lowest > 0 and highest > SPIKE * usual:
            axes.set_yscale("log")
            axes.set_ylabel(f"{name} (log scale)")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # labels of all nine would overlap
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(min(0.0, 1.05 * lowest), max(0.0, 1.05 * highest) or 1.0)
        _whole_steps(axes)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=1.4, borderaxespad=0.2)
    return sheet.svg


def rate_plot(rates: Points) -> str:
    """Plot the learning rate over steps."""
    if not rates:
        return ""
    highest = max(rate for _, rate in rates)
    text = f"Learning rate: maximum {highest:.3g}, at the end {rates[-1][1]:.3g}"
    with _sheet("rate", text, xlabel="step", ylabel="learning rate") as sheet:
        axes = sheet.axes
        axes.plot(*_columns(thin(rates)), color=_TUNED, linewidth=1.8)
        axes.set_ylim(0, highest * 1.08 or 1)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
        axes.yaxis.get_offset_text().set_color(_INK)
        _whole_steps(axes)
    return sheet.svg


def reliability_plot(bins: Sequence[tuple[float, float, int]]) -> str:
    """Plot accuracy against stated confidence, from (mean confidence, accuracy, rows) of each bin."""
    if not bins:
        return ""
    text = "Accuracy against stated confidence: " + ", ".join(f"{a:.2f} at {c:.2f}" for c, a, _ in bins)
    with _sheet("reliability", text, xlabel="stated confidence", ylabel="accuracy") as sheet:
        axes = sheet.axes
        low = max(0.0, min(min(c, a) for c, a, _ in bins) - 0.05)
        axes.plot([low, 1], [low, 1], color=_BASE, linewidth=1.2, linestyle=(0, (4, 3)), label="perfect calibration")
        axes.plot([c for c, _, _ in bins], [a for _, a, _ in bins], "o-", color=_TUNED, linewidth=1.4, label="measured")
        axes.set_xlim(low, 1.01)
        axes.set_ylim(low, 1.03)
        axes.legend(loc="upper left", handlelength=1.6)
    return sheet.svg


def coverage_plot(points: Points, *, target: float | None) -> str:
    """Plot the accuracy of the given answers against the share of rows answered, with a line at the target accuracy."""
    if not points:
        return ""
    text = f"Accuracy {points[-1][1]:.3g} when every row is answered"
    half = [accuracy for share, accuracy in points if share <= 0.5]
    if half:
        text += f", {half[-1]:.3g} on the half with the highest confidence"
    with _sheet("coverage", text, xlabel="share of rows answered", ylabel="accuracy of answers") as sheet:
        axes = sheet.axes
        axes.plot(*_columns(thin(points)), color=_TUNED, linewidth=1.8)
        if target is not None:
            axes.axhline(target, color=_BASE, linewidth=1.2, linestyle=(0, (4, 3)), label=f"target {target:.3g}")
            axes.legend(loc="lower left", handlelength=1.6)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(max(0.0, min(accuracy for _, accuracy in points) - 0.03), 1.01)
    return sheet.svg


def learning_curve_plot(points: Mapping[str, Sequence[tuple[float, ...]]]) -> str:
    """Plot scores over the number of training rows.

    Args:
        points: `seeds` and `means` as (rows, score); the fitted `line` as (rows, score, low, high); `held`, the
            prediction for the largest size from the smaller ones, as (rows, score, low, high).
    """
    text = "Score over rows: " + ", ".join(f"{y:.3g} at {x:,.0f}" for x, y in points["means"])
    with _sheet("need", text, xlabel="training rows", ylabel="score") as sheet:
        axes = sheet.axes
        if points["line"]:
            rows, middle, low, high = zip(*points["line"], strict=True)
            axes.fill_between(rows, low, high, color=_TUNED, alpha=0.15, linewidth=0)
            axes.plot(rows, middle, color=_TUNED, linewidth=1.8)
        axes.plot(*_columns([(x, y) for x, y in points["seeds"]]), ".", color=_BASE, markersize=4)
        axes.plot(*_columns([(x, y) for x, y in points["means"]]), "o", color=_TUNED, markersize=5, fillstyle="none")
        for x, _, low_end, high_end in points["held"]:
            axes.plot([x, x], [low_end, high_end], color=_INK, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_xticks([x for x, _ in points["means"]], [f"{x:,.0f}" for x, _ in points["means"]])
        axes.minorticks_off()
    return sheet.svg


def arms_plot(arms: Sequence[tuple[str, float, tuple[float, float]]], *, metric: str, chosen: str) -> str:
    """Plot the score of each arm with its interval.

    Args:
        arms: (name, score, interval) from top to bottom.
        metric: name of the metric.
        chosen: name of the recommended arm, which is highlighted.
    """
    if not arms:
        return ""
    text = "Scores: " + ", ".join(f"{name} {score:.3g}" for name, score, _ in arms)
    with _sheet("arms", text, xlabel=metric_name(metric), ylabel="") as sheet:
        axes = sheet.axes
        heights = range(len(arms), 0, -1)
        for height, (name, score, (low, high)) in zip(heights, arms, strict=True):
            colour = _TUNED if name == chosen else _BASE
            axes.plot([low, high], [height, height], color=colour, linewidth=1.8)
            axes.plot([score], [height], "o", color=colour, markersize=5)
        axes.set_yticks(list(heights), [_short(name) for name, _, _ in arms])
        axes.set_ylim(0.4, len(arms) + 0.6)
    return sheet.svg


def cost_plot(arms: Sequence[tuple[str, float, float]], *, metric: str, chosen: str) -> str:
    """Plot the score of each arm against its cost on a logarithmic scale.

    Args:
        arms: (name, seconds, score).
        metric: name of the metric.
        chosen: name of the recommended arm, which is highlighted.
    """
    if not arms:
        return ""
    from matplotlib.ticker import LogLocator, NullFormatter

    text = "Score against cost: " + ", ".join(f"{name} {score:.3g} at {cost:.3g} s" for name, cost, score in arms)
    with _sheet("worth", text, xlabel="seconds to build, plus 1,000 answers", ylabel=metric_name(metric)) as sheet:
        for name, cost, score in arms:
            colour = _TUNED if name == chosen else _BASE
            sheet.axes.plot([max(cost, 1e-3)], [score], "o", color=colour, markersize=5)
            sheet.axes.annotate(
                _short(name),
                (max(cost, 1e-3), score),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
                color=_INK,
            )
        sheet.axes.set_xscale("log")
        sheet.axes.xaxis.set_major_formatter(_seconds)
        spread = max(cost for _, cost, _ in arms) / max(1e-3, min(cost for _, cost, _ in arms))
        sheet.axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))  # labels of all nine would overlap
        sheet.axes.xaxis.set_minor_formatter(_seconds if spread < ONE_DECADE else NullFormatter())
        sheet.axes.margins(0.15)
    return sheet.svg


def _seconds(cost: float, _: int) -> str:  # signature of a matplotlib formatter
    return f"{cost:,.0f}" if cost >= 1 else f"{cost:g}"


def _plain(value: float, _: int) -> str:  # signature of a matplotlib formatter
    return f"{value:g}"


def _short(name: str) -> str:
    """Shorten a name to MAX_NAME_CHARS by removing its middle."""
    name = name.replace("$", " ")  # matplotlib reads $...$ as a formula
    return name if len(name) <= MAX_NAME_CHARS else f"{name[:11]}…{name[-12:]}"


def thin(points: Points) -> Points:
    """Reduce to at most MAX_POINTS points by averaging equal numbers of neighbours."""
    if len(points) <= MAX_POINTS:
        return points
    size = -(-len(points) // MAX_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


@contextmanager
def _sheet(name: str, text: str, *, xlabel: str, ylabel: str) -> Iterator[_Sheet]:
    """Open a figure in the style of the page; `text` describes it for screen readers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        sheet = _Sheet(figure.add_subplot())
        sheet.axes.set_xlabel(xlabel)
        sheet.axes.set_ylabel(ylabel)
        sheet.axes.tick_params(length=3)
        yield sheet
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    sheet.svg = _inline(buffer.getvalue(), text)


def _inline(svg: str, text: str) -> str:
    """Return a figure as part of a page: with a label for screen readers, and colours and fonts of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    tag = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(text)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: tag, svg, count=1)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    # All figures use the ids figure_1, axes_1 and so on; only referenced ids are needed.
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referenced else "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\s*\n\s*", "\n", svg).replace("xlink:href", "href")


def _whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
