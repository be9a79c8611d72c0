"""How far people agree beyond chance: Krippendorff's alpha over all of them, Cohen's kappa for two who met often.

A unit is one item that several people judged: rater -> label. Alpha is written out here because the library
for it is under the GPL, which this package cannot depend on; kappa is scikit-learn's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pydantic import BaseModel


class Two(BaseModel):
    """Two people on the items that both judged; `kappa` is None where chance alone would agree always."""

    raters: tuple[str, str]
    items: int
    same: float
    kappa: float | None


class Agreement(BaseModel):
    """Everybody on the items that several judged; `same` is the share of pairs of votes that agree.

    `pairs` are each two people, where that was asked for.
    """

    items: int
    same: float | None
    alpha: float | None
    pairs: list[Two] = []


@dataclass(frozen=True, slots=True)
class _Coincidences:
    total: float  # votes that have another beside them
    equal: float  # of these, weighed, how many meet their like
    by_label: Mapping[str, int]


def agreement(units: Sequence[Mapping[str, str]], *, each_two: bool = False) -> Agreement:
    """All of it for these units; units with one vote say nothing and are left out."""
    several = [unit for unit in units if len(unit) > 1]
    like = sum(math.comb(count, 2) for unit in several for count in Counter(unit.values()).values())
    met = sum(math.comb(len(unit), 2) for unit in several)
    return Agreement(
        items=len(several),
        same=like / met if met else None,
        alpha=krippendorff_alpha([list(unit.values()) for unit in several]),
        pairs=_pairs(several) if each_two else [],
    )


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """1 for always, 0 for as often as by chance, below 0 for less; None where only one label was given.

    Nominal data, any number of votes per unit. Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability", section D.
    """
    found = _coincidences(units)
    by_chance = sum(count * (count - 1) for count in found.by_label.values())
    if found.total < 2 or by_chance == found.total * (found.total - 1):
        return None
    observed, expected = found.equal / found.total, by_chance / (found.total * (found.total - 1))
    return (observed - expected) / (1 - expected)


def _coincidences(units: Sequence[Sequence[str]]) -> _Coincidences:
    equal, labels = 0.0, Counter[str]()
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        equal += sum(count * (count - 1) for count in counts.values()) / (len(unit) - 1)
        labels += counts
    return _Coincidences(float(labels.total()), equal, labels)


def _pairs(units: Sequence[Mapping[str, str]]) -> list[Two]:
    """Each two people who judged an item together; whoever judged one alone tells nothing of how they agree."""
    judged = Counter(rater for unit in units for rater in unit)
    met: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for unit in units:
        for a, b in combinations(sorted(rater for rater in unit if judged[rater] > 1), 2):
            met.setdefault((a, b), []).append((unit[a], unit[b]))
    return [_two(a, b, both) for (a, b), both in sorted(met.items())]


def _two(a: str, b: str, both: Sequence[tuple[str, str]]) -> Two:
    same = sum(x == y for x, y in both) / len(both)
    if len({label for pair in both for label in pair}) < 2:
        return Two(raters=(a, b), items=len(both), same=same, kappa=None)
    from sklearn.metrics import cohen_kappa_score

    kappa = float(cohen_kappa_score([x for x, _ in both], [y for _, y in both]))
    return Two(raters=(a, b), items=len(both), same=same, kappa=kappa)
