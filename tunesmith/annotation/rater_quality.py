"""Quality of raters: position bias, speed, control items, agreement, and raters who vote at random."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from tunesmith.annotation.items import FIRST, OWN, SECOND, Item
from tunesmith.annotation.vote_store import Event
from tunesmith.metrics.resampling import wilson

# Likelihood ratio (Wald 1945) above which a rater is reported: random votes against careful ones.
LIKELIER = 100.0
CARE = 0.9  # assumed accuracy of a careful rater on control items
COIN = 0.5  # accuracy of a random rater on control items
ONE_SIDED = 0.001  # p-value of the position test below which a rater is reported, divided by the number of raters
WORDS_PER_SECOND = 15.0  # faster than anyone reads: 300 words in 20 seconds
APART = 0.1  # least difference between careful and random match rates; closer ones cannot be distinguished
BEST = 0.98  # upper limit of the careful match rate: with 1, a single mismatch would be proof
# A rater who matches others more often than chance at this p-value has unusual taste, but is not random.
LOOKS = 0.01


class Position(BaseModel):
    """Position bias in votes that prefer one of two answers."""

    votes: int
    left: float | None  # share of votes for the left answer
    p_value: float | None  # exact binomial test against 0.5


class Gold(BaseModel):
    """Votes on control items."""

    items: int  # votes
    right: float | None  # share of right votes
    ci95: tuple[float, float] | None  # Wilson interval of `right`


class Rater(BaseModel):
    """Quality of one rater."""

    rater: str
    votes: int
    position: Position
    seconds: float | None  # median per vote
    too_fast: float | None  # share of votes faster than reading
    gold: Gold
    compared: int  # items with a majority vote of other raters
    agreed: float | None  # share of these on which the rater agrees with the majority
    by_chance: float | None  # the same share expected of random votes
    evidence: float  # log10 likelihood ratio of random against careful votes
    p_value: float | None  # probability of at least as many matches by chance
    at_random: bool
    reasons: list[str]  # why `at_random` is true


class Hits(BaseModel):
    """Comparison of a rater's votes with the majority or with control labels."""

    n: int  # comparable votes
    hits: int  # matches
    chance: float  # match probability of random votes


def position(votes: Sequence[Event]) -> Position:
    """Test whether the left answer is chosen more or less often than half of the time; sides are random on the page."""
    sides = [
        (FIRST, SECOND).index(vote.body["label"]) == int(vote.body["left"])
        for vote in votes
        if vote.body["label"] in (FIRST, SECOND) and "left" in vote.body
    ]
    if not sides:
        return Position(votes=0, left=None, p_value=None)
    from scipy.stats import binomtest

    p = float(binomtest(sum(sides), len(sides), 0.5).pvalue)
    return Position(votes=len(sides), left=sum(sides) / len(sides), p_value=p)


def gold(items: Mapping[str, Item], votes: Sequence[Event]) -> Gold:
    """Return the accuracy of votes on control items; answers that raters wrote do not count."""
    right = [
        vote.body["label"] == items[vote.item].gold
        for vote in votes
        if vote.item in items and items[vote.item].gold and vote.body["label"] != OWN
    ]
    if not right:
        return Gold(items=0, right=None, ci95=None)
    share = sum(right) / len(right)
    return Gold(items=len(right), right=share, ci95=wilson(share, len(right)))


