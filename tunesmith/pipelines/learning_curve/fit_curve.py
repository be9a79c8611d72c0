"""Learning curves: the expected score with more training rows, and checks of whether the curve can be extrapolated.

Scores follow an inverse power law, ceiling - drop * rows ** -power, fitted with weights proportional to the rows
(Figueroa et al. 2012, BMC Medical Informatics and Decision Making 12:8). Higher scores are better: pass a loss with
its sign inverted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

FloatArray = NDArray[np.float64]

SIZES = 5  # training sizes of a curve
SEEDS = 3  # runs per size
FEWEST_ROWS = 24  # scores of smaller training sets are mostly noise
DOUBLINGS = 4  # from the smallest to the largest size; the small sizes add little to the total cost
# Greatest extrapolation, as a multiple of the largest measured size. Beyond it, very different curves fit equally well.
FARTHEST = 4.0
# At these bounds the data do not determine the shape: a straight line over log rows, or a step.
LEAST_POWER = 0.05
MOST_POWER = 3.0
POWERS = 600  # tried between the bounds
DRAWS = 2_000  # bootstrap samples; with 400 the ends of an interval vary by 0.1 points between seeds
ENDS = (2.5, 97.5)  # percentiles of the 95 % interval


@dataclass(frozen=True, slots=True)
class CurveCell:
    """The score of one training run of the curve."""

    rows: int  # training rows
    seed: int  # selects the subsample
    score: float
    seconds: float = 0.0  # to train and evaluate


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted curve of score over rows."""

    ceiling: float
    drop: float
    power: float

    def at(self, rows: float) -> float:
        """Return the expected score with this number of training rows."""
        return float(self.ceiling - self.drop * rows**-self.power)

    @property
    def shapeless(self) -> bool:
        """True if the fitted power is at a bound, so that the data do not determine the shape."""
        return self.power < 1.02 * LEAST_POWER or self.power > 0.98 * MOST_POWER


