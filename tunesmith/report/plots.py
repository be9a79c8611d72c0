"""Curves as SVG inside the page: its colours and letters, light or dark, and no file of their own."""

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

# Wide enough to be read at its own size on a phone; drawn larger elsewhere.
WIDTH, HEIGHT = 4.6, 2.9
# More points than the picture has pixels only make the page heavy.
MOST_POINTS = 400
LONGEST_NAME = 24  # letters
ONE_TENFOLD = 10  # costs farther apart have room for the names of tenfolds alone

# Stand-ins: matplotlib wants colours, the page knows them only when it is read.
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
    """One empty picture: axes to draw on, and the SVG once the block has ended."""

    axes: Any
    svg: str = field(default="")


def loss_plot(train: Points, validation: Points, *, best_step: int, what: str = "loss") -> str:
    """Loss, or reward, in training and validation over steps, the kept step marked; empty without points."""
    if not train:
        return ""
    said = f"Training {what} from {train[0][1]:.3g} to {train[-1][1]:.3g} over {train[-1][0]:.0f} steps"
    if validation:
        best, word = (min, "lowest") if what == "loss" else (max, "highest")
        found = best(validation, key=lambda point: point[1])
        said += f"; {word} validation {what} {found[1]:.3g} at step {found[0]:.0f}"
    with _sheet("loss", said, xlabel="step", ylabel=what) as sheet:
        axes = sheet.axes
        axes.plot(*_columns(thin(train)), color=_BASE, linewidth=1.2, label="training")
        if validation:
            axes.plot(*_columns(validation), "o-", color=_TUNED, linewidth=1.8, markersize=4.5, label="validation")
            axes.axvline(best_step, color=_TUNED, linewidth=1, linestyle=(0, (2, 3)), label="kept")
        low, high = axes.get_ylim()
        axes.set_ylim(min(0, low), _top(train, validation) if what == "loss" else max(0, high))
        _whole_steps(axes)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=1.4, borderaxespad=0.2)
    return sheet.svg


def rate_plot(rates: Points) -> str:
    """Learning rate over steps; empty without points."""
    if not rates:
        return ""
    highest = max(rate for _, rate in rates)
    said = f"Learning rate: at most {highest:.3g}, at the end {rates[-1][1]:.3g}"
    with _sheet("rate", said, xlabel="step", ylabel="learning rate") as sheet:
        axes = sheet.axes
        axes.plot(*_columns(thin(rates)), color=_TUNED, linewidth=1.8)
        axes.set_ylim(0, highest * 1.08 or 1)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
        axes.yaxis.get_offset_text().set_color(_INK)
        _whole_steps(axes)
    return sheet.svg


