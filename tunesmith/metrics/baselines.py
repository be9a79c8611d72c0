"""Baselines that a tuned classifier has to beat: constant labels, TF-IDF with logistic regression, a linear probe.

The last two choose their hyperparameters by cross-validation: beating a badly tuned baseline proves nothing.
N rows, D features, K labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.errors import DataError
from tunesmith.metrics.scores import accuracy, macro_f1
from tunesmith.progress import Meter, measuring, track

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import FeatureUnion

FOLDS = 3
FITS = 6  # five settings in cross-validation, and the fit on all rows
# Relative to the median standard deviation of the features; one MiniLM feature has a deviation of 1e-30.
LEAST_SPREAD = 1e-6
MOST_ROWS = 2000  # rows used in cross-validation; the final fit uses all rows

METRICS = {"accuracy": lambda labels, predicted: float(accuracy(labels, predicted).mean()), "macro_f1": macro_f1}


@dataclass(frozen=True, slots=True)
class _Setting:
    strength: float  # inverse of the regularization, scikit-learn's C
    balanced: bool = False


@dataclass(frozen=True, slots=True)
class _Trials:
    """Cross-validation of settings; `folds` holds the fold of each row, -1 for unused rows."""

    labels: NDArray[np.str_]
    folds: NDArray[np.int64]
    metric: str

    def score(self, features: Any, setting: _Setting) -> float:
        """Return the metric of the out-of-fold predictions."""
        predicted = self.labels.copy()
        used = self.folds >= 0
        for fold in track(np.unique(self.folds[used]).tolist(), "cross-validating", unit="folds"):
            test = np.flatnonzero(self.folds == fold)
            train = np.flatnonzero(used & (self.folds != fold))
            fitted = fit_logistic(features[train], self.labels[train], setting.strength, balanced=setting.balanced)
            predicted[test] = fitted.predict(features[test])
        return METRICS[self.metric](self.labels[used].tolist(), predicted[used].tolist())

    def best(self, features: Any, first: tuple[_Setting, float], strengths: Sequence[float]) -> _Setting:
        """Return the best of `first` (already scored) and `strengths`, with class weights if they raise the score."""
        scores = dict([first])
        for strength in track(strengths, "cross-validating", unit="settings"):
            scores[_Setting(strength)] = self.score(features, _Setting(strength))
        chosen = max(scores, key=lambda setting: scores[setting])
        balanced = replace(chosen, balanced=True)
        return balanced if self.score(features, balanced) > scores[chosen] else chosen


L = TypeVar("L", str, tuple[str, ...])


def majority(labels: Sequence[L]) -> L:
    """Return the most frequent label or set of labels, the first in order of several; raise DataError without any."""
    if not labels:
        raise DataError("baselines: no training rows; give at least one")
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def best_label_set(rows: Sequence[Sequence[str]], *, metric: str) -> tuple[str, ...]:
    """Return the set of labels, sorted, that scores best on the rows if each of them is given it.

    Args:
        rows: the labels of each training row; an empty list raises DataError.
        metric: "sample_f1"; by any other the most frequent set is returned.
    """
    sets = [tuple(sorted(set(row))) for row in rows]
    frequent = majority(sets)
    if metric != "sample_f1":
        return frequent
    labels = sorted(set().union(*sets))
    index = {label: k for k, label in enumerate(labels)}
    counts = np.zeros((1 + max(map(len, sets)), len(labels)))  # rows by their number of labels and by label
    for row in sets:
        counts[len(row), [index[label] for label in row]] += 1
    best, chosen = float(sets.count(())), np.array([], dtype=np.intp)
    for size in range(1, len(labels) + 1):
        # F1 of a row is 2 x shared labels / (labels of the row + size), a sum over labels: the best set of this size
        # has the labels of the highest sums.
        sums = (2 / (np.arange(len(counts)) + size)) @ counts
        top = np.argsort(-sums, kind="stable")[:size]
        if sums[top].sum() > best:
            best, chosen = sums[top].sum(), top
    return tuple(sorted(labels[k] for k in chosen))


Labeller = Callable[[Sequence[str]], list[str]]


def tfidf_classifier(
    train: Sequence[tuple[str, str]], texts: Sequence[str], *, metric: str = "accuracy", seed: int = 0
) -> list[str]:
    """Label texts with a `tfidf_labeller`.

    Args:
        train: (text, label) of each training row.
        texts: to label.
        metric: decides between settings of the classifier.
        seed: of the cross-validation.
    """
    return tfidf_labeller(train, metric=metric, seed=seed)(texts)


def tfidf_labeller(train: Sequence[tuple[str, str]], *, metric: str = "accuracy", seed: int = 0) -> Labeller:
    """Train logistic regression on TF-IDF features.

    Cross-validation makes three choices one after the other: words alone or with character 2-5-grams, then C,
    then class weights. With too few rows these are fixed.

    Args:
        train: (text, label) rows.
        metric: what cross-validation maximizes, "accuracy" or "macro_f1".
        seed: assigns rows to folds.

    Returns:
        A function from texts to labels. It returns the majority label where the rows have one label only or no words.
    """
    texts = [text for text, _ in train]
    labels = [label for _, label in train]
    if len(set(labels)) < 2 or not any(re.search(r"\w", text) for text in texts):
        common = majority(labels)
        return lambda texts: [common] * len(texts)
    with measuring("fitting TF-IDF", FITS, unit="fits") as meter:
        vectorizer, features, setting = _chosen_tfidf(texts, labels, meter, metric=metric, seed=seed)
        fitted = fit_logistic(features, np.array(labels), setting.strength, balanced=setting.balanced)

    def label(texts: Sequence[str]) -> list[str]:
        return [str(label) for label in fitted.predict(vectorizer.transform(texts))] if texts else []

    return label


def _chosen_tfidf(
    texts: Sequence[str], labels: Sequence[str], meter: Meter, *, metric: str, seed: int
) -> tuple[FeatureUnion, Any, _Setting]:
    """Return the vectorizer, its features of the texts and the setting that cross-validation chooses."""
    setting = _Setting(10.0)
    vectorizer = tfidf_vectorizer(characters=True)
    features = vectorizer.fit_transform(texts)
    trials = _trials(labels, metric, seed)
    if not trials:
        return vectorizer, features, setting
    meter.weight = 1
    word_vectorizer = tfidf_vectorizer(characters=False)
    word_features = word_vectorizer.fit_transform(texts)
    score = trials.score(features, setting)
    meter.add()
    word_score = trials.score(word_features, setting)
    meter.add()
    if word_score > score:
        vectorizer, features, score = word_vectorizer, word_features, word_score
    meter.weight = 3
    return vectorizer, features, trials.best(features, (setting, score), (1.0, 100.0))


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A linear classifier: logits [K] = weight [K, D] @ vector [D] + bias [K]."""

    labels: tuple[str, ...]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    balanced: bool = False  # fitted with class weights

    def label(self, vectors: ArrayLike) -> list[str]:
        """Return the most likely label of each vector, [N, D] -> N labels."""
        logits = np.asarray(vectors, dtype=np.float64).reshape(-1, self.weight.shape[1]) @ self.weight.T + self.bias
        return [self.labels[index] for index in logits.argmax(axis=1)]


