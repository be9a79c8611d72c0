"""Page of a run: one HTML file without scripts, network access or other files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.data.files import write_whole
from tunesmith.display import model_label
from tunesmith.evaluation.results import Retention
from tunesmith.metrics.resampling import ALPHA
from tunesmith.report import formatting, plots
from tunesmith.report.ledger_lines import ledger_lines, ledger_rows_sentence
from tunesmith.report.model_card import COMMAND, card
from tunesmith.report.run_data import (
    LISTED,
    Contender,
    RunData,
    confusion,
    confusions,
    contenders,
    coverage,
    curve,
    groups_to_read,
    label_scores,
    read_run_data,
    reliability,
)
from tunesmith.report.summary import in_short
from tunesmith.report.verdicts import HUNDREDS, name_of_test, rivalry, status, trails_single_task

# Longer texts of a row are folded; no more than MAX_FOLDED_CHARS characters are on the page.
MAX_SHOWN_CHARS = 280
MAX_FOLDED_CHARS = 8000


def write_reports(folder: Path) -> None:
    """Write report.html and README.md of a finished run.

    Args:
        folder: the run folder, with report.json.

    Raises:
        CheckpointError, RecipeError: the folder cannot be read.
        DataError: a file cannot be written.
    """
    run = read_run_data(folder)
    write_whole(folder / "README.md", card(run))
    write_whole(folder / "report.html", page(run))  # last: if it exists, both exist


def page(run: RunData) -> str:
    """Render the page of a run. Text from files is escaped."""
    report = run.report
    metric = report.task.metric
    arms = contenders(run)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            r=report,
            run=run,
            command=COMMAND,
            status=status(report),
            in_short=in_short(report),
            scale=_interval_positions(report.task.ci95, report.task.delta),
            title=run.title,
            bars=_bars(arms, metric),
            rivals=[rivalry(arm, report.task) for arm in arms if arm.not_beaten],
            others=[arm for arm in [*report.baselines, *report.controls] if arm.metric != metric],
            general_ability=_general_ability(report.retention),
            ledger=[] if report.thinking is None else ledger_lines(report.thinking),
            ledger_rows="" if report.thinking is None else ledger_rows_sentence(report.thinking),
            matrix=confusion(run),
            mistakes=confusions(run),
            labels=label_scores(run)[:LISTED],
            groups=groups_to_read(run),
            row_score_name=formatting.row_score_name(metric),
            plots=_plots(run),
        )
    )


@cache
def environment() -> Environment:
    """Return the Jinja environment of all pages: escapes text, drops control characters, rejects undefined names."""
    made = Environment(
        loader=PackageLoader("tunesmith.report", package_path="templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Only plain strings: `Markup` is our own and stays unchanged.
        finalize=lambda value: formatting.clean(value) if type(value) is str else value,
    )
    names = ("figure", "signed", "bounds", "share", "count", "price", "size", "duration")
    made.filters |= {name: getattr(formatting, name) for name in names}
    made.filters |= {"p": formatting.p_value, "metric": formatting.metric_name}
    made.filters |= {"model_label": model_label, "name_of_test": name_of_test}
    made.tests["behind"] = trails_single_task
    made.globals |= {"SHORT": MAX_SHOWN_CHARS, "LONGEST": MAX_FOLDED_CHARS, "exp": math.exp}
    return made


def _plots(run: RunData) -> dict[str, str]:
    name = "reward" if run.report.reward_diagnostics else "loss"
    calibration = run.report.calibration
    return {
        "loss": plots.loss_plot(
            curve(run, name), curve(run, f"validation_{name}"), best_step=run.report.training.best_step, name=name
        ),
        "rate": plots.rate_plot(curve(run, "learning_rate")),
        "reliability": plots.reliability_plot(reliability(run)),
        "coverage": plots.coverage_plot(
            coverage(run), target=None if calibration is None else calibration.target_accuracy
        ),
    }


def _interval_positions(interval: tuple[float, float], delta: float) -> dict[str, float]:
    """Return the positions of 0, the difference and its interval on one scale, in percent of its width."""
    low = min(0.0, interval[0])
    high = max(0.0, interval[1])
    span = (high - low) or 1.0
    start = low - 0.08 * span
    width = 1.16 * span
    values = {"zero": 0.0, "low": interval[0], "high": interval[1], "delta": delta}
    return {name: round(100 * (value - start) / width, 2) for name, value in values.items()}


def _bars(arms: Sequence[Contender], metric: str) -> list[dict[str, Any]]:
    """Return each arm with its bar and interval in percent of the scale."""
    ends = [value for arm in arms for value in (arm.score, *(arm.ci95 or ()))]
    highest = max(ends)
    scale = 100.0 if metric in HUNDREDS else 1.0 if highest <= 1 else 1.05 * highest
    lowest = min(0.0, *ends)

    def percent(value: float) -> float:
        return float(round(100 * min(1.0, max(0.0, (value - lowest) / (scale - lowest))), 2))

    bars = []
    for arm in arms:
        low, high = arm.ci95 or (arm.score, arm.score)
        bars.append({"arm": arm, "width": percent(arm.score), "low": percent(low), "high": percent(high)})
    return bars


def _general_ability(retention: Retention | None) -> list[dict[str, Any]]:
    """Return the rows of the table of general ability.

    The share of correct probe items is marked as worse only if the test over all items is significant. The 50 items
    of one field are too few for a test.
    """
    if retention is None:
        return []
    before, after = retention.general_nll_base, retention.general_nll_tuned
    rows: list[tuple[str, float, float, bool]] = []
    if before is not None and after is not None:
        rows.append(("loss on general text, nats per token", before, after, after > before))
    if retention.probe_base is not None and retention.probe_tuned is not None:
        significant = retention.p_value is not None and retention.p_value < ALPHA
        worse = significant and retention.probe_tuned < retention.probe_base
        rows.append(("general questions, share correct", retention.probe_base, retention.probe_tuned, worse))
    rows += [(f"· {name}", *pair, False) for name, pair in retention.fields.items()]
    return [
        {"name": name, "base": base, "tuned": tuned, "delta": tuned - base, "worse": worse}
        for name, base, tuned, worse in rows
    ]
