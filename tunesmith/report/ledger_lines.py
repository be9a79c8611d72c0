"""The thinking ledger as lines of text, for the page, the terminal and the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.evaluation.results import ThinkingLedger
from tunesmith.metrics.paired_measures import Interval, PairedMeasure
from tunesmith.metrics.resampling import ALPHA
from tunesmith.report.formatting import MINUS, NONE, bounds, count, figure, metric_name, p_value, share, signed

COLUMNS = ("measure", "base", "tuned", "difference", "95 % interval", "p-value")


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """One measure of the ledger as text."""

    name: str
    base: str
    base_interval: str
    tuned: str
    tuned_interval: str
    delta: str
    interval: str  # of the difference
    p_value: str
    worse: bool  # the tuned model is significantly worse

    @property
    def cells(self) -> tuple[str, ...]:
        """The line under `COLUMNS`."""
        base = f"{self.base} ({self.base_interval})" if self.base_interval else self.base
        tuned = f"{self.tuned} ({self.tuned_interval})" if self.tuned_interval else self.tuned
        return self.name, base, tuned, self.delta, self.interval, self.p_value


def ledger_lines(ledger: ThinkingLedger) -> list[LedgerLine]:
    """Return the measures of a ledger; those that the rows do not have are left out."""
    metric = metric_name(ledger.metric)
    limit = count(ledger.max_new_tokens)
    measures: Sequence[tuple[str, PairedMeasure | None, Callable[[float], str], bool]] = (
        (f"{metric} with thinking", ledger.score_on, figure, True),
        (f"{metric} without thinking", ledger.score_off, figure, True),
        (f"gain in {metric} by thinking", ledger.gain, figure, False),
        (f"thoughts that end within {limit} tokens", ledger.finished, share, True),
        ("length of thoughts in tokens, median", ledger.median_tokens, _tokens, False),
        ("length of thoughts in tokens, 95th percentile", ledger.p95_tokens, _tokens, False),
        ("switch on: answers with thoughts", ledger.obeyed_on, share, True),
        ("switch off: answers without thoughts", ledger.obeyed_off, share, True),
    )
    return [_line(name, one, form, higher=higher) for name, one, form, higher in measures if one is not None]


def _line(name: str, measure: PairedMeasure, form: Callable[[float], str], *, higher: bool) -> LedgerLine:
    """Format a measure; with `higher`, a lower value is worse."""
    delta = measure.delta
    significant = measure.p_value is not None and measure.p_value < ALPHA
    return LedgerLine(
        name,
        NONE if measure.base is None else form(measure.base),
        _interval(measure.base_ci95, form),
        NONE if measure.tuned is None else form(measure.tuned),
        _interval(measure.tuned_ci95, form),
        NONE if delta is None else _signed(delta, form),
        NONE if measure.ci95 is None else _differences(measure.ci95, form),
        p_value(measure.p_value),
        worse=higher and significant and delta is not None and delta < 0,
    )


def _tokens(value: float) -> str:
    return f"{value:,.0f}".replace("-", MINUS)


def _signed(value: float, form: Callable[[float], str]) -> str:
    """Format a difference with its sign."""
    text = form(value)
    return f"+{text}" if value > 0 and text != form(0.0) else text


def _interval(interval: Interval | None, form: Callable[[float], str]) -> str:
    return "" if interval is None else f"{form(interval[0])} to {form(interval[1])}"


def _differences(interval: Interval, form: Callable[[float], str]) -> str:
    if form is figure:
        return bounds(interval, sign=True)
    return f"{_signed(interval[0], form)} to {_signed(interval[1], form)}"


def ledger_rows_sentence(ledger: ThinkingLedger) -> str:
    """Return what the ledger was measured on, and the mode in which the other scores of the report were measured."""
    grouped = f" in {count(ledger.clusters)} groups" if ledger.clusters < ledger.rows else ""
    mode = "after thoughts" if ledger.thinks_by_default else "without thoughts"
    return (
        f"{count(ledger.rows)} {ledger.source}{grouped}, answered greedily by both models with the switch on and off. "
        f"All other scores of this report are those of answers {mode}, the mode of training."
    )


def ledger_sentence(ledger: ThinkingLedger) -> str:
    """Return the ledger in one sentence, for a summary."""
    parts = []
    if ledger.score_on is not None:
        score = ledger.score_on
        change = f"{figure(score.base)} to {figure(score.tuned)} ({signed(score.delta)})"
        parts.append(f"{metric_name(ledger.metric)} with thinking {change}")
    if ledger.finished.tuned is None:
        parts.append("the tuned model wrote no thoughts")
    else:
        before = NONE if ledger.finished.base is None else share(ledger.finished.base)
        parts.append(f"thoughts that end {before} to {share(ledger.finished.tuned)}")
    on, off = ledger.obeyed_on.tuned, ledger.obeyed_off.tuned
    parts.append(f"the switch is obeyed in {share(on)} (on) and {share(off)} (off) of the answers")
    return "; ".join(parts)
