"""Which arm to take: the cheapest that no other surely beats by a margin worth its cost. A pure function of figures.

Where that arm is tuned, would hardly ever be taken on redrawn test sets, and one that is not tuned nearly always, that
one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.evaluation.resampling import ALPHA

Floats = NDArray[np.float64]

# Answers over which the cost of building an arm is spread.
ANSWERS = 1000
TUNED_COUNTS = 2
# Arms that only show where retrieval or reading fails, what fewer labelled rows bring, or what teaching the documents
# brings at best: `taught` learns the chunks with the test's answers first, which nobody can know ahead.
DIAGNOSIS = ("no-context", "oracle-context", "tuned-30%", "tuned-10%", "taught")
# The share of redrawn test sets with the same choice from which on it is a choice.
DECIDED = 0.5
# The share from which on an arm without tuning is taken in place of a tuned one that is not decided.
NEARLY_ALWAYS = 0.9
NOT_TUNED = ", do not fine-tune"
WORDS = {
    "prompt": f"prompt{NOT_TUNED}",
    "few-shot": f"show examples in the prompt{NOT_TUNED}",
    "rag": f"retrieve{NOT_TUNED}",
    "tf-idf": "TF-IDF and logistic regression do, no language model is needed",
    "tuned": "fine-tune",
    "tuned+rag": "fine-tune, and retrieve",
    "raft": "fine-tune with retrieved text in the rows, and retrieve",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm that may be chosen: its score, what it costs, and its score on redrawn test sets [R].

    Higher scores are better. `seconds` is what building it and 1,000 answers take; R is 0 where test rows are in too
    few groups to draw from.
    """

    name: str
    score: float
    seconds: float
    drawn: Floats
    tuned: bool = False

    @property
    def cost(self) -> float:
        """Seconds, those of a tuned model twice: it has to be tuned again when facts change, and it forgets."""
        return self.seconds * (TUNED_COUNTS if self.tuned else 1)


class Verdict(BaseModel):
    """The arm to take, in words, why, and in which share of redrawn test sets the same one would be taken."""

    model_config = ConfigDict(frozen=True)

    arm: str
    text: str
    reasons: list[str]
    confidence: float | None


def needed(margin: float, cheap: float, dear: float) -> float:
    """The gain that an arm must bring over a cheaper one: the margin, and once more for each tenfold of its cost."""
    return margin * (1 + max(0.0, math.log10(max(dear, 1e-9) / max(cheap, 1e-9))))


def choose(
    candidates: Sequence[Candidate], p_values: Mapping[tuple[str, str], float], *, margin: float
) -> tuple[Candidate, list[tuple[Candidate, Candidate]]]:
    """The arm to take, and for each cheaper one that was passed over the arm that beats it.

    `p_values` are those of each pair, cheaper first, adjusted for having looked at all of them; `margin` is in
    the units of the scores.
    """
    order = sorted(candidates, key=lambda one: (one.cost, one.name))
    passed: list[tuple[Candidate, Candidate]] = []
    for one in order:
        better = [
            other
            for other in order
            if _p(p_values, one, other) < ALPHA
            and other.score > one.score
            and other.score - one.score >= needed(margin, one.cost, other.cost)
        ]
        if not better:
            return one, passed
        passed.append((one, max(better, key=lambda other: other.score)))
    raise ValueError("no arm to choose from")


def shares(candidates: Sequence[Candidate], *, margin: float) -> dict[str, float]:
    """For each arm the share of redrawn test sets, each taken at its word, in which it would be chosen; or nothing."""
    order = sorted(candidates, key=lambda one: (one.cost, one.name))
    scores = np.stack([one.drawn for one in order])  # [A, R]
    if not scores.size:
        return {}
    free = np.ones(scores.shape[1], dtype=bool)
    found: dict[str, float] = {}
    for row, one in enumerate(order):
        gains = np.array([needed(margin, one.cost, other.cost) for other in order])[:, None]
        ahead = scores - scores[row]
        beaten = ((ahead > 0) & (ahead >= gains)).any(axis=0)
        found[one.name] = float((free & ~beaten).mean())
        free &= beaten
    return found


