"""Training rows that are most like a question: the examples of the few-shot arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.words import words_of

# Texts that are compared with all known ones at a time: the table of both is dense.
AT_ONCE = 256


class Nearest:
    """Finds the texts that are most like another by TF-IDF of words and pairs of words."""

    def __init__(self, known: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), tokenizer=words_of, token_pattern=None, sublinear_tf=True
        )
        self._count = len(known)
        # Texts of marks alone have no words to be alike in.
        self._known = self._vectorizer.fit_transform(known) if any(map(words_of, known)) else None

    def to(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """For each text the numbers of the `count` known ones most like it, the nearest first."""
        if self._known is None:
            return [list(range(min(count, self._count)))] * len(texts)
        asked, found = self._vectorizer.transform(texts), list[list[int]]()
        for first in range(0, len(texts), AT_ONCE):
            near = (asked[first : first + AT_ONCE] @ self._known.T).toarray()
            found += [np.argsort(-row, kind="stable")[:count].tolist() for row in near]
        return found