def raters(items: Mapping[str, Item], votes: Sequence[Event]) -> list[Rater]:
    """Measure every rater, most votes first, and mark those who vote at random.

    Votes are compared with control labels and with the majority of other raters. Random votes match at chance level,
    careful votes at the median rate of the other raters (0.9 for control items). A rater is marked if random votes are
    LIKELIER times more likely, unless the matches are significantly above chance, which indicates unusual taste. A
    rater who chooses one side too often is marked as well. Two raters who disagree cannot be distinguished without
    control items; neither is marked.

    Source: Wald 1945, "Sequential Tests of Statistical Hypotheses".
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
    """Match rates of all raters."""

    shares: Sequence[float]  # share of votes equal to the majority of others, sorted
    people: int  # number of raters

    def usual(self, hits: Hits) -> float | None:
        """Return the median without the rater of these hits; None with fewer than two others."""
        count = len(self.shares) - bool(hits.n)
        if count < 2:
            return None
        left_out = bisect_left(self.shares, hits.hits / hits.n) if hits.n else len(self.shares)
        low, high = (self.shares[index + (index >= left_out)] for index in ((count - 1) // 2, count // 2))
        return (low + high) / 2


def _rater(items: Mapping[str, Item], mine: Sequence[Event], hits: Hits, others: _Others) -> Rater:
    control = gold(items, mine)
    side = position(mine)
    tests = [(Hits(n=control.items, hits=round((control.right or 0) * control.items), chance=COIN), CARE)]
    usual = others.usual(hits)
    if usual is not None:
        tests.append((hits, min(BEST, usual)))
    # Chance 0 means that the rater and the majority use disjoint labels: unusual taste, not random votes.
    usable = [(matches, care) for matches, care in tests if matches.n and 0 < matches.chance <= care - APART]
    evidence = sum(_evidence(matches, care) for matches, care in usable)
    p_value = _p_value([matches for matches, _ in usable]) if usable else None
    reasons = []
    if evidence > math.log10(LIKELIER) and p_value is not None and p_value > LOOKS:
        reasons.append(f"random votes are {10 ** min(evidence, 9):.0f} times more likely than careful ones")
    if side.p_value is not None and side.p_value < ONE_SIDED / others.people:
        share = f"{side.left:.0%}" if side.left is not None else ""
        reasons.append(f"chose the left answer in {share} of {side.votes} votes (p = {side.p_value:.1g})")
    seconds = [float(vote.body["seconds"]) for vote in mine if "seconds" in vote.body]
    fast = []  # whether each timed vote was faster than its answers can be read
    for vote in mine:
        if "seconds" in vote.body and vote.item in items:
            words = sum(len(answer.split()) for answer in items[vote.item].answers)
            fast.append(float(vote.body["seconds"]) * WORDS_PER_SECOND < words)
    return Rater(
        rater=mine[0].rater,
        votes=len(mine),
        position=side,
        seconds=statistics.median(seconds) if seconds else None,
        too_fast=sum(fast) / len(fast) if fast else None,
        gold=control,
        compared=hits.n,
        agreed=hits.hits / hits.n if hits.n else None,
        by_chance=hits.chance if hits.n else None,
        evidence=evidence,
        p_value=p_value,
        at_random=bool(reasons),
        reasons=reasons,
    )


def _evidence(matches: Hits, care: float) -> float:
    """Return log10 of the binomial likelihood ratio of random against careful votes."""
    misses = matches.n - matches.hits
    return matches.hits * math.log10(matches.chance / care) + misses * math.log10((1 - matches.chance) / (1 - care))


def _p_value(tests: Sequence[Hits]) -> float:
    """Return the probability of at least as many matches in all tests together by chance."""
    import numpy as np
    from scipy.stats import binom

    distribution = np.ones(1)
    for matches in tests:
        pmf = binom.pmf(np.arange(matches.n + 1), matches.n, matches.chance)
        distribution = np.convolve(distribution, pmf)
    return float(distribution[sum(matches.hits for matches in tests) :].sum())


def _against_others(items: Mapping[str, Item], votes: Sequence[Event]) -> dict[str, Hits]:
    """Compare the votes of each rater with the majority of the other raters; items with a tie are left out."""
    by_item: dict[str, dict[str, str]] = {}
    pairs: dict[str, list[tuple[str, str]]] = {vote.rater: [] for vote in votes}  # own label, majority label
    for vote in votes:
        if vote.item in items and not items[vote.item].gold:
            by_item.setdefault(vote.item, {})[vote.rater] = str(vote.body["label"])
    for given in by_item.values():
        counts = Counter(given.values())
        for rater, label in given.items():
            others = (counts - Counter([label])).most_common(2)
            if others and (len(others) < 2 or others[0][1] > others[1][1]):
                pairs[rater].append((label, others[0][0]))
    compared = {}
    for rater, both in pairs.items():
        own, majority = Counter(label for label, _ in both), Counter(label for _, label in both)
        # The expected share of equal labels by chance is that of Cohen's kappa.
        chance = sum(own[label] * majority[label] for label in own) / len(both) ** 2 if both else 0.0
        compared[rater] = Hits(n=len(both), hits=sum(mine == theirs for mine, theirs in both), chance=chance)
    return compared