class ScoreEstimate(BaseModel):
    """An expected score and its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    rows: int  # training rows, 0 for the ceiling
    score: float
    low: float
    high: float

    def with_sign(self, sign: float) -> Self:
        """Return the estimate of the score times 1 or -1."""
        low, high = sorted((sign * self.low, sign * self.high))
        return self.model_copy(update={"score": sign * self.score, "low": low, "high": high})


class FitCheck(ScoreEstimate):
    """The test of the fit: a curve through the smaller sizes predicts the score of the largest one."""

    measured: float
    inside: bool  # the measured score is in the predicted interval
    width: float  # of the interval

    def with_sign(self, sign: float) -> Self:
        """Return the check of the score times 1 or -1."""
        return super().with_sign(sign).model_copy(update={"measured": sign * self.measured})


@dataclass(frozen=True, slots=True)
class CurveReading:
    """A learning curve with its uncertainty and the checks of its fit."""

    curve: Curve
    held: FitCheck
    draws: tuple[Curve, ...]  # bootstrap samples of the curve
    problems: tuple[str, ...]  # reasons against extrapolation; empty if the fit is good

    def guess(self, rows: int) -> ScoreEstimate:
        """Predict the score with this number of training rows."""
        low, high = np.percentile([curve.at(rows) for curve in self.draws], ENDS)
        return ScoreEstimate(rows=rows, score=self.curve.at(rows), low=float(low), high=float(high))

    @property
    def ceiling(self) -> ScoreEstimate:
        """The limit of the score for infinitely many rows."""
        low, high = np.percentile([curve.ceiling for curve in self.draws], ENDS)
        return ScoreEstimate(rows=0, score=self.curve.ceiling, low=float(low), high=float(high))

    def rows_for(self, target: float, least: int, most: int) -> int | None:
        """Return the smallest number of rows, from `least` to `most`, with the expected score `target`, or None."""
        if self.curve.at(most) < target:
            return None
        if self.curve.at(least) >= target:
            return least
        rows: float = (self.curve.drop / (self.curve.ceiling - target)) ** (1 / self.curve.power)
        return math.ceil(rows)


def sizes_of(largest: int, *, smallest: int = 0) -> list[int]:
    """Return up to `SIZES` geometric training sizes for a learning curve, in rows.

    The smallest is by default a sixteenth of the largest, at least `FEWEST_ROWS`.
    """
    smallest = smallest or max(FEWEST_ROWS, round(largest / 2**DOUBLINGS))
    spaced = np.geomspace(smallest, largest, SIZES) if smallest < largest else [largest]
    return sorted({round(float(size)) for size in spaced})


def read_curve(cells: Sequence[CurveCell], *, best: float) -> CurveReading:
    """Fit a curve through the scores of several runs per size, and test it on the largest size.

    `best` is the highest possible score, for example 1 for accuracy.
    """
    largest = max(cell.rows for cell in cells)
    smaller = [cell for cell in cells if cell.rows < largest]
    measured = [cell.score for cell in cells if cell.rows == largest]
    rng = np.random.default_rng(0)
    smaller_fit = fit(smaller, best=best)
    residuals = _residuals(smaller, smaller_fit)
    noise = rng.choice(residuals, (DRAWS, len(measured))).mean(axis=1) / math.sqrt(largest)
    resampled = _resampled_fits(smaller, smaller_fit, best, rng)
    predicted = [curve.at(largest) + error for curve, error in zip(resampled, noise, strict=True)]
    low, high = map(float, np.percentile(predicted, ENDS))
    score = float(np.mean(measured))
    held = FitCheck(
        rows=largest,
        score=smaller_fit.at(largest),
        low=low,
        high=high,
        measured=score,
        inside=low <= score <= high,
        width=high - low,
    )
    curve = fit(cells, best=best)
    draws = tuple(_resampled_fits(cells, curve, best, rng))
    problems = []
    least = min(cell.rows for cell in cells)
    first = np.array([cell.score for cell in cells if cell.rows == least])
    last = np.array(measured)
    seed_noise = math.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
    if last.mean() - first.mean() <= 2 * seed_noise:
        problems.append(f"scores do not rise from {least:,} to {largest:,} rows by more than the seed noise")
    elif curve.shapeless:
        problems.append("the sizes do not determine the shape of the curve: its fitted power is at a bound")
    if not held.inside:
        problems.append(f"the smaller sizes did not predict the score at {largest:,} rows")
    return CurveReading(curve, held, draws, tuple(problems))


def fit(cells: Sequence[CurveCell], *, best: float) -> Curve:
    """Fit a curve by weighted least squares, each cell weighted by its rows; `best` bounds the ceiling."""
    rows, scores = _columns(cells)
    return _fit_all(rows, scores[None], best)[0]


def _fit_all(rows: FloatArray, scores: FloatArray, best: float) -> list[Curve]:
    """Fit a curve to each row of scores [D, N]. For a given power the curve is linear, so all powers are tried."""
    least_error = np.full(len(scores), np.inf)
    parameters = np.zeros((3, len(scores)))
    for power in np.geomspace(LEAST_POWER, MOST_POWER, POWERS):
        ceiling, drop, error = _fit_linear(rows, scores, float(power), best)
        better = error < least_error
        least_error[better] = error[better]
        parameters[:, better] = np.stack([ceiling, drop, np.full(len(scores), power)])[:, better]
    return [Curve(*map(float, column)) for column in parameters.T]


def _fit_linear(
    rows: FloatArray, scores: FloatArray, power: float, best: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return ceilings, drops and weighted squared errors [D] of the best curves with this power."""
    weights = rows / rows.sum()
    x = (rows / rows.max()) ** -power
    mean_x = float(weights @ x)
    mean_score = scores @ weights
    slope = ((scores - mean_score[:, None]) @ (weights * (x - mean_x))) / float(weights @ (x - mean_x) ** 2)
    drop = np.maximum(0.0, -slope)
    ceiling = mean_score + drop * mean_x
    over = ceiling > best  # an impossible score: fix the ceiling at the bound and fit the drop alone
    if over.any():
        drop[over] = (best - scores[over]) @ (weights * x) / float(weights @ x**2)
        ceiling[over] = best
    error = (scores - ceiling[:, None] + drop[:, None] * x) ** 2 @ weights
    return ceiling, drop * float(rows.max()) ** power, error


def _columns(cells: Sequence[CurveCell]) -> tuple[FloatArray, FloatArray]:
    return np.array([float(cell.rows) for cell in cells]), np.array([cell.score for cell in cells])


def _residuals(cells: Sequence[CurveCell], curve: Curve) -> FloatArray:
    """Return residuals [N] scaled to the weight of one row and widened for the three fitted parameters."""
    rows, scores = _columns(cells)
    scaled = (scores - [curve.at(size) for size in rows]) * np.sqrt(rows)
    return scaled * math.sqrt(len(cells) / max(1, len(cells) - 3))


def _resampled_fits(cells: Sequence[CurveCell], curve: Curve, best: float, rng: np.random.Generator) -> list[Curve]:
    """Return the curves of a residual bootstrap."""
    rows, _ = _columns(cells)
    residuals = _residuals(cells, curve)
    expected = np.array([curve.at(size) for size in rows])
    return _fit_all(rows, expected + rng.choice(residuals, (DRAWS, len(cells))) / np.sqrt(rows), best)
