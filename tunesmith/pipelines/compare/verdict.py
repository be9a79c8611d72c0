"""Choice of the recommended arm: the cheapest one that no other beats significantly and by more than the margin.

If that arm is tuned and rarely chosen on resampled test sets, while an arm without tuning is nearly always chosen
there, the latter is recommended. Pure functions of scores and costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tunesmith.metrics.resampling import ALPHA
from tunesmith.pipelines.compare.arm_kinds import kind_of

FloatArray = NDArray[np.float64]

# Answers over which the cost of building an arm is distributed.
ANSWERS = 1000
TUNED_COUNTS = 2  # cost factor of a tuned arm, see `Candidate.cost`
# Share of resampled test sets with the same choice from which the verdict counts as decided.
DECIDED = 0.5
# Share from which an arm without tuning replaces an undecided tuned one.
NEARLY_ALWAYS = 0.9


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm that may be recommended."""

    name: str
    score: float  # higher is better
    seconds: float  # to build it and generate 1,000 answers
    resampled: FloatArray  # scores on resampled test sets [R]; R is 0 if the test rows have too few groups to resample
    tuned: bool = False

    @property
    def cost(self) -> float:
        """Seconds; doubled for a tuned arm, which forgets and must be tuned again when facts change."""
        return self.seconds * (TUNED_COUNTS if self.tuned else 1)


class Verdict(BaseModel):
    """The recommended arm with its reasons."""

    model_config = ConfigDict(frozen=True)

    arm: str
    text: str  # the recommendation in words
    reasons: list[str]
    confidence: float | None  # share of resampled test sets with the same choice; None if they cannot be resampled


def needed(margin: float, cheap: float, dear: float) -> float:
    """Return the gain required over a cheaper arm: the margin, plus one margin per factor of ten in cost."""
    return margin * (1 + max(0.0, math.log10(max(dear, 1e-9) / max(cheap, 1e-9))))


def choose(
    candidates: Sequence[Candidate], p_values: Mapping[tuple[str, str], float], *, margin: float
) -> tuple[Candidate, list[tuple[Candidate, Candidate]]]:
    """Choose the cheapest arm that no other beats significantly and by the margin, in units of the score.

    The p-values of each pair, in either order, are adjusted for multiple comparisons.

    Returns:
        The chosen arm, and each rejected cheaper arm with the best arm that beats it.
    """
    order = sorted(candidates, key=lambda arm: (arm.cost, arm.name))
    rejected: list[tuple[Candidate, Candidate]] = []
    for arm in order:
        better = [
            other
            for other in order
            if _p(p_values, arm, other) < ALPHA
            and other.score > arm.score
            and other.score - arm.score >= needed(margin, arm.cost, other.cost)
        ]
        if not better:
            return arm, rejected
        rejected.append((arm, max(better, key=lambda other: other.score)))
    raise ValueError("no arm to choose from")


def shares(candidates: Sequence[Candidate], *, margin: float) -> dict[str, float]:
    """Compute in which share of resampled test sets each arm would be chosen, without a significance test.

    Returns the share by name of the arm; empty if there are no resampled test sets.
    """
    order = sorted(candidates, key=lambda arm: (arm.cost, arm.name))
    scores = np.stack([arm.resampled for arm in order])  # [A, R]
    if not scores.size:
        return {}
    undecided = np.ones(scores.shape[1], dtype=bool)
    chosen: dict[str, float] = {}
    for row, arm in enumerate(order):
        gains = np.array([needed(margin, arm.cost, other.cost) for other in order])[:, None]
        ahead = scores - scores[row]
        beaten = ((ahead > 0) & (ahead >= gains)).any(axis=0)
        chosen[arm.name] = float((undecided & ~beaten).mean())
        undecided &= beaten
    return chosen


def _p(p_values: Mapping[tuple[str, str], float], arm: Candidate, other: Candidate) -> float:
    """Return the adjusted p-value of a pair, 1 for an arm and itself."""
    return p_values.get((arm.name, other.name), p_values.get((other.name, arm.name), 1.0))


