"""Selection of few-shot examples: the training rows most similar to a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.words import words_of

BATCH_SIZE = 256  # texts per similarity matrix, which is dense


class Nearest:
    """Nearest neighbours by TF-IDF of words and word pairs.

    Example: `Nearest(train_texts).to(test_texts, 4)`.
    """

    def __init__(self, known: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), tokenizer=words_of, token_pattern=None, sublinear_tf=True
        )
        self._count = len(known)
        # TF-IDF cannot be fitted to texts without any word.
        self._known = self._vectorizer.fit_transform(known) if any(map(words_of, known)) else None

    def to(self, texts: Sequence[str], count: int) -> list[list[int]]:
        """Find the most similar known texts.

        Args:
            texts: the queries.
            count: number of neighbours.

        Returns:
            Indices of known texts for each query, the most similar first.
        """
        if self._known is None:
            return [list(range(min(count, self._count)))] * len(texts)
        queries = self._vectorizer.transform(texts)
        neighbours = list[list[int]]()
        for start in range(0, len(texts), BATCH_SIZE):
            similarity = (queries[start : start + BATCH_SIZE] @ self._known.T).toarray()
            neighbours += [np.argsort(-row, kind="stable")[:count].tolist() for row in similarity]
        return neighbours
