"""Training rows that are most like a question: the examples of the few-shot arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def nearest_rows(train: Sequence[str], asked: Sequence[str], count: int) -> list[list[int]]:
    """For each text asked the numbers of the `count` training texts most like it by TF-IDF, the nearest first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    known = vectorizer.fit_transform(train)
    near = (vectorizer.transform(asked) @ known.T).toarray()
    return [np.argsort(-row, kind="stable")[:count].tolist() for row in near]
