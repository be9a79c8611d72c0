"""Duplicates, near-duplicates, contradictions and leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.checks.near_duplicates import (
    ALIKE,
    KNOWN,
    Words,
    counted,
    cross_pairs,
    groups_of,
    in_groups,
    near_pairs,
)
from tunesmith.data.audit.options import Embed
from tunesmith.data.audit.row_table import RowTable
from tunesmith.data.text.minhash import Longs

# Minimum cosine of two sentence embeddings with the same meaning; chosen, not confirmed on any dataset here.
SAME_MEANING = 0.92


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of row indices, each in file order."""

    groups: tuple[NDArray[np.int64], ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """All rows of all groups."""
        return np.concatenate(self.groups) if self.groups else np.zeros(0, np.int64)

    @property
    def later(self) -> NDArray[np.int64]:
        """All rows but the first of each group."""
        return np.concatenate([group[1:] for group in self.groups]) if self.groups else np.zeros(0, np.int64)


def exact(table: RowTable, rows: NDArray[np.int64]) -> Groups:
    """Return groups of rows with exactly the same prompt and answer."""
    return Groups(tuple(rows[group] for group in in_groups(_indexed(table.whole[rows]))))


def near(table: RowTable, rows: NDArray[np.int64], words: Words, *, labelled: bool) -> Groups:
    """Return groups of near-duplicates with the same label or nearly the same answer; `rows` has no exact copies."""
    content = _contents(table, labelled)

    def alike(one: int, two: int) -> float:
        first = int(rows[one])
        second = int(rows[two])
        if table.said[first] != table.said[second]:
            answers = [counted(table.text(row)[1]) for row in (first, second)]
            if labelled or words.alike(*answers) < ALIKE:
                return 0.0
        return words.alike(content(first), content(second))

    pairs = near_pairs(table.near[rows], alike)
    return Groups(tuple(rows[group] for group in in_groups(groups_of(pairs, len(rows)))))


def contradictions(table: RowTable, rows: NDArray[np.int64]) -> Groups:
    """Return groups of rows with the same prompt and different answers."""
    groups = (rows[group] for group in in_groups(_indexed(table.asked[rows])))
    return Groups(tuple(group for group in groups if len(np.unique(table.said[group])) > 1))


def outvoted(table: RowTable, groups: Groups) -> NDArray[np.int64]:
    """Return the rows to drop of each contradiction: all but the majority's, or all if there is none."""
    dropped: list[int] = []
    for group in groups.groups:
        (best, count), second = (*Counter(table.said[group].tolist()).most_common(2),)
        dropped += [int(row) for row in group if count == second[1] or int(table.said[row]) != best]
    return np.array(dropped, np.int64)


def leaks(table: RowTable, test: RowTable, long: dict[int, int], words: Words, *, labelled: bool) -> dict[int, int]:
    """Map rows to the test rows that they copy: same prompt, long runs of its words (`long`), or near-duplicate."""
    copies = dict(long)
    by_hash: dict[int, int] = {}
    held = test.asking()
    for row in held.tolist():
        by_hash.setdefault(int(test.asked[row]), row)
    rows = table.sound()
    same = np.isin(table.asked[rows], test.asked[held])
    copies.update({int(row): by_hash[int(table.asked[row])] for row in rows[same]})

    row_content = _contents(table, labelled)
    test_content = _contents(test, labelled)

    def alike(one: int, two: int) -> float:
        return words.alike(row_content(int(rows[one])), test_content(int(held[two])))

    for one, two in cross_pairs(table.near[rows], test.near[held], alike).tolist():
        copies.setdefault(int(rows[one]), int(held[two]))
    valid = np.zeros(table.rows, bool)
    valid[rows] = True
    return {row: other for row, other in copies.items() if valid[row]}


def meant_alike(table: RowTable, test: RowTable, embed: Embed) -> dict[int, int]:
    """Map rows to test rows with the same meaning, by the nearest sentence embedding."""
    rows = table.sound()
    held = test.asking()
    test_vectors = embed([test.text(row)[0] for row in held.tolist()])
    nearest: dict[int, int] = {}
    for start in range(0, len(rows), 2000):
        part = rows[start : start + 2000]
        cosines = embed([table.text(row)[0] for row in part.tolist()]) @ test_vectors.T
        best = cosines.argmax(axis=1)
        for i in np.flatnonzero(cosines[np.arange(len(part)), best] >= SAME_MEANING):
            nearest[int(part[i])] = int(held[best[i]])
    return nearest


def _contents(table: RowTable, labelled: bool) -> Callable[[int], Counter[str]]:
    """Return a cached function for the word counts of a row, with its answer unless that is a label."""

    @lru_cache(KNOWN)
    def content(row: int) -> Counter[str]:
        question, answer = table.text(row)
        return counted(question if labelled or not answer else f"{question}\n{answer}")

    return content


def _indexed(hashes: Longs) -> NDArray[np.int64]:
    """Replace hashes by consecutive indices."""
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64)
