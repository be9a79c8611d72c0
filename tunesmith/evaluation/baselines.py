"""The cheap ways that a tuned model has to beat: the commonest label, TF-IDF, a linear probe.

The last two pick their settings by cross-validation: to beat a weak opponent proves nothing.
N rows, D features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError
from tunesmith.evaluation.metrics import accuracy, macro_f1

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import FeatureUnion

FOLDS = 3
# Of the middle feature's spread; MiniLM has a feature that moves by 1e-30.
LEAST_SPREAD = 1e-6
MOST_ROWS = 2000  # settings are tried on at most this many rows; the final fit sees all

METRICS = {"accuracy": lambda gold, given: float(accuracy(gold, given).mean()), "macro_f1": macro_f1}


@dataclass(frozen=True, slots=True)
class _Setting:
    strength: float  # how far the fit may follow the rows: scikit-learn's C
    balanced: bool = False


@dataclass(frozen=True, slots=True)
class _Trials:
    """Settings tried on parts of the training rows; `folds` holds each row's part, -1 for rows left out."""

    labels: NDArray[np.str_]
    folds: NDArray[np.int64]
    metric: str

    def score(self, features: Any, setting: _Setting) -> float:
        """The metric of the rows, each answered by a fit that has not seen it."""
        given = self.labels.copy()
        for fold in range(FOLDS):
            judge = np.flatnonzero(self.folds == fold)
            learn = np.flatnonzero((self.folds >= 0) & (self.folds != fold))
            given[judge] = _fitted(features[learn], self.labels[learn], setting).predict(features[judge])
        tried = self.folds >= 0
        return METRICS[self.metric](self.labels[tried].tolist(), given[tried].tolist())

    def best(self, features: Any, first: tuple[_Setting, float], strengths: Sequence[float]) -> _Setting:
        """The strength that scores highest, then with class weights if they score higher still; `first` is scored."""
        scores = dict([first])
        scores |= {s: self.score(features, s) for s in (_Setting(strength) for strength in strengths)}
        chosen = max(scores, key=lambda setting: scores[setting])
        weighed = replace(chosen, balanced=True)
        return weighed if self.score(features, weighed) > scores[chosen] else chosen


def majority(labels: Sequence[str]) -> str:
    """The commonest label; of equally common ones the first in the alphabet."""
    if not labels:
        raise DataError("baselines: there are no training rows; give at least one")
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


Labeller = Callable[[Sequence[str]], list[str]]


def tfidf_classifier(
    train: Sequence[tuple[str, str]], texts: Sequence[str], *, metric: str = "accuracy", seed: int = 0
) -> list[str]:
    """Labels for `texts` by logistic regression on TF-IDF, learned from (text, label) rows as in `tfidf_labeller`."""
    return tfidf_labeller(train, metric=metric, seed=seed)(texts)


def tfidf_labeller(train: Sequence[tuple[str, str]], *, metric: str = "accuracy", seed: int = 0) -> Labeller:
    """What labels texts by logistic regression on TF-IDF, learned from (text, label) rows.

    Cross-validation picks the best by `metric` ("accuracy" or "macro_f1"), one question after the other: words
    alone or with runs of 2-5 characters, how strong, class weights. With too few rows these are fixed.
    """
    known, labels = [text for text, _ in train], [label for _, label in train]
    if len(set(labels)) < 2 or not any(re.search(r"\w", text) for text in known):
        common = majority(labels)
        return lambda texts: [common] * len(texts)
    setting, vectorizer = _Setting(10.0), _vectorizer(characters=True)
    features, trials = vectorizer.fit_transform(known), _trials(labels, metric, seed)
    if trials:
        plain = _vectorizer(characters=False)
        fewer = plain.fit_transform(known)
        score, alone = trials.score(features, setting), trials.score(fewer, setting)
        if alone > score:
            vectorizer, features, score = plain, fewer, alone
        setting = trials.best(features, (setting, score), (1.0, 100.0))
    fitted = _fitted(features, np.array(labels), setting)

    def label(texts: Sequence[str]) -> list[str]:
        return [str(one) for one in fitted.predict(vectorizer.transform(texts))] if texts else []

    return label


@dataclass(frozen=True, slots=True)
class LinearFit:
    """Logits of K labels as weight [K, D] times a vector plus bias [K]."""

    labels: tuple[str, ...]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    balanced: bool = False  # fitted as if all labels were equally common

    def label(self, vectors: ArrayLike) -> list[str]:
        """The likeliest label of each of [N, D] vectors."""
        logits = np.asarray(vectors, dtype=np.float64).reshape(-1, self.weight.shape[1]) @ self.weight.T + self.bias
        return [self.labels[place] for place in logits.argmax(axis=1)]


def fit_linear(vectors: ArrayLike, labels: Sequence[str], *, metric: str = "accuracy", tries: bool = True) -> LinearFit:
    """Standardised logistic regression on [N, D] vectors with labels.

    The strength and the class weights are picked as in `tfidf_labeller`, or without tries fixed.
    """
    known = np.asarray(vectors, dtype=np.float64)
    if len(set(labels)) < 2:
        return LinearFit((majority(labels),), np.zeros((1, known.shape[1])), np.zeros(1))
    middle, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread <= LEAST_SPREAD * np.median(spread)] = (
        1  # what never changes stays at 0, and its last bits are no feature
    )
    features, setting = (known - middle) / spread, _Setting(0.01)
    if tries and (trials := _trials(labels, metric, seed=0)):
        first = (setting, trials.score(features, setting))
        setting = trials.best(features, first, (0.0001, 0.001, 0.1))
    fitted: Any = _fitted(features, np.array(labels), setting)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # of two labels the second's logit over the first's
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / spread
    return LinearFit(tuple(map(str, fitted.classes_)), weight, bias - weight @ middle, setting.balanced)


def linear_probe(vectors: ArrayLike, labels: Sequence[str], asked: ArrayLike, *, metric: str = "accuracy") -> list[str]:
    """[N, D] vectors with labels -> a label for each vector asked, by `fit_linear`."""
    return fit_linear(vectors, labels, metric=metric).label(asked) if len(np.asarray(asked)) else []


def _vectorizer(*, characters: bool) -> FeatureUnion:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # scikit-learn's own pattern drops words of one letter, and with them whole texts of some scripts.
    parts = [("words", TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True))]
    if characters:
        parts.append(("runs", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)))
    return FeatureUnion(parts)


def _trials(labels: Sequence[str], metric: str, seed: int) -> _Trials | None:
    """The parts to try settings on; None unless two labels have a row for every part."""
    order = np.random.default_rng(seed).permutation(len(labels))[:MOST_ROWS].tolist()
    if sum(count >= FOLDS for count in Counter(labels[row] for row in order).values()) < 2:
        return None
    folds = np.full(len(labels), -1)
    # Dealing out one label after the other gives each part its share of each.
    folds[sorted(order, key=lambda row: labels[row])] = np.arange(len(order)) % FOLDS
    return _Trials(np.array(labels), folds, metric)


def _fitted(features: Any, labels: NDArray[np.str_], setting: _Setting) -> LogisticRegression | OneVsRestClassifier:
    """One logistic regression, or one per label: sparse rows are solved by their dual, 20 times as fast."""
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    weights = "balanced" if setting.balanced else None
    if not issparse(features):
        return LogisticRegression(C=setting.strength, class_weight=weights, max_iter=2000).fit(features, labels)
    one = LogisticRegression(
        C=setting.strength, class_weight=weights, solver="liblinear", dual=True, max_iter=2000, random_state=0
    )
    return OneVsRestClassifier(one).fit(features, labels)
