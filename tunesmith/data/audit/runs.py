"""Texts that quote one another at length: half of the runs of words of one stand in the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.shingles import GRAM, Longs, grams

Slots = Sequence[NDArray[np.uint32]]
# Of the runs of the text that has fewer, the share that the other must have.
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class QuotationRule:
    """What counts as a quotation: how many words are a run, and the fewest runs that two texts must have in common.

    A run that more than `most_owners` of the held-out texts have is a phrase of theirs and is not looked at; with 0 all
    are.
    """

    run: int = GRAM
    fewest: int = 1
    most_owners: int = 2


@dataclass(frozen=True, slots=True)
class HeldOutRuns:
    """The runs of words of held-out texts, sorted; whose they are, how many each text has, and the rule they serve."""

    runs: Longs
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rule: QuotationRule


def held(texts: Slots, rule: QuotationRule) -> HeldOutRuns:
    """The index of held-out texts, given as the slots of their words."""
    runs, owners = _each_once(texts, rule.run)
    order = np.argsort(runs, kind="stable")
    runs, owners = runs[order], owners[order]
    if rule.most_owners:
        _, place, times = np.unique(runs, return_inverse=True, return_counts=True)
        few = times[place] <= rule.most_owners
        runs, owners = runs[few], owners[few]
    return HeldOutRuns(runs, owners, np.bincount(owners, minlength=len(texts)), rule)


def leaked(texts: Slots, others: HeldOutRuns) -> dict[int, int]:
    """Text -> the held-out text that has half of its runs, or half of whose runs it has: the one with most of them."""
    runs, owners = _each_once(texts, others.rule.run)
    start, end = (np.searchsorted(others.runs, runs, side=side) for side in ("left", "right"))
    sizes = np.bincount(owners, minlength=len(texts))
    found: dict[int, int] = {}
    hit = np.flatnonzero(start < end)
    for part in np.split(hit, np.flatnonzero(np.diff(owners[hit])) + 1):
        if not len(part):
            continue
        row = int(owners[part[0]])
        whose, shared = np.unique(np.concatenate([others.owners[start[i] : end[i]] for i in part]), return_counts=True)
        enough = (shared >= others.rule.fewest) & (shared >= SHARE * np.minimum(sizes[row], others.sizes[whose]))
        if enough.any():
            found[row] = int(whose[enough][shared[enough].argmax()])
    return found


def _each_once(texts: Slots, length: int) -> tuple[Longs, NDArray[np.int64]]:
    """Every run of a text once, and in which text it stands, in the order of the texts."""
    runs, owners = grams(texts, length)
    order = np.lexsort((runs, owners))
    runs, owners = runs[order], owners[order]
    new = np.ones(len(runs), bool)
    new[1:] = (runs[1:] != runs[:-1]) | (owners[1:] != owners[:-1])
    return runs[new], owners[new]
