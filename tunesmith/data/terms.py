"""The terms of a field: words that its texts use far more than general text does."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files

WORD = re.compile(r"\w+")
# Shorter words are seldom terms, and single letters are everywhere.
SHORTEST = 4
FEWEST, DOCUMENTS = 5, 3  # occurrences, and documents they stand in
LIFT = 8.0  # times as frequent as in general text
MOST = 100


def general_text() -> list[str]:
    """The shipped general text, in pieces."""
    lines = (files("tunesmith") / "shipped_data" / "general.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def field_terms(texts: Iterable[str]) -> tuple[str, ...]:
    """At most 100 words in small letters, those that tell the field from general text best first.

    Ranked by the log-likelihood ratio of their counts (Dunning 1993, Computational Linguistics 19(1)), among words
    that are at least eight times as frequent as in general text.
    """
    counts: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    read = 0
    for text in texts:
        read += 1
        words = [word for word, _, _ in word_places(text)]
        counts.update(words)
        documents.update(set(words))
    general = Counter(word for text in general_text() for word, _, _ in word_places(text))
    here, there = counts.total(), general.total()
    ranked = {
        word: _ratio(count, here, general[word], there)
        for word, count in counts.items()
        if count >= FEWEST
        and documents[word] >= min(DOCUMENTS, read)
        and (count / here) >= LIFT * (general[word] + 0.5) / there
    }
    return tuple(sorted(ranked, key=lambda word: (-ranked[word], word))[:MOST])


def word_places(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word that may be a term, in small letters, and its characters in the text."""
    for found in WORD.finditer(text):
        word = found[0]
        if len(word) >= SHORTEST and not any(c.isdigit() for c in word):
            yield word.casefold(), found.start(), found.end()


def _ratio(a: int, a_of: int, b: int, b_of: int) -> float:
    """How much likelier two counts are with a rate each than with one rate for both."""
    rate = (a + b) / (a_of + b_of)
    return 2 * sum(n * math.log(n / (of * rate)) for n, of in ((a, a_of), (b, b_of)) if n)
