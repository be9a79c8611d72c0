"""Agreement of raters beyond chance: Krippendorff's alpha over all raters, Cohen's kappa for pairs.

A unit is one item with several votes: rater -> label. Alpha is implemented here because the library for it is under
the GPL, which this package cannot depend on; kappa is scikit-learn's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from pydantic import BaseModel


class Two(BaseModel):
    """Agreement of two raters on the items that both judged."""

    raters: tuple[str, str]
    items: int
    same: float  # share of equal votes
    kappa: float | None  # None where only one label was given: chance agreement is then 1


class Agreement(BaseModel):
    """Agreement of all raters on the items with several votes."""

    items: int
    same: float | None  # share of equal votes among all pairs of votes on an item
    alpha: float | None  # Krippendorff's alpha
    pairs: list[Two] = []  # per pair of raters, if requested


def agreement(units: Sequence[Mapping[str, str]], *, each_two: bool = False) -> Agreement:
    """Measure the agreement on maps of rater to label, of all raters and, with `each_two`, of every pair.

    Units with a single vote are ignored.
    """
    several = [unit for unit in units if len(unit) > 1]
    equal_pairs = sum(math.comb(count, 2) for unit in several for count in Counter(unit.values()).values())
    vote_pairs = sum(math.comb(len(unit), 2) for unit in several)
    return Agreement(
        items=len(several),
        same=equal_pairs / vote_pairs if vote_pairs else None,
        alpha=krippendorff_alpha([list(unit.values()) for unit in several]),
        pairs=_pairs(several) if each_two else [],
    )


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Compute Krippendorff's alpha for nominal labels and any number of votes per unit.

    Args:
        units: the labels given to each item; items with a single label are ignored.

    Returns:
        1 for perfect agreement, 0 for chance, below 0 for less; None where only one label was given.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D.
    """
    equal = 0.0
    labels = Counter[str]()
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        equal += sum(count * (count - 1) for count in counts.values()) / (len(unit) - 1)
        labels += counts
    total = float(labels.total())
    by_chance = sum(count * (count - 1) for count in labels.values())
    if total < 2 or by_chance == total * (total - 1):
        return None
    observed = equal / total
    expected = by_chance / (total * (total - 1))
    return (observed - expected) / (1 - expected)


def _pairs(units: Sequence[Mapping[str, str]]) -> list[Two]:
    """Compare every pair of raters with common items, except raters with a single vote."""
    judged = Counter(rater for unit in units for rater in unit)
    labels: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for unit in units:
        for a, b in combinations(sorted(rater for rater in unit if judged[rater] > 1), 2):
            labels.setdefault((a, b), []).append((unit[a], unit[b]))
    results = []
    for raters, both in sorted(labels.items()):
        kappa = None
        if len({label for pair in both for label in pair}) > 1:
            from sklearn.metrics import cohen_kappa_score

            kappa = float(cohen_kappa_score([a for a, _ in both], [b for _, b in both]))
        same = sum(a == b for a, b in both) / len(both)
        results.append(Two(raters=raters, items=len(both), same=same, kappa=kappa))
    return results
