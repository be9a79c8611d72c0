"""Checks of the labels alone: rare ones, imbalance, and labels with two spellings."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rapidfuzz.distance import Levenshtein

FEWEST_ROWS = 10
UNEVEN = 10  # rows of the most common label per row of the rarest
SLIP_SHARE = 0.05  # maximum frequency of a misspelling relative to the correct label
# Characters between the words of one label; others distinguish labels: -1 and 1, C and C++, 1.5 and 15.
JOINS = re.compile(r"(?<=[^\W\d_])(?:[\s_]+(?=\w)|[\s_./-]+(?=[^\W\d_]))")
WORDS = re.compile(r"[^\W_]+")
SHORTEST_SLIP = 4  # letters of a word that may be misspelt: `vitamin b` and `vitamin d` differ


def variants(counts: Mapping[str, int]) -> dict[str, str]:
    """Map labels to the most common spelling of what looks like the same label; only labels that differ from it."""
    corrections: dict[str, str] = {}
    by_form: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        # Composed accents, no zero-width characters.
        visible = "".join(c for c in unicodedata.normalize("NFC", label) if unicodedata.category(c) != "Cf")
        by_form[JOINS.sub("", visible.casefold().strip())].append(label)
    for same in by_form.values():
        best = max(same, key=lambda label: (counts[label], label))
        corrections |= {label: best for label in same if label != best}
    common = sorted((label for label in counts if label not in corrections), key=lambda label: -counts[label])
    for label in common:
        end = bisect(common, -counts[label] / SLIP_SHARE, key=lambda other: -counts[other])
        if better := next((other for other in common[:end] if _is_misspelling(label, other)), ""):
            corrections[label] = corrections.get(better, better)  # more frequent labels were corrected before
    return {label: corrections.get(better, better) for label, better in corrections.items()}


def _is_misspelling(label: str, better: str) -> bool:
    """Return whether a label is a misspelling: at least five letters, no digits, one letter wrong or two swapped."""
    one = label.casefold()
    two = better.casefold()
    if min(len(one), len(two)) < 5 or any(map(str.isdigit, one + two)) or one[0] != two[0]:
        return False
    first = WORDS.findall(one)
    second = WORDS.findall(two)
    wrong = [min(len(a), len(b)) for a, b in zip(first, second, strict=False) if a != b]
    if len(first) != len(second) or min(wrong, default=SHORTEST_SLIP) < SHORTEST_SLIP:
        return False
    swapped = len(one) == len(two) and sorted(one) == sorted(two)
    distance = Levenshtein.distance(one, two, score_cutoff=2)
    return distance == 1 or (swapped and distance == 2)


def rare(counts: Mapping[str, int]) -> set[str]:
    """Return labels with too few rows to learn and test."""
    return {label for label, count in counts.items() if count < FEWEST_ROWS}


def uneven(counts: Mapping[str, int]) -> str:
    """Describe the imbalance between the most common and the rarest label; empty if it is small."""
    ordered = Counter(counts).most_common()
    if len(ordered) < 2 or ordered[0][1] < UNEVEN * ordered[-1][1]:
        return ""
    (most, many), (least, few) = ordered[0], ordered[-1]
    return f"{most!r} {many} rows, {least!r} {few}"


def counted(labels: Sequence[tuple[str, ...]]) -> Counter[str]:
    """Count the rows of each label."""
    counts: Counter[str] = Counter()
    for combination, count in Counter(labels).items():
        for label in combination:
            counts[label] += count
    return counts
