"""Which rows are nearly the same: MinHash bands name candidates, their words decide."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tunesmith.data.audit.shingles import WORD_BITS, Shorts
from tunesmith.data.words import words_of

Pairs = NDArray[np.int64]
ALIKE = 0.8  # share of the information in the words that two rows must have in common
FEW = 30_000  # up to so many rows, bands are narrow: no likeness is missed, and chance meetings cost little
WINDOW = 3  # neighbours in a bucket that are compared
ESTIMATE = 0.28  # agreement of signatures below which the words are not looked at
LONGEST = 40_000  # letters of a text that are looked at
KNOWN = 512  # rows whose words are kept while their neighbours are looked at


def counted(text: str) -> Counter[str]:
    """How often a text has each of its words."""
    return Counter(words_of(text[:LONGEST]))


class Words:
    """How much a word tells: the logarithm of how few rows have it. What all rows say tells next to nothing."""

    def __init__(self, counts: NDArray[np.uint32], rows: int) -> None:
        self.counts, self.rows = counts, max(1, rows)
        self._known: dict[str, tuple[float, int]] = {}

    def look(self, word: str) -> tuple[float, int]:
        """(information, number of rows that have the word)."""
        found = self._known.get(word)
        if found is None:
            count = int(self.counts[zlib.crc32(word.encode(errors="surrogatepass")) >> (32 - WORD_BITS)])
            found = (math.log(1 + self.rows / max(1, count)), count)
            if len(self._known) < 200_000:
                self._known[word] = found
        return found

    def alike(self, first: Counter[str], second: Counter[str]) -> float:
        """The share of both texts' information that they have in common, from 0 to 1; misspellings are forgiven."""
        common = first & second
        left, right = first - common, second - common
        shared = sum(self.look(word)[0] * count for word, count in common.items())
        lone = [sum(self.look(word)[0] * count for word, count in side.items()) for side in (left, right)]
        if lone[0] and lone[1] and max(len(left), len(right)) <= 12:
            for word, twin in self._misspelt(left, right):
                weight = min(self.look(word)[0], self.look(twin)[0])
                shared += weight
                lone = [lone[0] - self.look(word)[0], lone[1] - self.look(twin)[0]]
        return 2 * shared / (2 * shared + sum(lone)) if shared else 0.0

    def _misspelt(self, left: Counter[str], right: Counter[str]) -> Iterator[tuple[str, str]]:
        """Pairs of words of which one is hardly known and a slip away from the other."""
        free = dict(right)
        for word in left:
            for twin in free:
                slips = 1 if min(len(word), len(twin)) < 6 else 2
                rare = min(self.look(word)[1], self.look(twin)[1]) <= 2
                if rare and OSA.distance(word, twin, score_cutoff=slips) <= slips and word[:1].isalpha():
                    yield word, twin
                    del free[twin]
                    break


def near_pairs(signatures: Shorts, alike: Callable[[int, int], float]) -> Pairs:
    """(m, 2) rows that are nearly the same, enough of them to join every group; rows are numbered from 0."""
    group = np.arange(len(signatures))
    found: list[Pairs] = []
    looked: set[int] = set()
    for keys in _bands(signatures):
        order = np.argsort(keys, kind="stable")
        for step in range(1, WINDOW + 1):
            pairs = _neighbours(keys[order], order, step)
            # What an earlier step has joined need not be compared again.
            pairs = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
            pairs = _promising(signatures, signatures, pairs)
            good = [pair for pair in _unseen(pairs, looked, len(group)) if alike(*pair) >= ALIKE]
            if good:
                found.append(np.array(good, np.int64))
                group = groups_of(np.concatenate(found), len(group))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def cross_pairs(rows: Shorts, held: Shorts, alike: Callable[[int, int], float]) -> Pairs:
    """(m, 2) of (row, held-out row) that are nearly the same; a row is told with the first that is found."""
    found: dict[int, int] = {}
    looked: set[int] = set()
    if not len(rows) or not len(held):
        return np.zeros((0, 2), np.int64)
    for keys, others in zip(_bands(rows, len(held)), _bands(held, len(rows)), strict=True):
        order = np.argsort(others, kind="stable")
        start, end = (np.searchsorted(others[order], keys, side=side) for side in ("left", "right"))
        for step in range(WINDOW):
            hit = np.flatnonzero(start + step < end)
            pairs = np.stack([hit, order[start[hit] + step]], axis=1)
            for row, other in _unseen(_promising(rows, held, pairs), looked, len(held) + 1):
                if row not in found and alike(row, other) >= ALIKE:
                    found[row] = other
    return np.array(sorted(found.items()), np.int64).reshape(-1, 2)


def groups_of(pairs: Pairs, rows: int) -> NDArray[np.int64]:
    """The number of each row's group, where pairs join rows."""
    ones = np.ones(len(pairs), np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _bands(signatures: Shorts, others: int = 0) -> Iterator[NDArray[np.uint64]]:
    """For each band one number a row; rows that are alike have the same in some band."""
    width = 3 if max(len(signatures), others) <= FEW else 4
    for start in range(0, signatures.shape[1], width):
        key = np.zeros(len(signatures), np.uint64)
        for k in range(start, start + width):
            key = key << np.uint64(16) | signatures[:, k]
        yield key


def _neighbours(ordered: NDArray[np.uint64], order: NDArray[np.int64], step: int) -> Pairs:
    """Pairs of rows that stand `step` apart in a bucket, the earlier row first; `ordered` are the keys in `order`."""
    same = np.flatnonzero(ordered[step:] == ordered[:-step])
    return np.stack([order[same], order[same + step]], axis=1)


def _promising(one: Shorts, two: Shorts, pairs: Pairs) -> Pairs:
    """The pairs whose signatures agree often enough."""
    keep = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 100_000):
        part = pairs[start : start + 100_000]
        keep[start : start + 100_000] = (one[part[:, 0]] == two[part[:, 1]]).mean(axis=1) >= ESTIMATE
    return pairs[keep]


def _unseen(pairs: Pairs, looked: set[int], width: int) -> Iterator[tuple[int, int]]:
    """Each pair once over all bands."""
    for first, second in pairs.tolist():
        key = first * width + second
        if key not in looked:
            looked.add(key)
            yield first, second


def in_groups(groups: Sequence[int] | NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows of every group of two or more, in order."""
    numbers = np.asarray(groups)
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    yield from (part for part in np.split(order, cuts) if len(part) > 1)
