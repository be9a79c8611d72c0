"""What the labels themselves give away: rare ones, uneven ones, and one label written in two ways."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rapidfuzz.distance import Levenshtein

FEWEST_ROWS = 10
UNEVEN = 10  # times the rows of the rarest
SLIP_SHARE = 0.05  # a misspelling is at most so common as this share of what it misspells
# What may stand between two words of one label; other marks tell labels apart: -1 and 1, C and C++, 1.5 and 15.
JOINS = re.compile(r"(?<=[^\W\d_])(?:[\s_]+(?=\w)|[\s_./-]+(?=[^\W\d_]))")
WORDS = re.compile(r"[^\W_]+")
SHORTEST_SLIP = 4  # letters of a word that may be misspelt: `vitamin b` and `vitamin d` are two things


def variants(counts: Mapping[str, int]) -> dict[str, str]:
    """Label -> the commonest spelling of what looks like the same label; only labels that are not it."""
    found: dict[str, str] = {}
    by_form: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        by_form[JOINS.sub("", _seen(label).casefold().strip())].append(label)
    for same in by_form.values():
        best = max(same, key=lambda label: (counts[label], label))
        found |= {label: best for label in same if label != best}
    common = sorted((label for label in counts if label not in found), key=lambda label: -counts[label])
    for label in common:
        much = bisect(common, -counts[label] / SLIP_SHARE, key=lambda other: -counts[other])
        if better := next((other for other in common[:much] if _slip(label, other)), ""):
            found[label] = better
    return found


def _seen(label: str) -> str:
    """A label as it looks: accents on their letters, nothing of no width."""
    composed = unicodedata.normalize("NFC", label)
    return "".join(sign for sign in composed if unicodedata.category(sign) != "Cf")


def _slip(label: str, better: str) -> bool:
    """Whether a label is a misspelling: long enough, no digits, one letter wrong or two swapped."""
    one, two = label.casefold(), better.casefold()
    if min(len(one), len(two)) < 5 or any(map(str.isdigit, one + two)) or one[0] != two[0]:
        return False
    first, second = WORDS.findall(one), WORDS.findall(two)
    wrong = [min(len(a), len(b)) for a, b in zip(first, second, strict=False) if a != b]
    if len(first) != len(second) or min(wrong, default=SHORTEST_SLIP) < SHORTEST_SLIP:
        return False
    swapped = len(one) == len(two) and sorted(one) == sorted(two)
    distance = Levenshtein.distance(one, two, score_cutoff=2)
    return distance == 1 or (swapped and distance == 2)


def rare(counts: Mapping[str, int]) -> set[str]:
    """Labels with fewer rows than can be learned and tested."""
    return {label for label, count in counts.items() if count < FEWEST_ROWS}


def uneven(counts: Mapping[str, int]) -> str:
    """How far apart the commonest and the rarest label are; blank where it does not matter."""
    ordered = Counter(counts).most_common()
    if len(ordered) < 2 or ordered[0][1] < UNEVEN * ordered[-1][1]:
        return ""
    (most, many), (least, few) = ordered[0], ordered[-1]
    return f"{most!r} {many} rows, {least!r} {few}"


def counted(labels: Sequence[tuple[str, ...]]) -> Counter[str]:
    """In how many rows each label stands."""
    whole = Counter(labels)
    found: Counter[str] = Counter()
    for combination, count in whole.items():
        for label in combination:
            found[label] += count
    return found