def _p(p_values: Mapping[tuple[str, str], float], one: Candidate, other: Candidate) -> float:
    """The adjusted p-value of a pair, 1 for an arm beside itself."""
    return p_values.get((one.name, other.name), p_values.get((other.name, one.name), 1.0))


def verdict(
    candidates: Sequence[Candidate],
    p_values: Mapping[tuple[str, str], float],
    *,
    margin: float,
    learned: str = "",
    extra: Sequence[str] = (),
) -> Verdict:
    """The arm to take with its reasons; `extra` are findings that the reader should have beside them.

    `learned` says on which part of the training rows arms were tuned, where it was not all of them.
    """
    chosen, passed = choose(candidates, p_values, margin=margin)
    reasons = [_beaten(one, other, _p(p_values, one, other)) for one, other in passed]
    found = shares(candidates, margin=margin)
    likely = max(candidates, key=lambda one: found.get(one.name, 0.0))
    never = found.get(chosen.name, 1.0) < DECIDED and found[likely.name] >= NEARLY_ALWAYS
    if chosen.tuned and not likely.tuned and never:
        reasons.append(_hardly_ever(chosen, likely, found))
        chosen = likely
    reasons += [
        _not_worth(chosen, other, _p(p_values, chosen, other), needed(margin, chosen.cost, other.cost))
        for other in sorted(candidates, key=lambda one: -one.score)
        if other.cost > chosen.cost
    ]
    sure = found.get(chosen.name)
    return Verdict(
        arm=chosen.name,
        text=_text(chosen, candidates, sure, learned),
        reasons=[*(reasons or [f"{chosen.name} is the only arm that may be taken"]), *extra],
        confidence=sure,
    )


def _text(chosen: Candidate, candidates: Sequence[Candidate], sure: float | None, learned: str) -> str:
    """What to do in words, no surer than the figures are."""
    if all(one.score == 0 for one in candidates):
        return "none of these ways answers such rows: look at the rows, the metric and the answers first"
    text = WORDS.get(chosen.name, f"ask {chosen.name}{NOT_TUNED}")
    if not any(one.tuned for one in candidates):
        text = text.removesuffix(NOT_TUNED)  # nobody looked what tuning brings
    elif learned and not chosen.tuned:  # nor what it brings with all rows
        text = f"{text.removesuffix(NOT_TUNED)}, beside tuning on {learned}"
    if sure is None:
        return f"not decided by rows of so few groups, for now: {text}"
    return text if sure >= DECIDED else f"not decided by so few rows, for now: {text}"


def _beaten(one: Candidate, other: Candidate, p: float) -> str:
    times = _times(one, other)
    return (
        f"{one.name} ({one.score:.3f}) is cheaper, but {other.name} ({other.score:.3f}) surely beats it by "
        f"{other.score - one.score:.3f} (adjusted {_said(p)}) {times}"
    )


def _hardly_ever(one: Candidate, other: Candidate, found: Mapping[str, float]) -> str:
    return (
        f"no test surely parts {one.name} ({one.score:.3f}) from {other.name} ({other.score:.3f}), but "
        f"{found[one.name]:.0%} of redrawn test sets take {one.name} and {found[other.name]:.0%} {other.name}"
    )


def _not_worth(chosen: Candidate, other: Candidate, p: float, wanted: float) -> str:
    gain, times = other.score - chosen.score, _times(chosen, other)
    if gain <= 0:
        return f"{other.name} ({other.score:.3f}) scores no higher than {chosen.name} ({chosen.score:.3f}) {times}"
    sure = f"surely (adjusted {_said(p)})" if p < ALPHA else f"not surely (adjusted {_said(p)})"
    return f"{other.name} gains {gain:.3f} over {chosen.name}, {sure}; {times} it would have to gain {wanted:.3f}"


def _times(one: Candidate, other: Candidate) -> str:
    ratio = other.cost / max(one.cost, 1e-9)
    return f"at {ratio:.1f} times the cost" if ratio >= 1 else f"at {ratio:.2f} of the cost"


def _said(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
