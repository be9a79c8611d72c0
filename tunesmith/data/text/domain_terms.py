"""Domain terms: words that are far more frequent in a domain than in general text."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files

WORD = re.compile(r"\w+")
# Shorter words are rarely terms.
SHORTEST = 4
MIN_OCCURRENCES = 5  # occurrences
MIN_DOCUMENTS = 3  # documents that contain the term
LIFT = 8.0  # times as frequent as in general text
MOST = 100


def general_text() -> list[str]:
    """Return the passages of the bundled general text."""
    lines = (files("tunesmith") / "shipped_data" / "general.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def field_terms(texts: Iterable[str]) -> tuple[str, ...]:
    """Return up to 100 lower-case domain terms, the most characteristic first.

    Candidates are at least eight times as frequent as in general text. They are ranked by the log-likelihood ratio of
    their counts (Dunning 1993, Computational Linguistics 19(1)).
    """
    counts: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    size = 0
    for text in texts:
        size += 1
        words = [word for word, _, _ in word_places(text)]
        counts.update(words)
        documents.update(set(words))
    general = Counter(word for text in general_text() for word, _, _ in word_places(text))
    total = counts.total()
    general_total = general.total()
    ratios = {
        word: _likelihood_ratio(count, total, general[word], general_total)
        for word, count in counts.items()
        if count >= MIN_OCCURRENCES
        and documents[word] >= min(MIN_DOCUMENTS, size)
        and (count / total) >= LIFT * (general[word] + 0.5) / general_total
    }
    return tuple(sorted(ratios, key=lambda word: (-ratios[word], word))[:MOST])


def word_places(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each possible term in lower case with its start and end character."""
    for match in WORD.finditer(text):
        word = match[0]
        if len(word) >= SHORTEST and (word.isalpha() or not any(c.isdigit() for c in word)):
            yield word.casefold(), match.start(), match.end()


def _likelihood_ratio(a: int, a_total: int, b: int, b_total: int) -> float:
    """Compare two rates with one common rate: 2 * (log-likelihood of both - log-likelihood of the common one)."""
    rate = (a + b) / (a_total + b_total)
    return 2 * sum(n * math.log(n / (total * rate)) for n, total in ((a, a_total), (b, b_total)) if n)
