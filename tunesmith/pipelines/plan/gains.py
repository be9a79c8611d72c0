"""Expected gains of tuned models over the best cheap classifier, from earlier runs.

A gain is the share of the remaining error that tuning removed: (tuned - cheap) / (1 - cheap), where `cheap` is the
higher of TF-IDF with logistic regression and a linear probe on the frozen encoder. It is nearly the same for accuracy
and macro F1, and vanishes where the cheap classifier is nearly always right.

Constants: `python -m bench.model_choice derive`, from the runs that are listed there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.metrics.cross_validation import MeasuredScore
from tunesmith.pipelines.plan.report import Bounds


@dataclass(frozen=True, slots=True)
class Gain:
    """Share of the error of the best cheap classifier that tuning removes."""

    low: float  # least of the recorded runs
    expected: float  # mean over the data sets, each the mean of its runs
    high: float  # most of the recorded runs
    runs: int
    data_sets: int


GAINS: Mapping[str, Gain] = {
    "encoder": Gain(-0.18, 0.09, 0.39, 7, 4),
    "decoder": Gain(-0.14, 0.30, 0.57, 5, 3),
}
# Tokens that are less than a part of a word, from which a model is taken not to represent the language.
FOREIGN = 0.5


def expected_score(cheap: MeasuredScore, gain: Gain, *, chance: float, fragments: float, test_rows: int) -> Bounds:
    """Forecast the score of a tuned model on the test rows of its run.

    Args:
        cheap: the best cheap classifier.
        gain: of the model's family.
        chance: score of the most frequent label.
        fragments: see `fragment_share`; a language that the model does not represent makes it learn less.
        test_rows: rows of the test split.
    """
    if fragments < FOREIGN:
        fragments = 0.0
    error = (1 - cheap.score) * (1 - fragments)
    expected = cheap.score if cheap.low <= chance else cheap.score + gain.expected * error
    low, high = cheap.score + gain.low * error, cheap.score + gain.high * error
    if fragments:  # it may know nothing of these texts
        low = min(low, chance)
    # The chance of the measured rows and of the test rows, apart from the forecast.
    wider = math.sqrt(1 + cheap.rows / max(1, test_rows))
    below = math.hypot(expected - low, wider * (cheap.score - cheap.low))
    above = math.hypot(high - expected, wider * (cheap.high - cheap.score))
    return Bounds(low=max(0.0, expected - below), expected=expected, high=min(1.0, expected + above))


def reachable(cheap: MeasuredScore, gain: Gain, fragments: float) -> float:
    """Return the highest score that earlier runs let one expect, apart from the chance of the rows."""
    return cheap.score + gain.high * (1 - cheap.score) * (1 - fragments if fragments >= FOREIGN else 1)
