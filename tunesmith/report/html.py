"""A run's page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.data.files import write_whole
from tunesmith.evaluation.results import Retention
from tunesmith.metrics.resampling import ALPHA
from tunesmith.report import formatting as figures
from tunesmith.report import plots
from tunesmith.report.formatting import price
from tunesmith.report.model_card import COMMAND, card
from tunesmith.report.run_data import (
    LISTED,
    Contender,
    RunFacts,
    confusion,
    confusions,
    contenders,
    coverage,
    curve,
    groups_to_read,
    label_lines,
    read_facts,
    reliability,
)
from tunesmith.report.summary import in_short
from tunesmith.report.verdicts import HUNDREDS, status, trails_single_task

# A text of a row is shown whole up to SHORT characters, behind a fold up to LONGEST.
MAX_SHOWN_CHARS, MAX_FOLDED_CHARS = 280, 8000


def write_reports(folder: Path) -> None:
    """Write report.html and README.md of a finished run beside its report.json.

    Raises CheckpointError and RecipeError for a folder that cannot be read, DataError for one that cannot be written.
    """
    facts = read_facts(folder)
    write_whole(folder / "README.md", card(facts))
    write_whole(folder / "report.html", page(facts))  # last: where it is, both are


def page(facts: RunFacts) -> str:
    """The run's page; everything that came from files is escaped."""
    template = environment().get_template("report.html.jinja")
    return template.render(
        r=facts.report,
        facts=facts,
        command=COMMAND,
        mood=status(facts.report),
        in_short=in_short(facts.report),
        reach=_reach(facts.report.task.ci95, facts.report.task.delta),
        bars=_bars(contenders(facts), facts.report.task.metric),
        others=[one for one in [*facts.report.baselines, *facts.report.controls] if _other(facts, one.metric)],
        forgotten=_forgotten(facts.report.retention),
        matrix=confusion(facts),
        mistakes=confusions(facts),
        labels=label_lines(facts)[:LISTED],
        groups=groups_to_read(facts),
        worth_name=figures.worth_name(facts.report.task.metric),
        plots=_plots(facts),
    )


def environment() -> Environment:
    """Jinja that escapes everything, drops control characters and refuses names it does not know."""
    made = Environment(
        loader=PackageLoader("tunesmith.report", package_path="templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    made.filters |= {
        "figure": figures.figure,
        "signed": figures.signed,
        "bounds": figures.bounds,
        "p": figures.p_value,
        "share": figures.share,
        "count": figures.count,
        "price": price,
        "size": figures.size,
        "duration": figures.duration,
        "metric": figures.metric_name,
    }
    made.tests["behind"] = trails_single_task
    made.globals |= {"SHORT": MAX_SHOWN_CHARS, "LONGEST": MAX_FOLDED_CHARS, "exp": math.exp}
    return made


def _clean(value: Any) -> Any:
    # Only plain text: what is marked as safe is our own markup.
    return figures.clean(value) if type(value) is str else value


def _plots(facts: RunFacts) -> dict[str, str]:
    report = facts.report
    what = "reward" if report.reward_diagnostics else "loss"
    target = None if report.calibration is None else report.calibration.target_accuracy
    return {
        "loss": plots.loss_plot(
            curve(facts, what), curve(facts, f"validation_{what}"), best_step=report.training.best_step, what=what
        ),
        "rate": plots.rate_plot(curve(facts, "learning_rate")),
        "reliability": plots.reliability_plot(reliability(facts)),
        "coverage": plots.coverage_plot(coverage(facts), target=target),
    }


def _other(facts: RunFacts, metric: str) -> bool:
    return metric != facts.report.task.metric


def _reach(interval: tuple[float, float], delta: float) -> dict[str, float]:
    """Where 0, the difference and its interval lie on a line that shows them all, in percent of its width."""
    low, high = min(0.0, interval[0]), max(0.0, interval[1])
    span = (high - low) or 1.0
    start, width = low - 0.08 * span, 1.16 * span
    places = {"zero": 0.0, "low": interval[0], "high": interval[1], "delta": delta}
    return {name: round(100 * (value - start) / width, 2) for name, value in places.items()}


def _bars(all_of_them: Sequence[Contender], metric: str) -> list[dict[str, Any]]:
    """Each contender with its bar and interval in percent of the scale."""
    highest = max(max(one.score, *(one.ci95 or ())) if one.ci95 else one.score for one in all_of_them)
    scale = 100.0 if metric in HUNDREDS else 1.0 if highest <= 1 else 1.05 * highest
    lowest = min(0.0, *(min(one.score, *(one.ci95 or ())) if one.ci95 else one.score for one in all_of_them))
    found = []
    for one in all_of_them:
        low, high = one.ci95 or (one.score, one.score)
        places = {"width": one.score, "low": low, "high": high}
        shares = {name: _percent((value - lowest) / (scale - lowest)) for name, value in places.items()}
        found.append({"one": one, **shares})
    return found


def _percent(value: float) -> float:
    return round(100 * min(1.0, max(0.0, value)), 2)


def _forgotten(retention: Retention | None) -> list[dict[str, Any]]:
    """The general-ability lines: what, base, tuned, difference, and whether it got worse by more than chance.

    One field's 50 questions are too few to say so.
    """
    if retention is None:
        return []
    before, after = retention.general_nll_base, retention.general_nll_tuned
    lines = [("general text, nats per token", before, after, after > before)]
    if retention.probe_base is not None and retention.probe_tuned is not None:
        sure = retention.p_value is not None and retention.p_value < ALPHA
        fell = sure and retention.probe_tuned < retention.probe_base
        lines.append(("probe questions right", retention.probe_base, retention.probe_tuned, fell))
    lines += [(f"· {name}", *pair, False) for name, pair in retention.fields.items()]
    return [
        {"what": what, "base": base, "tuned": tuned, "delta": tuned - base, "worse": worse}
        for what, base, tuned, worse in lines
    ]
