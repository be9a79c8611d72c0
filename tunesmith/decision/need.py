"""How much more data: a learning curve, what it says of more rows, and when it says nothing.

Scores over rows follow an inverse power law, ceiling - drop * rows ** -power, fitted with weights that grow with
the rows (Figueroa et al. 2012, BMC Medical Informatics and Decision Making 12:8). Higher is better here: a loss
comes in with its sign turned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIZES, SEEDS = 5, 3
# Fewer rows at the small end measure chance; a largest size further from it than this many doublings costs little more.
FEWEST_ROWS, DOUBLINGS = 24, 4
# A curve is asked for at most so many times the rows it was measured on: further out, any of them is right.
FARTHEST = 4.0
# Beyond these the power means that the sizes do not tell the shape: a straight line over log rows, or a step.
LEAST_POWER, MOST_POWER, POWERS = 0.05, 3.0, 600
DRAWS = 2_000  # with 400 the ends of an interval move by a tenth of a point from seed to seed
ENDS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class CurveCell:
    """What a model scored that was tuned on so many rows, drawn by this seed."""

    rows: int
    seed: int
    score: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Score over rows."""

    ceiling: float
    drop: float
    power: float

    def at(self, rows: float) -> float:
        """The score to expect with so many rows."""
        return float(self.ceiling - self.drop * rows**-self.power)

    @property
    def shapeless(self) -> bool:
        """Whether the power ended at a bound."""
        return self.power < 1.02 * LEAST_POWER or self.power > 0.98 * MOST_POWER


@dataclass(frozen=True, slots=True)
class ScoreEstimate:
    """A score to expect with so many rows, and its 95 % interval."""

    rows: int
    score: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class FitCheck:
    """The test of the fit: the largest size as the smaller ones foretold it, and as it was measured."""

    guess: ScoreEstimate
    measured: float

    @property
    def inside(self) -> bool:
        """Whether the measured score lies in the interval."""
        return self.guess.low <= self.measured <= self.guess.high


@dataclass(frozen=True, slots=True)
class CurveReading:
    """A learning curve and what it may be asked; `faults` says why it may not be asked at all."""

    curve: Curve
    held: FitCheck
    draws: tuple[Curve, ...]
    faults: tuple[str, ...]

    def guess(self, rows: int) -> ScoreEstimate:
        """The score to expect with so many rows."""
        return _guess(self.curve, self.draws, rows)

    @property
    def ceiling(self) -> ScoreEstimate:
        """The score that no number of such rows goes beyond; `rows` is 0, as it is for none."""
        low, high = np.percentile([one.ceiling for one in self.draws], ENDS)
        return ScoreEstimate(0, self.curve.ceiling, float(low), float(high))

    def rows_for(self, target: float, least: int, most: int) -> int | None:
        """The fewest rows from `least` to `most` that the curve gives this score for; None where it does not."""
        if self.curve.at(most) < target:
            return None
        if self.curve.at(least) >= target:
            return least
        rows: float = (self.curve.drop / (self.curve.ceiling - target)) ** (1 / self.curve.power)
        return math.ceil(rows)


def sizes_of(largest: int, *, smallest: int = 0) -> list[int]:
    """Geometric sizes up to the largest, at most sixteen times apart; fewer than SIZES where rows are too few."""
    smallest = smallest or max(FEWEST_ROWS, round(largest / 2**DOUBLINGS))
    found = np.geomspace(smallest, largest, SIZES) if smallest < largest else [largest]
    return sorted({round(float(size)) for size in found})


def read_curve(cells: Sequence[CurveCell], *, best: float) -> CurveReading:
    """The curve through all cells, tested on the largest size; `best` is the highest score there can be."""
    largest = max(cell.rows for cell in cells)
    early = [cell for cell in cells if cell.rows < largest]
    measured = [cell.score for cell in cells if cell.rows == largest]
    chance = np.random.default_rng(0)
    first = fit(early, best=best)
    spread = _spread(early, first)
    means = chance.choice(spread, (DRAWS, len(measured))).mean(axis=1) / math.sqrt(largest)
    foretold = [one.at(largest) + noise for one, noise in zip(_redrawn(early, first, best, chance), means, strict=True)]
    low, high = np.percentile(foretold, ENDS)
    held = FitCheck(ScoreEstimate(largest, first.at(largest), float(low), float(high)), float(np.mean(measured)))
    curve = fit(cells, best=best)
    draws = tuple(_redrawn(cells, curve, best, chance))
    return CurveReading(curve, held, draws, tuple(_faults(cells, curve, held)))


