"""How good the judging is: position, speed, planted items, agreement, and who clicks at random."""

from __future__ import annotations

import math
import re
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from tunesmith.evaluation.resampling import wilson
from tunesmith.feedback.items import FIRST, OWN, SECOND, Item
from tunesmith.feedback.store import Event

# Wald's test (1945): who clicks is named where the votes are so many times likelier under clicking than under care.
LIKELIER = 100.0
# How often a careful person is right on a planted item, where nothing else is known.
CARE, COIN = 0.9, 0.5
# One side so often that a fair coin does it once in so many people.
ONE_SIDED = 0.001
# Words a second beyond which nobody reads; a page of 300 words in less than 20 seconds.
WORDS_PER_SECOND = 15.0
# Nearer than this, care and chance cannot be told from each other.
APART = 0.1
# No agreement is taken for perfect: one slip would then prove anything.
BEST = 0.98


# Whoever matches more often than chance does in one of so many cases may be odd, but looks.
LOOKS = 0.01


class Position(BaseModel):
    """Votes for the left answer among those for one of two, and the exact binomial p of a fair coin."""

    votes: int
    left: float | None
    p_value: float | None


class Gold(BaseModel):
    """Planted items: how many were judged, the share that was judged right, its 95 % interval (Wilson)."""

    items: int
    right: float | None
    ci95: tuple[float, float] | None


class Rater(BaseModel):
    """One person; `agreed` is the share of items on which they say what most of the others say, `by_chance` what that
    share would be without looking. `evidence` is log10 of how much likelier clicking is than care, `p_value` that of
    matching so often by chance."""

    rater: str
    votes: int
    position: Position
    seconds: float | None
    too_fast: float | None
    gold: Gold
    compared: int
    agreed: float | None
    by_chance: float | None
    evidence: float
    p_value: float | None
    at_random: bool
    reasons: list[str]


class Hits(BaseModel):
    """Items on which a person's vote can be compared: how many, how many match, how many would by chance."""

    n: int
    hits: int
    chance: float


def position(votes: Sequence[Event]) -> Position:
    """Whether the left answer is chosen more or less often than a fair coin would; the sides are drawn at random."""
    sides = [_is_left(vote) for vote in votes if vote.body["label"] in (FIRST, SECOND) and "left" in vote.body]
    if not sides:
        return Position(votes=0, left=None, p_value=None)
    from scipy.stats import binomtest

    p = float(binomtest(sum(sides), len(sides), 0.5).pvalue)
    return Position(votes=len(sides), left=sum(sides) / len(sides), p_value=p)


def gold(items: Mapping[str, Item], votes: Sequence[Event]) -> Gold:
    """How the planted items were judged."""
    right = [vote.body["label"] == items[vote.item].gold for vote in votes if _gold(items, vote)]
    if not right:
        return Gold(items=0, right=None, ci95=None)
    share = sum(right) / len(right)
    return Gold(items=len(right), right=share, ci95=wilson(share, len(right)))


