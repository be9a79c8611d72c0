"""Training rows that are most like a question: the examples of the few-shot arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Nearest:
    """Finds the texts that are most like another by TF-IDF of words and pairs of words."""

    def __init__(self, known: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        self._known = self._vectorizer.fit_transform(known)

    def to(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """For each text the numbers of the `count` known ones most like it, the nearest first."""
        near = (self._vectorizer.transform(texts) @ self._known.T).toarray()
        return [np.argsort(-row, kind="stable")[:count].tolist() for row in near]
