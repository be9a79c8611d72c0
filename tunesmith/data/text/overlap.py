"""Long quotations: texts that share half of their runs of words with a held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.text.minhash import GRAM, Longs, grams

Slots = Sequence[NDArray[np.uint32]]
# Minimum share of common runs, relative to the text with fewer runs.
SHARE = 0.5


@dataclass(frozen=True, slots=True)
class QuotationRule:
    """Definition of a quotation."""

    run: int = GRAM  # words per run
    fewest: int = 1  # minimum number of common runs
    most_owners: int = 2  # runs in more held-out texts than this are common phrases and ignored; 0: all runs count


@dataclass(frozen=True, slots=True)
class HeldOutRuns:
    """Index of the runs of held-out texts.

    A band is a set of runs with the same owners. Common text of many held-out documents is one band, however many runs
    it has, so that overlaps are counted per band.
    """

    runs: Longs  # distinct run hashes, sorted, [R]
    bands: NDArray[np.int64]  # band of each run, [R]
    owned: tuple[NDArray[np.int64], ...]  # texts of each band
    sizes: NDArray[np.int64]  # number of runs of each text
    rule: QuotationRule  # the rule that the index serves


def held(texts: Slots, rule: QuotationRule) -> HeldOutRuns:
    """Index held-out texts, given as slots of their words."""
    runs, owners = _each_once(texts, rule.run)
    order = np.argsort(runs, kind="stable")
    runs, owners = runs[order], owners[order]
    if rule.most_owners:
        _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
        rare = counts[inverse] <= rule.most_owners
        runs, owners = runs[rare], owners[rare]
    sizes = np.bincount(owners, minlength=len(texts))
    distinct, first = np.unique(runs, return_index=True)
    if not len(distinct):
        return HeldOutRuns(distinct, first, (), sizes, rule)
    marks = np.random.default_rng(0).integers(1, 2**63, len(texts), dtype=np.uint64)
    bands = np.unique(np.add.reduceat(marks[owners], first), return_index=True, return_inverse=True)
    last = np.append(first[1:], len(runs))
    owned = tuple(owners[first[i] : last[i]] for i in bands[1].tolist())
    return HeldOutRuns(distinct, bands[2], owned, sizes, rule)


def leaked(texts: Slots, others: HeldOutRuns) -> dict[int, int]:
    """Map texts to the held-out text with which they share most runs, and at least half of the runs of one of both."""
    runs, owners = _each_once(texts, others.rule.run)
    index = np.searchsorted(others.runs, runs).clip(max=len(others.runs) - 1)
    sizes = np.bincount(owners, minlength=len(texts))
    matches: dict[int, int] = {}
    hits = np.flatnonzero(others.runs[index] == runs) if len(others.runs) else index[:0]
    for part in np.split(hits, np.flatnonzero(np.diff(owners[hits])) + 1):
        if not len(part):
            continue
        row = int(owners[part[0]])
        bands, counts = np.unique(others.bands[index[part]], return_counts=True)
        owned = [others.owned[band] for band in bands.tolist()]
        candidates, inverse = np.unique(np.concatenate(owned), return_inverse=True)
        shared = np.bincount(inverse, weights=np.repeat(counts, list(map(len, owned))))
        enough = (shared >= others.rule.fewest) & (shared >= SHARE * np.minimum(sizes[row], others.sizes[candidates]))
        if enough.any():
            matches[row] = int(candidates[enough][shared[enough].argmax()])
    return matches


def _each_once(texts: Slots, length: int) -> tuple[Longs, NDArray[np.int64]]:
    """Return the distinct runs of each text and the index of their text, in the order of the texts."""
    runs, owners = grams(texts, length)
    order = np.lexsort((runs, owners))
    runs, owners = runs[order], owners[order]
    new = np.ones(len(runs), bool)
    new[1:] = (runs[1:] != runs[:-1]) | (owners[1:] != owners[:-1])
    return runs[new], owners[new]