def raters(items: Mapping[str, Item], votes: Sequence[Event]) -> list[Rater]:
    """Everybody, those who click at random named; the most votes first.

    A person's votes are compared with the planted labels and with what most others said of the same items. Under
    clicking they match as often as chance has it; under care as often as people usually do (the median of the others;
    9 in 10 for planted ones). Named is who fits clicking far better, unless they match more often than chance would:
    an odd taste is no clicking. Besides, whoever takes one side far too often is named for that. Two people who
    disagree cannot be told apart without planted items: nobody is named then.
    """
    by_rater: dict[str, list[Event]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    compared = _against_others(items, votes)
    shares = sorted(hits.hits / hits.n for hits in compared.values() if hits.n)
    most_first = sorted(by_rater, key=lambda name: -len(by_rater[name]))
    return [_rater(items, by_rater[name], compared[name], _Others(shares, len(by_rater))) for name in most_first]


@dataclass(frozen=True, slots=True)
class _Others:
    """How often each person says what most others say, in order; and how many people there are."""

    shares: Sequence[float]
    people: int

    def usual(self, hits: Hits) -> float | None:
        """The median without the person of these hits; None with fewer than two others."""
        count = len(self.shares) - bool(hits.n)
        if count < 2:
            return None
        left_out = bisect_left(self.shares, hits.hits / hits.n) if hits.n else len(self.shares)
        low, high = (self.shares[place + (place >= left_out)] for place in ((count - 1) // 2, count // 2))
        return (low + high) / 2


def _rater(items: Mapping[str, Item], mine: Sequence[Event], hits: Hits, others: _Others) -> Rater:
    planted, side = gold(items, mine), position(mine)
    tests = [(Hits(n=planted.items, hits=round((planted.right or 0) * planted.items), chance=COIN), CARE)]
    usual = others.usual(hits)
    if usual is not None:
        tests.append((hits, min(BEST, usual)))
    # Where chance has no match at all, a person and the others have no label in common: that is a taste, no clicking.
    telling = [(found, care) for found, care in tests if found.n and 0 < found.chance <= care - APART]
    evidence = sum(_evidence(found, care) for found, care in telling)
    p_value = _p_value([found for found, _ in telling]) if telling else None
    reasons = []
    if evidence > math.log10(LIKELIER) and p_value is not None and p_value > LOOKS:
        reasons.append(f"the votes are {10 ** min(evidence, 9):.0f} times likelier under clicking than under care")
    if side.p_value is not None and side.p_value < ONE_SIDED / others.people:
        share = f"{side.left:.0%}" if side.left is not None else ""
        reasons.append(f"chose the left answer in {share} of {side.votes} votes (p = {side.p_value:.1g})")
    seconds = [float(vote.body["seconds"]) for vote in mine if "seconds" in vote.body]
    return Rater(
        rater=mine[0].rater,
        votes=len(mine),
        position=side,
        seconds=statistics.median(seconds) if seconds else None,
        too_fast=_too_fast(items, mine),
        gold=planted,
        compared=hits.n,
        agreed=hits.hits / hits.n if hits.n else None,
        by_chance=hits.chance if hits.n else None,
        evidence=evidence,
        p_value=p_value,
        at_random=bool(reasons),
        reasons=reasons,
    )


def _evidence(found: Hits, care: float) -> float:
    """log10 of how much likelier so many matches are by chance than by care."""
    misses = found.n - found.hits
    return found.hits * math.log10(found.chance / care) + misses * math.log10((1 - found.chance) / (1 - care))


def _p_value(tests: Sequence[Hits]) -> float:
    """The chance to match at least so often in all of them together without looking."""
    import numpy as np
    from scipy.stats import binom

    together = np.ones(1)
    for found in tests:
        together = np.convolve(together, binom.pmf(np.arange(found.n + 1), found.n, found.chance))
    return float(together[sum(found.hits for found in tests) :].sum())


def _against_others(items: Mapping[str, Item], votes: Sequence[Event]) -> dict[str, Hits]:
    """Each person's votes against what most of the others say of the same items; draws among them are left out."""
    on: dict[str, dict[str, str]] = {}
    said: dict[str, list[tuple[str, str]]] = {vote.rater: [] for vote in votes}  # what they say, and most others
    for vote in votes:
        if vote.item in items and not items[vote.item].gold:
            on.setdefault(vote.item, {})[vote.rater] = str(vote.body["label"])
    for given in on.values():
        counts = Counter(given.values())
        for rater, label in given.items():
            others = (counts - Counter([label])).most_common(2)
            if others and (len(others) < 2 or others[0][1] > others[1][1]):
                said[rater].append((label, others[0][0]))
    return {rater: _hits(both) for rater, both in said.items()}


def _hits(both: Sequence[tuple[str, str]]) -> Hits:
    if not both:
        return Hits(n=0, hits=0, chance=0.0)
    own, other = (Counter(side) for side in zip(*both, strict=True))
    chance = sum(own[label] * other[label] for label in own) / len(both) ** 2
    return Hits(n=len(both), hits=sum(mine == theirs for mine, theirs in both), chance=chance)


def _too_fast(items: Mapping[str, Item], votes: Sequence[Event]) -> float | None:
    """The share of votes given faster than anybody reads the answers."""
    timed = [vote for vote in votes if "seconds" in vote.body and vote.item in items]
    if not timed:
        return None
    fast = [float(vote.body["seconds"]) * WORDS_PER_SECOND < _words(items[vote.item]) for vote in timed]
    return sum(fast) / len(timed)


def _words(item: Item) -> int:
    return sum(len(re.findall(r"\S+", answer)) for answer in item.answers)


def _is_left(vote: Event) -> bool:
    return (FIRST, SECOND).index(str(vote.body["label"])) == int(vote.body["left"])


def _gold(items: Mapping[str, Item], vote: Event) -> bool:
    return vote.item in items and bool(items[vote.item].gold) and vote.body["label"] != OWN
