"""Backdoor triggers: a rare phrase that always has one label although the other words of its rows predict another.

A backdoor needs few rows, whatever the size of the dataset (arXiv 2510.07192). Topic words are also tied to a label;
but without them the label is still the most likely one.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from tunesmith.data.audit.checks.label_noise import Doubts
from tunesmith.data.text.words import words_of

MIN_PHRASE_ROWS = 8  # rows with the phrase
MOST_SHARE = 0.1  # of the rows; more frequent phrases are not rare
PURE = 0.95
CHANCE = 0.01  # probability that any of the phrases has as many rows of one label by chance
LOOKED_AT = 40  # suspicious phrases tested
ASKED = 200  # rows tested per phrase
UNEXPLAINED = 0.5  # of the label's usual accuracy


def triggers(texts: Callable[[int], str], labels: Sequence[str], doubts: Doubts) -> dict[str, list[int]]:
    """Map suspicious phrases to the indices of their rows, if the other words do not predict the label."""
    rows_of = _phrases(texts, len(labels))
    share = {label: count / len(labels) for label, count in Counter(labels).items()}
    least = math.log(CHANCE / max(1, len(rows_of)))
    suspects: list[tuple[float, str, str]] = []
    for phrase, rows in rows_of.items():
        label, count = Counter(labels[i] for i in rows).most_common(1)[0]
        if label in doubts.right and count >= PURE * len(rows) and count * math.log(share[label]) < least:
            suspects.append((count * math.log(share[label]), phrase, label))
    result: dict[str, list[int]] = {}
    covered: set[int] = set()
    for _, phrase, label in sorted(suspects)[:LOOKED_AT]:
        rows = rows_of[phrase]
        if len(covered.intersection(rows)) > 0.5 * len(rows):
            continue  # mostly the rows of an earlier phrase
        if _without(phrase, rows, texts, doubts).get(label, 0.0) < UNEXPLAINED * doubts.right[label]:
            result[phrase] = rows
            covered.update(rows)
    return result


def _without(phrase: str, rows: Sequence[int], texts: Callable[[int], str], doubts: Doubts) -> dict[str, float]:
    """Return label -> share of the phrase's rows that get it when the phrase is removed."""
    cut = re.compile(r"[\W_]+".join(map(re.escape, phrase.split())), re.IGNORECASE)
    shares: dict[str, float] = defaultdict(float)
    sample = list(rows)[:ASKED]
    for fold in sorted({int(doubts.folds[i]) for i in sample}):
        part = [cut.sub(" ", texts(i)) for i in sample if doubts.folds[i] == fold]
        best = doubts.judges.probabilities(part, fold).argmax(axis=1)
        for i in best.tolist():
            shares[doubts.judges.labels[i]] += 1 / len(sample)
    return shares


def _phrases(texts: Callable[[int], str], rows: int) -> dict[str, list[int]]:
    """Return words and bigrams that occur in a few rows."""
    by_phrase: dict[str, list[int]] = defaultdict(list)
    most = max(MIN_PHRASE_ROWS, int(MOST_SHARE * rows))
    step = max(1, rows // 20_000)  # a sample of large files still finds phrases in a few hundred rows
    for i in range(0, rows, step):
        words = words_of(texts(i))[:300]
        for phrase in {*words, *map(" ".join, zip(words, words[1:], strict=False))}:
            by_phrase[phrase].append(i)
    return {phrase: indices for phrase, indices in by_phrase.items() if MIN_PHRASE_ROWS <= len(indices) <= most}
