"""Formatting of values and texts in reports and terminal output."""

from __future__ import annotations

import math

# Names that are not just the recipe's word with spaces for underscores.
METRICS = {
    "macro_f1": "macro F1",
    "sample_f1": "sample F1",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "log_probability": "log-probability per token (mean over documents)",
    "bleu": "BLEU",
    "preference_accuracy_summed": "preference accuracy by summed log-probability",
    "thumbs_auc": "AUC of ratings",
    "thumbs_auc_summed": "AUC of ratings by summed log-probability",
}
NONE = "–"
MINUS = "\N{MINUS SIGN}"


def metric_name(metric: str) -> str:
    """Return the name of a metric in running text."""
    return METRICS.get(metric, metric.replace("_", " "))


def row_score_name(metric: str) -> str:
    """Return the name of the score that is stored with each row of a run with this headline metric."""
    if metric == "thumbs_auc":
        return "log-probability per token (negated for answers rated bad)"
    return "log-probability per token" if metric in ("perplexity", "masked_loss") else metric_name(metric)


def figure(value: float | None) -> str:
    """Format a value: three decimals below 10, one decimal from 10, a dash for None and values that are not finite."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    text = text.removeprefix("-") if text == "-0.000" else text
    return text.replace("-", MINUS)


def signed(value: float | None) -> str:
    """Format a difference with its sign."""
    if value is None or not math.isfinite(value):
        return NONE
    text = figure(value)
    return f"+{text}" if value > 0 and text != figure(0.0) else text


def bounds(interval: tuple[float, float] | None, *, sign: bool = False) -> str:
    """Format an interval as `low to high`, with signs if `sign` is true."""
    if interval is None:
        return NONE
    write = signed if sign else figure
    return f"{write(interval[0])} to {write(interval[1])}"


def p_value(value: float | None) -> str:
    """Format a p-value as `p = 0.012` or `p < 0.001`."""
    if value is None or not math.isfinite(value):
        return NONE
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def share(value: float | None) -> str:
    """Format a fraction in percent; only exactly 0 and 1 are shown as 0 % and 100 %."""
    if value is None or not math.isfinite(value):
        return NONE
    percent = f"{100 * value:.1f}" if abs(value) != 1 else f"{100 * value:.0f}"
    if 0.9995 <= abs(value) < 1:
        percent = f"{math.copysign(min(99.999, 100 * abs(value)), value):.3f}".rstrip("0")
    if value and abs(value) < 0.0005:
        percent = f"{100 * value:.2g}"
    return f"{percent.replace('-', MINUS)}\N{NO-BREAK SPACE}%"


def count(value: float) -> str:
    """Format an integer with thousands separators."""
    return f"{value:,.0f}"


def several(number: int, noun: str) -> str:
    """Format a count with its noun: 1 vote, 2 votes."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def size(value: float) -> str:
    """Format bytes in kB, MB, GB or TB."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB" if value < 1000 else f"{value / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, minutes and seconds, or seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clean(text: str) -> str:
    """Remove control characters and replace lone surrogates, which pages and terminals cannot show."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in valid if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def price(value: float | None) -> str:
    """Format a price: no decimals from 10, else two significant digits; a dash for None."""
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