def reliability_plot(bins: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy against stated confidence, a dot per bin; empty without bins."""
    if not bins:
        return ""
    said = "Accuracy against stated confidence: " + ", ".join(f"{a:.2f} at {c:.2f}" for c, a, _ in bins)
    with _sheet("reliability", said, xlabel="stated confidence", ylabel="accuracy") as sheet:
        axes = sheet.axes
        low = max(0.0, min(min(c, a) for c, a, _ in bins) - 0.05)
        axes.plot([low, 1], [low, 1], color=_BASE, linewidth=1.2, linestyle=(0, (4, 3)), label="as stated")
        axes.plot([c for c, _, _ in bins], [a for _, a, _ in bins], "o-", color=_TUNED, linewidth=1.4, label="found")
        axes.set_xlim(low, 1.01)
        axes.set_ylim(low, 1.03)
        axes.legend(loc="upper left", handlelength=1.6)
    return sheet.svg


def coverage_plot(points: Points, *, target: float | None) -> str:
    """Accuracy of the answers given, against the share of rows answered; empty without points."""
    if not points:
        return ""
    said = f"Accuracy {points[-1][1]:.3g} when every row is answered"
    half = [accuracy for share, accuracy in points if share <= 0.5]
    if half:
        said += f", {half[-1]:.3g} on the surest half"
    with _sheet("coverage", said, xlabel="share of rows answered", ylabel="accuracy of answers") as sheet:
        axes = sheet.axes
        axes.plot(*_columns(thin(points)), color=_TUNED, linewidth=1.8)
        if target is not None:
            axes.axhline(target, color=_BASE, linewidth=1.2, linestyle=(0, (4, 3)), label=f"target {target:.3g}")
            axes.legend(loc="lower left", handlelength=1.6)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(max(0.0, min(accuracy for _, accuracy in points) - 0.03), 1.01)
    return sheet.svg


def need_plot(points: Mapping[str, Sequence[tuple[float, ...]]]) -> str:
    """Scores over rows: `seeds`, `means`, the fitted `line` with its band, and what was foretold of the `held` size."""
    said = "Score over rows: " + ", ".join(f"{y:.3g} at {x:,.0f}" for x, y in points["means"])
    with _sheet("need", said, xlabel="training rows", ylabel="score") as sheet:
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
    """Each arm's score with its interval, in the order given from the top; empty without arms."""
    if not arms:
        return ""
    said = "Scores: " + ", ".join(f"{name} {score:.3g}" for name, score, _ in arms)
    with _sheet("arms", said, xlabel=metric_name(metric), ylabel="") as sheet:
        axes, places = sheet.axes, range(len(arms), 0, -1)
        for place, (name, score, (low, high)) in zip(places, arms, strict=True):
            colour = _TUNED if name == chosen else _BASE
            axes.plot([low, high], [place, place], color=colour, linewidth=1.8)
            axes.plot([score], [place], "o", color=colour, markersize=5)
        axes.set_yticks(list(places), [_short(name) for name, _, _ in arms])
        axes.set_ylim(0.4, len(arms) + 0.6)
    return sheet.svg


def worth_plot(arms: Sequence[tuple[str, float, float]], *, metric: str, chosen: str) -> str:
    """Each arm's score against its seconds, on a scale of tenfolds; empty without arms."""
    if not arms:
        return ""
    from matplotlib.ticker import NullFormatter

    said = "Score against cost: " + ", ".join(f"{name} {score:.3g} at {cost:.3g} s" for name, cost, score in arms)
    with _sheet("worth", said, xlabel="seconds to build and for 1,000 answers", ylabel=metric_name(metric)) as sheet:
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
        sheet.axes.xaxis.set_minor_formatter(_seconds if spread < ONE_TENFOLD else NullFormatter())
        sheet.axes.margins(0.15)
    return sheet.svg


def _seconds(cost: float, _: int) -> str:
    """A cost at its place on the scale."""
    return f"{cost:,.0f}" if cost >= 1 else f"{cost:g}"


def _short(name: str) -> str:
    """A name that fits beside a picture, of a long one its two ends; dollars would begin a formula."""
    name = name.replace("$", " ")
    return name if len(name) <= LONGEST_NAME else f"{name[:11]}…{name[-12:]}"


def thin(points: Points) -> Points:
    """At most MOST_POINTS points: means over runs of equally many."""
    if len(points) <= MOST_POINTS:
        return points
    run = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


@contextmanager
def _sheet(name: str, said: str, *, xlabel: str, ylabel: str) -> Iterator[_Sheet]:
    """Axes in the page's style; what was drawn in the block is in `svg` afterwards."""
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
    sheet.svg = _inlined(buffer.getvalue(), said)


def _inlined(svg: str, said: str) -> str:
    """The picture as a part of the page: named for those who cannot see it, in the page's colours and letters."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    named = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(said)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: named, svg, count=1)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    # Every picture has its figure_1 and axes_1; only what is pointed at needs its name.
    pointed = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in pointed else "", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return re.sub(r"\s*\n\s*", "\n", svg).replace("xlink:href", "href")


def _top(train: Points, validation: Points) -> float:
    """The highest loss to show: the first steps may stand so high that all others would lie on the floor."""
    usual = sorted(loss for _, loss in train)[int(0.95 * (len(train) - 1))]
    return 1.5 * max([usual, *(loss for _, loss in validation)]) or 1.0


def _whole_steps(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