def fit_linear(
    vectors: ArrayLike,
    labels: Sequence[str],
    *,
    metric: str = "accuracy",
    tries: bool = True,
    strength: float = 0.01,
    groups: Sequence[int] = (),
) -> LinearFit:
    """Fit logistic regression on standardised vectors.

    Args:
        vectors: [N, D].
        labels: N labels.
        metric: what cross-validation maximizes, "accuracy" or "macro_f1".
        tries: choose C and class weights by cross-validation as in `tfidf_labeller`.
        strength: C where no others are tried.
        groups: of the N vectors, counted from 0; a group is in one fold. Empty: each vector by itself.

    Returns:
        A classifier of unstandardised vectors; with fewer than two labels one that always returns that label.
    """
    if len(set(labels)) < 2:
        return LinearFit((majority(labels),), np.zeros((1, np.asarray(vectors).shape[1])), np.zeros(1))
    features, mean, deviation = standardised(vectors)
    setting = _Setting(strength)
    with measuring("fitting a linear probe", FITS, unit="fits") as meter:
        if tries and (trials := _trials(labels, metric, seed=0, groups=groups)):
            meter.weight = 1
            first = (setting, trials.score(features, setting))
            meter.add()
            meter.weight = 4
            setting = trials.best(features, first, (0.0001, 0.001, 0.1))
        fitted: Any = fit_logistic(features, np.array(labels), setting.strength, balanced=setting.balanced)
    weight = fitted.coef_
    bias = fitted.intercept_
    if len(weight) == 1:  # with two labels scikit-learn keeps one row, the second label's logit minus the first's
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / deviation
    return LinearFit(tuple(map(str, fitted.classes_)), weight, bias - weight @ mean, setting.balanced)