def fit(cells: Sequence[CurveCell], *, best: float) -> Curve:
    """The curve with the smallest squared distance, each cell weighted by its rows."""
    rows, scores = _columns(cells)
    return _fitted(rows, scores[None], best)[0]


def _fitted(rows: Floats, scores: Floats, best: float) -> list[Curve]:
    """A curve for each of [D, N] scores. What is left for a given power is a straight line, so all powers are tried."""
    nearest = np.full(len(scores), np.inf)
    found = np.zeros((3, len(scores)))
    for power in np.geomspace(LEAST_POWER, MOST_POWER, POWERS):
        line = _lines(rows, scores, float(power), best)
        better = line[2] < nearest
        nearest[better] = line[2][better]
        found[:, better] = np.stack([line[0], line[1], np.full(len(scores), power)])[:, better]
    return [Curve(*map(float, one)) for one in found.T]


def _lines(rows: Floats, scores: Floats, power: float, best: float) -> tuple[Floats, Floats, Floats]:
    """Ceilings, drops and weighted squared distances [D] of the best curves with this power."""
    weights, x = rows / rows.sum(), (rows / rows.max()) ** -power
    middle, height = float(weights @ x), scores @ weights
    slope = ((scores - height[:, None]) @ (weights * (x - middle))) / float(weights @ (x - middle) ** 2)
    drop = np.maximum(0.0, -slope)
    ceiling = height + drop * middle
    over = ceiling > best  # no score goes beyond it; then the drop that fits best under it
    if over.any():
        drop[over] = (best - scores[over]) @ (weights * x) / float(weights @ x**2)
        ceiling[over] = best
    left = (scores - ceiling[:, None] + drop[:, None] * x) ** 2 @ weights
    return ceiling, drop * float(rows.max()) ** power, left


def _columns(cells: Sequence[CurveCell]) -> tuple[Floats, Floats]:
    return np.array([float(cell.rows) for cell in cells]), np.array([cell.score for cell in cells])


def _spread(cells: Sequence[CurveCell], curve: Curve) -> Floats:
    """Distances of the cells from the curve at one row's weight, widened for the three numbers that were fitted."""
    rows, scores = _columns(cells)
    left = (scores - [curve.at(size) for size in rows]) * np.sqrt(rows)
    return left * math.sqrt(len(cells) / max(1, len(cells) - 3))


def _redrawn(cells: Sequence[CurveCell], curve: Curve, best: float, chance: np.random.Generator) -> list[Curve]:
    """Curves through cells that might as well have been measured: the curve with distances drawn from those seen."""
    rows, _ = _columns(cells)
    spread = _spread(cells, curve)
    expected = np.array([curve.at(size) for size in rows])
    return _fitted(rows, expected + chance.choice(spread, (DRAWS, len(cells))) / np.sqrt(rows), best)


def _guess(curve: Curve, draws: Sequence[Curve], rows: int) -> ScoreEstimate:
    low, high = np.percentile([one.at(rows) for one in draws], ENDS)
    return ScoreEstimate(rows, curve.at(rows), float(low), float(high))


def _faults(cells: Sequence[CurveCell], curve: Curve, held: FitCheck) -> list[str]:
    """Why the curve may not be asked about more rows; nothing where it may."""
    found = []
    rows = sorted({cell.rows for cell in cells})
    first, last = (np.array([c.score for c in cells if c.rows == size]) for size in (rows[0], rows[-1]))
    noise = math.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
    if last.mean() - first.mean() <= 2 * noise:
        found.append(f"scores do not rise from {rows[0]:,} to {rows[-1]:,} rows by more than seeds differ")
    elif curve.shapeless:
        found.append("the sizes do not tell the shape of the curve: its power ended at a bound")
    if not held.inside:
        found.append(f"the smaller sizes did not foretell the score at {rows[-1]:,} rows")
    return found
