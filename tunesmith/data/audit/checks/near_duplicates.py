"""Near-duplicate detection: MinHash bands select candidates, word overlap decides."""

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

from tunesmith.data.text.minhash import WORD_BITS, Shorts
from tunesmith.data.text.words import words_of

Pairs = NDArray[np.int64]
ALIKE = 0.8  # share of word information that near-duplicates have in common
FEW = 30_000  # rows up to which bands are narrow: nothing is missed, and chance candidates cost little
WINDOW = 3  # neighbours compared within a bucket
ESTIMATE = 0.28  # signature agreement below which words are not compared
MAX_CHARS = 40_000  # characters compared
KNOWN = 512  # rows whose word counts are cached


def counted(text: str) -> Counter[str]:
    """Count the words of a text."""
    return Counter(words_of(text[:MAX_CHARS]))


class Words:
    """Information of words: the logarithm of their inverse row frequency; almost 0 for words in all rows."""

    def __init__(self, counts: NDArray[np.uint32], rows: int) -> None:
        self.counts = counts
        self.rows = max(1, rows)
        self._known: dict[str, tuple[float, int]] = {}

    def look(self, word: str) -> tuple[float, int]:
        """Return the information of a word, nats, and the number of rows that contain it."""
        entry = self._known.get(word)
        if entry is None:
            count = int(self.counts[zlib.crc32(word.encode(errors="surrogatepass")) >> (32 - WORD_BITS)])
            entry = (math.log(1 + self.rows / max(1, count)), count)
            if len(self._known) < 200_000:
                self._known[word] = entry
        return entry

    def alike(self, first: Counter[str], second: Counter[str]) -> float:
        """Return the share of word information that two texts share, in [0, 1]; misspellings count as equal."""
        common = first & second
        left = first - common
        right = second - common
        shared = sum(self.look(word)[0] * count for word, count in common.items())
        rest = [sum(self.look(word)[0] * count for word, count in side.items()) for side in (left, right)]
        if rest[0] and rest[1] and max(len(left), len(right)) <= 12:
            for word, other in self._misspelt(left, right):
                weight = min(self.look(word)[0], self.look(other)[0])
                shared += weight
                rest = [rest[0] - self.look(word)[0], rest[1] - self.look(other)[0]]
        return 2 * shared / (2 * shared + sum(rest)) if shared else 0.0

    def _misspelt(self, left: Counter[str], right: Counter[str]) -> Iterator[tuple[str, str]]:
        """Yield pairs of words that are one or two edits apart and one of them is rare."""
        free = dict(right)
        for word in left:
            for other in free:
                edits = 1 if min(len(word), len(other)) < 6 else 2
                rare = min(self.look(word)[1], self.look(other)[1]) <= 2
                if rare and OSA.distance(word, other, score_cutoff=edits) <= edits and word[:1].isalpha():
                    yield word, other
                    del free[other]
                    break


def near_pairs(signatures: Shorts, alike: Callable[[int, int], float]) -> Pairs:
    """Return pairs of near-duplicate rows, (m, 2), enough to connect every group; rows are counted from 0."""
    group = np.arange(len(signatures))
    matches: list[Pairs] = []
    compared: set[int] = set()
    for keys in _bands(signatures):
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for step in range(1, WINDOW + 1):
            # Rows `step` apart in a bucket, the earlier row first.
            same = np.flatnonzero(ordered[step:] == ordered[:-step])
            pairs = np.stack([order[same], order[same + step]], axis=1)
            # Rows that an earlier step has joined need no comparison.
            pairs = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
            pairs = _above_estimate(signatures, signatures, pairs)
            near = [pair for pair in _each_once(pairs, compared, len(group)) if alike(*pair) >= ALIKE]
            if near:
                matches.append(np.array(near, np.int64))
                group = groups_of(np.concatenate(matches), len(group))
    return np.concatenate(matches) if matches else np.zeros((0, 2), np.int64)


def cross_pairs(rows: Shorts, held: Shorts, alike: Callable[[int, int], float]) -> Pairs:
    """Return pairs (row, held-out row) of near-duplicates, (m, 2), at most one for each row."""
    matches: dict[int, int] = {}
    compared: set[int] = set()
    if not len(rows) or not len(held):
        return np.zeros((0, 2), np.int64)
    for keys, others in zip(_bands(rows, len(held)), _bands(held, len(rows)), strict=True):
        order = np.argsort(others, kind="stable")
        start, end = (np.searchsorted(others[order], keys, side=side) for side in ("left", "right"))
        for step in range(WINDOW):
            hit = np.flatnonzero(start + step < end)
            pairs = np.stack([hit, order[start[hit] + step]], axis=1)
            for row, other in _each_once(_above_estimate(rows, held, pairs), compared, len(held) + 1):
                if row not in matches and alike(row, other) >= ALIKE:
                    matches[row] = other
    return np.array(sorted(matches.items()), np.int64).reshape(-1, 2)


def groups_of(pairs: Pairs, rows: int) -> NDArray[np.int64]:
    """Return the group index of each row; pairs connect rows."""
    ones = np.ones(len(pairs), np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(rows, rows))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _bands(signatures: Shorts, others: int = 0) -> Iterator[NDArray[np.uint64]]:
    """Yield one key per row for each band; similar rows share the key of some band."""
    width = 3 if max(len(signatures), others) <= FEW else 4
    for start in range(0, signatures.shape[1], width):
        key = np.zeros(len(signatures), np.uint64)
        for k in range(start, start + width):
            key = key << np.uint64(16) | signatures[:, k]
        yield key


def _above_estimate(one: Shorts, two: Shorts, pairs: Pairs) -> Pairs:
    """Return the pairs whose signatures agree often enough."""
    keep = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 100_000):
        part = pairs[start : start + 100_000]
        keep[start : start + 100_000] = (one[part[:, 0]] == two[part[:, 1]]).mean(axis=1) >= ESTIMATE
    return pairs[keep]


def _each_once(pairs: Pairs, compared: set[int], width: int) -> Iterator[tuple[int, int]]:
    """Yield each pair once over all bands."""
    for first, second in pairs.tolist():
        key = first * width + second
        if key not in compared:
            compared.add(key)
            yield first, second


def in_groups(groups: Sequence[int] | NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the row indices of each group of two or more, in order."""
    numbers = np.asarray(groups)
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    yield from (part for part in np.split(order, cuts) if len(part) > 1)