def linear_probe(vectors: ArrayLike, labels: Sequence[str], tests: ArrayLike, *, metric: str = "accuracy") -> list[str]:
    """Fit `fit_linear` and label the test vectors.

    Args:
        vectors: of the training rows, [N, D].
        labels: of the training rows, [N].
        tests: vectors to label, [M, D].
        metric: decides between settings of the classifier.
    """
    return fit_linear(vectors, labels, metric=metric).label(tests) if len(np.asarray(tests)) else []


def standardised(vectors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return vectors [N, D] with mean 0 and deviation 1 in every feature, and that mean and deviation [D]."""
    inputs = np.asarray(vectors, dtype=np.float64)
    mean = inputs.mean(axis=0)
    deviation = inputs.std(axis=0)
    # A constant feature stays at 0; dividing by its deviation would amplify rounding errors.
    deviation[deviation <= LEAST_SPREAD * np.median(deviation)] = 1
    return (inputs - mean) / deviation, mean, deviation


def tfidf_vectorizer(*, characters: bool) -> FeatureUnion:
    """Return TF-IDF features of words and pairs of words, with `characters` also of 2 to 5 characters within words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # scikit-learn's default pattern drops one-letter words, which empties whole texts in some scripts.
    parts = [("words", TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True))]
    if characters:
        parts.append(("runs", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)))
    return FeatureUnion(parts)


def _trials(labels: Sequence[str], metric: str, seed: int, groups: Sequence[int] = ()) -> _Trials | None:
    """Assign folds; None unless two labels have a row for every fold, or if `groups`, for two of them."""
    if groups:
        # Only groups of used rows get a fold: of a few long ones, others would leave a fold without rows.
        found, numbered = np.unique(np.asarray(groups[:MOST_ROWS]), return_inverse=True)
        grouped = np.full(len(labels), -1)
        grouped[: len(numbered)] = (np.random.default_rng(seed).permutation(len(found)) % FOLDS)[numbered]
        pairs = set(zip(labels[:MOST_ROWS], grouped.tolist(), strict=False))
        spread = sum(count > 1 for count in Counter(label for label, _ in pairs).values()) > 1
        return _Trials(np.array(labels), grouped, metric) if spread else None
    order = np.random.default_rng(seed).permutation(len(labels))[:MOST_ROWS].tolist()
    if sum(count >= FOLDS for count in Counter(labels[row] for row in order).values()) < 2:
        return None
    folds = np.full(len(labels), -1)
    # Stratified: rows sorted by label are assigned to the folds in turn.
    folds[sorted(order, key=lambda row: labels[row])] = np.arange(len(order)) % FOLDS
    return _Trials(np.array(labels), folds, metric)


def fit_logistic(
    features: Any, labels: NDArray[np.str_], strength: float, *, balanced: bool = False
) -> LogisticRegression | OneVsRestClassifier:
    """Fit one logistic regression, or one per label for sparse features: the dual solver is 20 times as fast.

    Args:
        features: [N, D], sparse or standardised.
        labels: N labels, at least two different ones.
        strength: inverse of the regularization.
        balanced: weigh rare labels as much as common ones.
    """
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    weights = "balanced" if balanced else None
    if not issparse(features):
        return LogisticRegression(C=strength, class_weight=weights, max_iter=2000).fit(features, labels)
    per_label = LogisticRegression(
        C=strength, class_weight=weights, solver="liblinear", dual=True, max_iter=2000, random_state=0
    )
    return OneVsRestClassifier(per_label).fit(features, labels)
