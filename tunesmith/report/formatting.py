"""Numbers and texts as people read them."""

from __future__ import annotations

import math

# Names that differ from the recipe's word with spaces for underscores.
METRICS = {
    "macro_f1": "macro F1",
    "sample_f1": "sample F1",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "log_probability": "log-probability a token, by document,",
    "bleu": "BLEU",
    "preference_accuracy_summed": "the same by whole answers",
    "thumbs_auc": "AUC of thumbs",
    "thumbs_auc_summed": "the same by whole answers",
}
NONE = "–"
MINUS = "\N{MINUS SIGN}"


def metric_name(metric: str) -> str:
    """A metric's name in running text."""
    return METRICS.get(metric, metric.replace("_", " "))


def worth_name(metric: str) -> str:
    """What a row's answers are scored by where a run states it row by row."""
    if metric == "thumbs_auc":
        return "log-probability a token (of a bad answer with its sign turned)"
    return "log-probability a token" if metric in ("perplexity", "masked_loss") else metric_name(metric)


def figure(value: float | None) -> str:
    """Three decimals of a small number, one of a large one, a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    text = text.removeprefix("-") if text == "-0.000" else text  # nothing has no sign
    return text.replace("-", MINUS)


def signed(value: float | None) -> str:
    """A difference with its sign."""
    if value is None or not math.isfinite(value):
        return NONE
    text = figure(value)
    return f"+{text}" if value > 0 and text != figure(0.0) else text


def bounds(interval: tuple[float, float] | None, *, sign: bool = False) -> str:
    """Both ends of an interval."""
    if interval is None:
        return NONE
    write = signed if sign else figure
    return f"{write(interval[0])} to {write(interval[1])}"


def p_value(value: float | None) -> str:
    """A p-value with the letter."""
    if value is None or not math.isfinite(value):
        return NONE
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def share(value: float | None) -> str:
    """A fraction in percent."""
    if value is None or not math.isfinite(value):
        return NONE
    percent = f"{100 * value:.1f}" if abs(value) != 1 else f"{100 * value:.0f}"
    if 0.9995 <= abs(value) < 1:  # nearly all is not all
        percent = f"{math.copysign(min(99.999, 100 * abs(value)), value):.3f}".rstrip("0")
    if value and abs(value) < 0.0005:  # a small part is not none
        percent = f"{100 * value:.2g}"
    return f"{percent.replace('-', MINUS)}\N{NO-BREAK SPACE}%"


def count(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}"


def several(number: int, noun: str) -> str:
    """So many of what a noun names: 1 vote, 2 votes."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def size(value: float) -> str:
    """Bytes in a unit that reads well."""
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB" if value < 1000 else f"{value / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, the two largest that are not zero."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clean(text: str) -> str:
    """The text without control characters and half characters: no page or terminal has a use for them."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in whole if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def price(value: float | None) -> str:
    """Format a price: no decimals from 10, else two significant digits; a dash for None."""
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
