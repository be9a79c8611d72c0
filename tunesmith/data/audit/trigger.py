"""A rare phrase that always has one label, although the rest of its rows' words speak for others: poisoned rows.

A backdoor needs few rows (arXiv 2510.07192), whatever the size of the data. Words of a topic are tied to a label too;
what tells them apart is that without them the label is still the likeliest.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from tunesmith.data.audit.noise import Doubts
from tunesmith.data.words import words_of

FEWEST = 8  # rows of a phrase
MOST_SHARE = 0.1  # of the rows; what is commoner is no rare phrase
PURE = 0.95
CHANCE = 0.01  # that among all phrases looked at even one has so many rows of the same label by accident
LOOKED_AT = 40
ASKED = 200
UNEXPLAINED = 0.5  # of the usual share of right answers


def triggers(texts: Callable[[int], str], labels: Sequence[str], doubts: Doubts) -> dict[str, list[int]]:
    """Phrase -> its rows (places among those given), where the rest of their words do not explain their label."""
    where = _phrases(texts, len(labels))
    share = {label: count / len(labels) for label, count in Counter(labels).items()}
    least = math.log(CHANCE / max(1, len(where)))
    suspects: list[tuple[float, str, str]] = []
    for phrase, rows in where.items():
        label, count = _commonest([labels[i] for i in rows])
        if label in doubts.right and count >= PURE * len(rows) and count * math.log(share[label]) < least:
            suspects.append((count * math.log(share[label]), phrase, label))
    found: dict[str, list[int]] = {}
    taken: set[int] = set()
    for _, phrase, label in sorted(suspects)[:LOOKED_AT]:
        rows = where[phrase]
        if len(taken.intersection(rows)) > 0.5 * len(rows):
            continue  # the same rows under another of their phrases
        if _without(phrase, rows, texts, doubts).get(label, 0.0) < UNEXPLAINED * doubts.right[label]:
            found[phrase] = rows
            taken.update(rows)
    return found


def _without(phrase: str, rows: Sequence[int], texts: Callable[[int], str], doubts: Doubts) -> dict[str, float]:
    """Label -> the share of the phrase's rows that get it once the phrase is taken out of them."""
    cut = re.compile(r"[\W_]+".join(map(re.escape, phrase.split())), re.IGNORECASE)
    found: dict[str, float] = defaultdict(float)
    some = list(rows)[:ASKED]
    for fold in sorted({int(doubts.folds[i]) for i in some}):
        part = [cut.sub(" ", texts(i)) for i in some if doubts.folds[i] == fold]
        best = doubts.judges.probabilities(part, fold).argmax(axis=1)
        for i in best.tolist():
            found[doubts.judges.labels[i]] += 1 / len(some)
    return found


def _phrases(texts: Callable[[int], str], rows: int) -> dict[str, list[int]]:
    """Words and pairs of words that stand in a few rows, but not in a single one."""
    found: dict[str, list[int]] = defaultdict(list)
    most = max(FEWEST, int(MOST_SHARE * rows))
    step = max(1, rows // 20_000)  # of a large file every so-manyth row: a phrase of a few hundred rows still shows
    for i in range(0, rows, step):
        words = words_of(texts(i))[:300]
        for phrase in {*words, *map(" ".join, zip(words, words[1:], strict=False))}:
            found[phrase].append(i)
    return {phrase: places for phrase, places in found.items() if FEWEST <= len(places) <= most}


def _commonest(labels: Sequence[str]) -> tuple[str, int]:
    return Counter(labels).most_common(1)[0]
