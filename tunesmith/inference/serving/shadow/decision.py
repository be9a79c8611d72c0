"""Decision which requests a tuned model may answer alone, from its agreement with a paid model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tunesmith.metrics.sequential import BETS, add_to_capital, confidence_sequence, log_evidence

# Confidences from which the tuned model may answer alone. They divide all confidences into bands.
GRID = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
STEPS = 101  # of agreement from 0 to 1 that are distinguished; between two steps the lower one counts
ERROR = 0.05  # probability that the tuned model ever answers where it agrees too seldom, in all attempts together
PATIENCE = 500.0  # control rows until a false alarm, at least, even if agreement is exactly at the limit
MOST_PERIODS = 100  # of the share over time; then two become one
MOST_EVENTS = 100
FEWEST = 20  # control rows from which the others are estimated
MOST_SEEN = 100_000  # texts that are remembered
AGAIN = 86_400.0  # seconds after which a control row of the same text counts again, so that a fall is noticed


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of the reply to one chat, without any text."""

    by: Literal["paid", "tuned", "both", "failed"]  # who answered; `both` is the paid model after the tuned one
    seconds: float  # until the reply
    tokens: tuple[int, int] | None = None  # in and out, as the paid server counts them; None if it does not
    cost: float | None = None  # of the paid answer


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of two answers to one chat, without any text."""

    confidence: float  # of the tuned model
    agreement: float  # 0 to 1
    attempt: int  # that was running when the chat arrived
    text: str = ""  # keyed digest of the chat; empty: unlike all others
    paid_seconds: float | None = None
    cost: float | None = None  # of the paid answer


class State(BaseModel):
    """All that is decided and counted; it contains no text.

    The tuned model answers from the band `floor` upwards, none if that is `len(GRID)`. Below the floor every row is
    compared, above it a random share, so rows of both sides are never mixed: the floor falls to band i if the rows of
    the bands from i to the floor agree. Then those above the new floor do, being a mixture of two sets that do.
    """

    identity: str = ""  # of both models and what is measured
    margin: float = 0.05  # the tuned model answers where it agrees in 1 - margin
    attempt: int = 1
    floor: int = len(GRID)
    table: list[list[int]] = [[0] * STEPS for _ in GRID]  # [bands, STEPS] rows of this attempt below the floor
    control: list[int] = [0] * STEPS  # [STEPS] rows of this attempt above the floor that both answered
    capital: list[float] = [0.0] * len(BETS)  # of the detector of a fall
    seen: dict[str, float] = {}  # Unix time at which a text was counted, by its digest; above the floor with a +
    sums: dict[str, list[float]] = {}  # number, sum and sum of squares: seconds by who answered, cost
    tokens: list[int] = [0, 0]  # of the paid server, in and out
    period: int = 20  # requests per period
    periods: list[list[float]] = []  # Unix time, requests, answered by the tuned model, compared, sum of agreement
    events: list[dict[str, Any]] = []

    @property
    def threshold(self) -> float | None:
        """The confidence from which the tuned model answers alone, None for nowhere."""
        return GRID[self.floor] if self.floor < len(GRID) else None

    def allows(self, confidence: float) -> bool:
        """Return whether the tuned model may answer alone. `floor` is read once: another thread may change it."""
        floor = self.floor
        return floor < len(GRID) and confidence >= GRID[floor]

    def count(self, row: Row, *, at: float) -> None:
        """Count a reply at a Unix time."""
        self._add(f"reply {row.by}", row.seconds)
        self._add("cost", row.cost)
        self.tokens = [kept + new for kept, new in zip(self.tokens, row.tokens or (0, 0), strict=True)]
        if not self.periods or self.periods[-1][1] >= self.period:
            self._begin_period(at)
        self.periods[-1][1] += 1
        self.periods[-1][2] += row.by == "tuned"

    def compare(self, row: Comparison, *, at: float) -> None:
        """Count a comparison of this attempt at a Unix time. A repeated text shows nothing new."""
        if self.periods:
            self.periods[-1][3] += 1
            self.periods[-1][4] += row.agreement
        above = self.allows(row.confidence)
        if above:
            self._add("cost above", row.cost)
            self._add("seconds above", row.paid_seconds)
        if row.text and self._is_repeated(f"{row.text}{'+' * above}", at, AGAIN if above else math.inf):
            return
        step = int(row.agreement * (STEPS - 1) + 1e-9)
        if above:
            self.control[step] += 1
            self.capital = add_to_capital(self.capital, step / (STEPS - 1), 1 - self.margin).tolist()
        else:
            self.table[int(np.searchsorted(GRID, row.confidence, side="right")) - 1][step] += 1

    def due(self) -> dict[str, Any] | None:
        """Return the event that the rows call for, if any: a larger share (`allowed`), or its end (`fell`)."""
        if np.mean(self.capital) >= PATIENCE:
            return {"kind": "fell", **_agreement(self.control)}
        passed = np.flatnonzero(self.evidence() >= self.needed())
        if not len(passed):
            return None
        floor = int(passed[0])
        return {"kind": "allowed", "floor": floor, "from": GRID[floor], **_agreement(self._below()[floor])}

    def apply(self, event: Mapping[str, Any]) -> None:
        """Change the share: `allowed` lowers the floor; the others begin a new attempt without a share.

        Raises ValueError for an unknown event.
        """
        if event["kind"] not in ("allowed", "fell", "start", "restart"):
            raise ValueError(f"unknown event {event['kind']!r}")
        self.events = [*self.events, dict(event)][-MOST_EVENTS:]
        if event["kind"] == "allowed":
            self.floor = int(event["floor"])
            return
        self.seen, fresh = {}, State()
        self.attempt, self.floor = self.attempt + 1, fresh.floor
        self.table, self.control, self.capital = fresh.table, fresh.control, fresh.capital

    def evidence(self) -> NDArray[np.float64]:
        """Return the evidence that the bands from i to the floor agree, nats, [floor]."""
        return log_evidence(self._below(), 1 - self.margin)

    def needed(self) -> float:
        """Return the evidence that a band needs, nats.

        The error is divided over all tests that may ever be made (Bonferroni): over the attempts by 1/(r (r + 1)),
        whose sum is 1; half of it to the ranges up to the highest confidence, half to those below an earlier floor.
        """
        tests = len(GRID) if self.threshold is None else math.comb(len(GRID), 2)
        return math.log(2 * tests * self.attempt * (self.attempt + 1) / ERROR)

    def summary(self) -> dict[str, Any]:
        """Return what reports show; money and seconds with 95 % intervals."""
        tuned, like = self._mean("reply tuned"), self._mean("cost above")
        n, mean, error = self._mean("seconds above")
        replies = {name[6:]: self._mean(name) for name in self.sums if name.startswith("reply ")}
        priced, spent, _ = self.sums.get("cost", (0, None, 0.0))
        cost_saved = seconds_saved = None
        if like[0] >= FEWEST:
            cost_saved = _interval(like[1] * tuned[0], like[2] * tuned[0], like[0])
        if tuned[0] and n >= FEWEST:
            seconds_saved = _interval(mean - tuned[1], math.hypot(error, tuned[2]), min(n, tuned[0]))
        below = self._below()
        evidence = log_evidence(below, 1 - self.margin)
        return {
            "margin": self.margin,
            "error": ERROR,
            "threshold": self.threshold,
            "attempt": self.attempt,
            "requests": {by: values[0] for by, values in replies.items()},
            "evidence_needed": round(self.needed(), 2),
            "shadow": [
                {"from": low, **_agreement(counts), "evidence": round(float(nats), 2)}
                for low, counts, nats in zip(GRID[: self.floor], below, evidence, strict=True)
            ],
            "control": {**_agreement(self.control), "alarm": round(float(np.mean(self.capital)) / PATIENCE, 4)},
            "tokens": self.tokens,
            "priced": int(priced),
            "cost_spent": spent,
            "cost_saved": cost_saved,
            "seconds": {by: _interval(mean, error, n) for by, (n, mean, error) in replies.items()},
            "seconds_saved": seconds_saved,
            "periods": self.periods,
            "events": self.events,
        }

    def _below(self) -> NDArray[np.int64]:
        """Return the counts of the bands from i to the floor, [floor, STEPS]."""
        table = np.array(self.table[: self.floor], dtype=np.int64).reshape(-1, STEPS)
        return np.asarray(table[::-1].cumsum(axis=0)[::-1])

    def _is_repeated(self, text: str, at: float, seconds: float) -> bool:
        """Return whether a text was counted within some seconds, and remember it if not."""
        if at - self.seen.get(text, -math.inf) < seconds:
            return True
        self.seen.pop(text, None)  # to the end of the order
        self.seen[text] = at
        if len(self.seen) > MOST_SEEN:
            del self.seen[next(iter(self.seen))]
        return False

    def _begin_period(self, at: float) -> None:
        self.periods.append([at, 0, 0, 0, 0])
        if len(self.periods) > MOST_PERIODS:
            pairs = zip(self.periods[:-1:2], self.periods[1::2], strict=True)
            joined = [
                [first[0], *(a + b for a, b in zip(first[1:], second[1:], strict=True))] for first, second in pairs
            ]
            self.periods, self.period = [*joined, self.periods[-1]], 2 * self.period

    def _add(self, name: str, value: float | None) -> None:
        if value is not None:
            n, total, squares = self.sums.get(name, (0, 0.0, 0.0))
            self.sums[name] = [n + 1, total + value, squares + value * value]

    def _mean(self, name: str) -> tuple[int, float, float]:
        """Return number, mean and standard error."""
        n, total, squares = self.sums.get(name, (0, 0.0, 0.0))
        mean = total / n if n else 0.0
        return int(n), mean, math.sqrt(max(0.0, squares / n - mean * mean) / (n - 1)) if n > 1 else math.inf


def _agreement(counts: Any) -> dict[str, Any]:
    """Return number of rows, mean agreement and its interval, for counts [STEPS]."""
    rows = int(np.sum(counts))
    if not rows:
        return {"rows": 0, "agreement": None, "interval": None}
    mean = float(np.dot(counts, np.linspace(0, 1, STEPS))) / rows
    return {"rows": rows, "agreement": round(mean, 4), "interval": list(confidence_sequence(counts))}


def _interval(mean: float, error: float, rows: int) -> list[float | None]:
    """Return a mean of rows and its 95 % interval by Student's t, which one row does not have."""
    if rows < 2:
        return [mean, None, None]
    from scipy.stats import t  # reports only: it takes long to import

    width = float(t.ppf(0.975, rows - 1)) * error
    return [mean, mean - width, mean + width]
