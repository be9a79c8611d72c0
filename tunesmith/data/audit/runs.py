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
    """The runs of words of held-out texts, sorted, each once; how many each text has, and the rule they serve.

    `owned[bands[i]]` are the texts that have run i. A notice in all of them is one band, however many runs it has, so
    what a text shares with the others is counted band by band.
    """

    runs: Longs
    bands: NDArray[np.int64]
    owned: tuple[NDArray[np.int64], ...]
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
    sizes = np.bincount(owners, minlength=len(texts))
    once, first = np.unique(runs, return_index=True)
    if not len(once):
        return HeldOutRuns(once, first, (), sizes, rule)
    marks = np.random.default_rng(0).integers(1, 2**63, len(texts), dtype=np.uint64)
    bands = np.unique(np.add.reduceat(marks[owners], first), return_index=True, return_inverse=True)
    last = np.append(first[1:], len(runs))
    owned = tuple(owners[first[i] : last[i]] for i in bands[1].tolist())
    return HeldOutRuns(once, bands[2], owned, sizes, rule)


def leaked(texts: Slots, others: HeldOutRuns) -> dict[int, int]:
    """Text -> the held-out text that has half of its runs, or half of whose runs it has: the one with most of them."""
    runs, owners = _each_once(texts, others.rule.run)
    place = np.searchsorted(others.runs, runs).clip(max=len(others.runs) - 1)
    sizes = np.bincount(owners, minlength=len(texts))
    found: dict[int, int] = {}
    hit = np.flatnonzero(others.runs[place] == runs) if len(others.runs) else place[:0]
    for part in np.split(hit, np.flatnonzero(np.diff(owners[hit])) + 1):
        if not len(part):
            continue
        row = int(owners[part[0]])
        bands, times = np.unique(others.bands[place[part]], return_counts=True)
        owned = [others.owned[band] for band in bands.tolist()]
        whose, at = np.unique(np.concatenate(owned), return_inverse=True)
        shared = np.bincount(at, weights=np.repeat(times, list(map(len, owned))))
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
