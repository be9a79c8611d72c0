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
    "ndcg": "nDCG@10",
    "recall_1": "recall@1",
    "recall_5": "recall@5",
    "recall_10": "recall@10",
    "mrr": "mean reciprocal rank",
    "spearman": "Spearman correlation",
    "mae": "mean absolute error",
    "r2": "R squared",
    "entity_f1": "entity F1",
    "overlap_f1": "F1 of overlapping spans",
    "preference_accuracy_summed": "preference accuracy by summed log-probability",
    "thumbs_auc": "AUC of ratings",
    "thumbs_auc_summed": "AUC of ratings by summed log-probability",
}
NONE = "–"
MINUS = "\N{MINUS SIGN}"
# Numerical noise: an end of an interval this near to a value is that value.
NEGLIGIBLE = 1e-9


def metric_name(metric: str) -> str:
    """Return the name of a metric in running text."""
    return METRICS.get(metric, metric.replace("_", " "))


def row_score_name(metric: str) -> str:
    """Return the name of the score that is stored with each row of a run with this headline metric."""
    if metric == "thumbs_auc":
        return "log-probability per token (negated for answers rated bad)"
    if metric in ("spearman", "mae", "r2"):
        return "absolute error"  # stored negated, as higher is better
    if metric == "entity_f1":
        return "entity F1 of the row"
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


def bounds(interval: tuple[float, float] | None, *, sign: bool = False, decides: float | None = None) -> str:
    """Format an interval as `low to high`.

    An end that would round to the value that decides, such as the 0 of a difference, gets as many decimals as show
    on which side of it the end is, and is rounded away from the middle of the interval.

    Args:
        interval: both ends.
        sign: format differences with their signs; 0 decides.
        decides: the value that decides, if it is not 0.
    """
    if interval is None:
        return NONE
    value = 0.0 if sign and decides is None else decides
    low, high = (_end(end, sign=sign, decides=value, up=up) for end, up in zip(interval, (False, True), strict=True))
    return f"{low} to {high}"


def _end(end: float, *, sign: bool, decides: float | None, up: bool) -> str:
    text = signed(end) if sign else figure(end)
    if decides is None or not math.isfinite(end) or text != figure(decides) or abs(end - decides) < NEGLIGIBLE:
        return text
    decimals = math.ceil(-math.log10(abs(end - decides)))
    rounded = (math.ceil if up else math.floor)(round(end * 10**decimals, 6)) / 10**decimals
    if rounded == decides:  # outward is towards the value that decides
        decimals += 1
        rounded = (math.ceil if up else math.floor)(round(end * 10**decimals, 6)) / 10**decimals
    digits = f"{rounded:{'+' if sign else ''}.{decimals}f}"
    return digits.replace("-", MINUS)


def apart(one: float, other: float) -> tuple[str, str]:
    """Format two values with as many decimals as make them differ, at most six."""
    texts = figure(one), figure(other)
    for decimals in range(4, 7):
        if texts[0] != texts[1] or one == other:
            break
        texts = f"{one:,.{decimals}f}".replace("-", MINUS), f"{other:,.{decimals}f}".replace("-", MINUS)
    return texts


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


def reused_line(reused: dict[str, float]) -> str:
    """Return the results that a run did not compute again, such as `base scoring (36.0 s)`."""
    parts = ", ".join(f"{phase} ({duration(seconds)})" for phase, seconds in reused.items())
    return f"reused results, with the time they took to compute: {parts}"


def clock(seconds: float) -> str:
    """Format seconds as on a clock: 2:40 or 1:02:40; with a decimal below ten seconds."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def forecast_text(seconds: float, low: float, high: float) -> str:
    """Format a forecast as `2:40 (1:50 to 4:10)`, from `seconds` and its bounds `low` and `high`."""
    return f"{clock(seconds)} ({clock(low)} to {clock(high)})"


def clean(text: str) -> str:
    """Remove control characters and replace lone surrogates, which pages and terminals cannot show."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in valid if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def price(value: float | None) -> str:
    """Format a price: no decimals from 10, else two significant digits; a dash for None."""
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
