"""Rows that repeat or contradict one another: exact and near copies, other answers to the same input, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.audit.ask import Embed
from tunesmith.data.audit.near import ALIKE, KNOWN, Words, counted, cross_pairs, groups_of, in_groups, near_pairs
from tunesmith.data.audit.shingles import Longs
from tunesmith.data.audit.table import RowTable

# Cosine of two sentence embeddings from which on they say the same: a guess that no set here has confirmed.
SAME_MEANING = 0.92


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of rows, each in file order."""

    groups: tuple[NDArray[np.int64], ...]

    @property
    def rows(self) -> NDArray[np.int64]:
        """All rows of all groups."""
        return np.concatenate(self.groups) if self.groups else np.zeros(0, np.int64)

    @property
    def later(self) -> NDArray[np.int64]:
        """All but the first of each group."""
        return np.concatenate([group[1:] for group in self.groups]) if self.groups else np.zeros(0, np.int64)


def exact(table: RowTable, rows: NDArray[np.int64]) -> Groups:
    """Rows with the same question and the same answer, to the letter."""
    return Groups(tuple(rows[group] for group in in_groups(_numbered(table.whole[rows]))))


def near(table: RowTable, rows: NDArray[np.int64], words: Words, *, labelled: bool) -> Groups:
    """Rows that are nearly the same, with the same label or nearly the same answer; none given is an exact copy."""

    content = _contents(table, labelled)

    def alike(one: int, two: int) -> float:
        first, second = int(rows[one]), int(rows[two])
        if table.said[first] != table.said[second]:
            answers = [counted(table.text(row)[1]) for row in (first, second)]
            if labelled or words.alike(*answers) < ALIKE:
                return 0.0
        return words.alike(content(first), content(second))

    pairs = near_pairs(table.near[rows], alike)
    return Groups(tuple(rows[group] for group in in_groups(groups_of(pairs, len(rows)))))


def contradictions(table: RowTable, rows: NDArray[np.int64]) -> Groups:
    """Rows that ask the same and are answered differently."""
    groups = (rows[group] for group in in_groups(_numbered(table.asked[rows])))
    return Groups(tuple(group for group in groups if len(np.unique(table.said[group])) > 1))


def outvoted(table: RowTable, groups: Groups) -> NDArray[np.int64]:
    """Of rows that contradict one another those to drop: all but the majority's, or all where there is none."""
    dropped: list[int] = []
    for group in groups.groups:
        (best, count), second = (*Counter(table.said[group].tolist()).most_common(2),)
        dropped += [int(row) for row in group if count == second[1] or int(table.said[row]) != best]
    return np.array(dropped, np.int64)


def leaks(table: RowTable, test: RowTable, long: dict[int, int], words: Words, *, labelled: bool) -> dict[int, int]:
    """Row -> the test row that it copies: the same question, long runs of its words (`long`), nearly its words."""
    found = dict(long)
    at: dict[int, int] = {}
    held = test.asking()
    for row in held.tolist():
        at.setdefault(int(test.asked[row]), row)
    rows = table.sound()
    same = np.isin(table.asked[rows], test.asked[held])
    found.update({int(row): at[int(table.asked[row])] for row in rows[same]})

    mine, theirs = _contents(table, labelled), _contents(test, labelled)

    def alike(one: int, two: int) -> float:
        return words.alike(mine(int(rows[one])), theirs(int(held[two])))

    for one, two in cross_pairs(table.near[rows], test.near[held], alike).tolist():
        found.setdefault(int(rows[one]), int(held[two]))
    broken = set(range(table.rows)) - set(rows.tolist()) if len(rows) < table.rows else set()
    return {row: other for row, other in found.items() if row not in broken}


def meant_alike(table: RowTable, test: RowTable, embed: Embed) -> dict[int, int]:
    """Row -> the test row that says the same in other words, by the nearest sentence embedding."""
    rows, held = table.sound(), test.asking()
    theirs = embed([test.text(row)[0] for row in held.tolist()])
    found: dict[int, int] = {}
    for start in range(0, len(rows), 2000):
        part = rows[start : start + 2000]
        likeness = embed([table.text(row)[0] for row in part.tolist()]) @ theirs.T
        best = likeness.argmax(axis=1)
        for i in np.flatnonzero(likeness[np.arange(len(part)), best] >= SAME_MEANING):
            found[int(part[i])] = int(held[best[i]])
    return found


def _contents(table: RowTable, labelled: bool) -> Callable[[int], Counter[str]]:
    """The words of a row, of its answer too where that is no label; the last rows that were asked for are kept."""

    @lru_cache(KNOWN)
    def content(row: int) -> Counter[str]:
        question, answer = table.text(row)
        return counted(question if labelled or not answer else f"{question}\n{answer}")

    return content


def _numbered(hashes: Longs) -> NDArray[np.int64]:
    return np.unique(hashes, return_inverse=True)[1].astype(np.int64)