def verdict(
    candidates: Sequence[Candidate],
    p_values: Mapping[tuple[str, str], float],
    *,
    margin: float,
    learned: str = "",
    extra: Sequence[str] = (),
) -> Verdict:
    """Choose an arm, as `choose` does, and explain the choice.

    `learned` is the part of the training rows that tuned arms used, if it was not all of them; `extra` are further
    findings, appended to the reasons.
    """
    chosen, rejected = choose(candidates, p_values, margin=margin)
    reasons = [
        f"{arm.name} ({arm.score:.3f}) is cheaper, but {other.name} ({other.score:.3f}) scores significantly higher by "
        f"{other.score - arm.score:.3f} (adjusted {p_text(_p(p_values, arm, other))}) {_cost_text(arm, other)}"
        for arm, other in rejected
    ]
    share = shares(candidates, margin=margin)
    likely = max(candidates, key=lambda arm: share.get(arm.name, 0.0))
    rarely_chosen = share.get(chosen.name, 1.0) < DECIDED and share[likely.name] >= NEARLY_ALWAYS
    if chosen.tuned and not likely.tuned and rarely_chosen:
        reasons.append(
            f"{chosen.name} ({chosen.score:.3f}) and {likely.name} ({likely.score:.3f}) do not differ significantly, "
            f"but {share[chosen.name]:.0%} of resampled test sets choose {chosen.name} and {share[likely.name]:.0%} "
            f"{likely.name}"
        )
        chosen = likely
    reasons += [
        _against_dearer(chosen, other, _p(p_values, chosen, other), margin)
        for other in sorted(candidates, key=lambda arm: -arm.score)
        if other.cost > chosen.cost
    ]
    confidence = share.get(chosen.name)
    return Verdict(
        arm=chosen.name,
        text=_text(chosen, candidates, p_values, confidence=confidence, learned=learned),
        reasons=[*(reasons or [f"{chosen.name} is the only candidate"]), *extra],
        confidence=confidence,
    )


def _text(
    chosen: Candidate,
    candidates: Sequence[Candidate],
    p_values: Mapping[tuple[str, str], float],
    *,
    confidence: float | None,
    learned: str,
) -> str:
    """Return the recommendation in words."""
    if all(arm.score == 0 for arm in candidates):
        return "every arm scores 0: check the rows, the metric and the answers first"
    kind = kind_of(chosen.name)
    text = kind.recommendation or f"ask {chosen.name}"
    if not chosen.tuned and any(arm.tuned for arm in candidates):
        if kind.retriever:
            rag = next((arm for arm in candidates if arm.name == "rag" and arm.score < chosen.score), None)
            text += ", not the answers" if rag and _p(p_values, chosen, rag) < ALPHA else ""
            text += f" (both on {learned})" if learned else ""
        elif learned:  # tuning with all rows was not measured
            text += f", compared with tuning on {learned}"
        elif kind.language_model:
            text += ", do not fine-tune"
    if confidence is None:
        return f"undecided (too few groups in the test rows); for now: {text}"
    return text if confidence >= DECIDED else f"undecided (too few test rows); for now: {text}"


def _against_dearer(chosen: Candidate, other: Candidate, p: float, margin: float) -> str:
    """Return the reason against a more expensive arm."""
    gain = other.score - chosen.score
    cost = _cost_text(chosen, other)
    if gain <= 0:
        return f"{other.name} ({other.score:.3f}) scores no higher than {chosen.name} ({chosen.score:.3f}) {cost}"
    significant = "significantly" if p < ALPHA else "not significantly"
    required = needed(margin, chosen.cost, other.cost)
    return (
        f"{other.name} gains {gain:.3f} over {chosen.name}, {significant} (adjusted {p_text(p)}); {cost} the required "
        f"gain is {required:.3f}"
    )


def _cost_text(arm: Candidate, other: Candidate) -> str:
    ratio = other.cost / max(arm.cost, 1e-9)
    return f"at {ratio:.1f} times the cost" if ratio >= 1 else f"at {ratio:.2f} of the cost"


def p_text(p: float) -> str:
    """Return a p-value in words."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
