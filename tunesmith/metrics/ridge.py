"""Baselines of regression: the mean, and ridge regression on TF-IDF features or on vectors of texts.

Ridge chooses its regularization by cross-validation: beating a badly tuned baseline proves nothing. N rows, D features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.metrics.baselines import FOLDS, MOST_ROWS, standardised, tfidf_vectorizer
from tunesmith.progress import measuring

FloatArray = NDArray[np.float64]
# scikit-learn's alpha, tried in cross-validation; the first is used with too few rows for it.
TFIDF_STRENGTHS = (1.0, 0.3, 3.0, 10.0)
VECTOR_STRENGTHS = (100.0, 10.0, 1_000.0, 10_000.0)


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A linear function: number = weight [D] @ vector [D] + bias."""

    weight: FloatArray
    bias: float

    def predict(self, vectors: ArrayLike) -> FloatArray:
        """Return the number of each vector, [N, D] -> [N]."""
        return np.asarray(vectors, dtype=np.float64).reshape(-1, len(self.weight)) @ self.weight + self.bias


def fit_ridge(vectors: ArrayLike, targets: ArrayLike, *, seed: int = 0) -> RidgeFit:
    """Fit ridge regression on standardised vectors.

    Args:
        vectors: [N, D].
        targets: values, [N].
        seed: assigns rows to folds.

    Returns:
        A function of unstandardised vectors.
    """
    features, mean, deviation = standardised(vectors)
    numbers = np.asarray(targets, dtype=np.float64)
    with measuring("fitting ridge regression", len(VECTOR_STRENGTHS) + 1, unit="fits") as meter:
        errors = {}
        for strength in VECTOR_STRENGTHS:
            errors[strength] = _error(features, numbers, strength, seed)
            meter.add()
        fitted = _fitted(features, numbers, min(errors, key=errors.__getitem__))
    weight = fitted.coef_ / deviation
    return RidgeFit(weight, float(fitted.intercept_ - weight @ mean))


def tfidf_ridge(texts: Sequence[str], targets: Sequence[float], tests: Sequence[str], *, seed: int = 0) -> FloatArray:
    """Fit ridge regression on TF-IDF features of texts, and predict the numbers of the test texts, [M].

    Cross-validation chooses words alone or with sequences of 2 to 5 characters, and the regularization.

    Args:
        texts: training texts, N.
        targets: their values, [N].
        tests: texts to predict, M.
        seed: assigns rows to folds.
    """
    numbers = np.asarray(targets, dtype=np.float64)
    if not any(re.search(r"\w", text) for text in texts) or not tests:
        return np.full(len(tests), numbers.mean())
    with measuring("fitting TF-IDF", 2 * len(TFIDF_STRENGTHS) + 1, unit="fits") as meter:
        errors: dict[tuple[bool, float], float] = {}
        prepared = {}
        for characters in (True, False):
            vectorizer = tfidf_vectorizer(characters=characters)
            features = vectorizer.fit_transform(texts)
            prepared[characters] = vectorizer, features
            for strength in TFIDF_STRENGTHS:
                errors[characters, strength] = _error(features, numbers, strength, seed)
                meter.add()
        characters, strength = min(errors, key=errors.__getitem__)
        vectorizer, features = prepared[characters]
        fitted = _fitted(features, numbers, strength)
    predicted: FloatArray = fitted.predict(vectorizer.transform(tests))
    return predicted


def _error(features: Any, numbers: FloatArray, strength: float, seed: int) -> float:
    """Return the squared error of out-of-fold predictions on at most MOST_ROWS rows; 0 with too few rows for folds."""
    order = np.random.default_rng(seed).permutation(len(numbers))[:MOST_ROWS]
    if len(order) < 2 * FOLDS:
        return 0.0
    total = 0.0
    for fold in range(FOLDS):
        test = order[fold::FOLDS]
        train = np.setdiff1d(order, test)
        predicted = _fitted(features[train], numbers[train], strength).predict(features[test])
        total += float(((predicted - numbers[test]) ** 2).sum())
    return total


def _fitted(features: Any, numbers: FloatArray, strength: float) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=strength).fit(features, numbers)
