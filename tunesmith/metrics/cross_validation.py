"""Cross-validated scores of cheap classifiers, before any model is tuned. N rows, D features.

Settings are fixed, unlike those of the baselines that a run is compared with: searching them takes ten times as long.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.metrics.baselines import best_label_set, fit_logistic, standardised, tfidf_vectorizer
from tunesmith.metrics.scores import macro_f1, macro_f1_pair, multilabel_f1
from tunesmith.metrics.significance import corpus_interval, interval

FOLDS = 3
# Inverse regularization strengths of `baselines` without a search: sparse features and standardised dense ones.
SPARSE_STRENGTH, DENSE_STRENGTH = 10.0, 0.01

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows whose labels are predicted from one another."""

    texts: Sequence[str]  # N texts
    labels: Sequence[Labels]  # labels of each row, one unless rows may have several
    groups: Sequence[str] | None  # source of each row, which stays in one fold; None if there are no sources
    metric: str  # accuracy, macro_f1 or sample_f1


@dataclass(frozen=True, slots=True)
class MeasuredScore:
    """A score on rows that the classifier was not fitted on, with its 95 % interval."""

    score: float
    low: float
    high: float
    rows: int


def tfidf_score(rows: LabelledRows) -> MeasuredScore | None:
    """Cross-validate TF-IDF with logistic regression; None if rows or words are too few for three folds."""
    if not any(re.search(r"\w", text) for text in rows.texts):
        return None
    features = tfidf_vectorizer(characters=True).fit_transform(rows.texts)
    return _cross_validate(rows, features, SPARSE_STRENGTH)


def probe_score(rows: LabelledRows, vectors: ArrayLike) -> MeasuredScore | None:
    """Cross-validate logistic regression on the vectors [N, D] of a frozen model; None for too few rows."""
    return _cross_validate(rows, standardised(vectors)[0], DENSE_STRENGTH)


def majority_score(rows: LabelledRows) -> float:
    """Return the score of the most frequent label, or of the best set of labels, given to every row."""
    return _measured(rows, [best_label_set(rows.labels, metric=rows.metric)] * len(rows.labels)).score


def _cross_validate(rows: LabelledRows, features: Any, strength: float) -> MeasuredScore | None:
    """Score the out-of-fold predictions."""
    folds = _folds(rows)
    if folds is None:
        return None
    predicted: list[Labels] = [()] * len(rows.labels)
    for fold in range(FOLDS):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(test):  # few groups of very different sizes
            continue
        known = [rows.labels[i] for i in train.tolist()]
        answers = _predict(features[train], known, features[test], strength=strength, metric=rows.metric)
        for index, answer in zip(test.tolist(), answers, strict=True):
            predicted[index] = answer
    return _measured(rows, predicted)


def _predict(train: Any, labels: Sequence[Labels], test: Any, *, strength: float, metric: str) -> list[Labels]:
    """Return the labels of the test features."""
    if metric != "sample_f1":
        words = np.array([label for (label,) in labels])
        if len(set(words)) < 2:
            return [(str(words[0]),)] * test.shape[0]
        return [(str(label),) for label in fit_logistic(train, words, strength).predict(test)]
    chosen: list[list[str]] = [[] for _ in range(test.shape[0])]
    for label in sorted({label for row in labels for label in row}):
        has = np.array(["yes" if label in row else "no" for row in labels])
        answers = fit_logistic(train, has, strength).predict(test) if len(set(has)) == 2 else [has[0]] * len(chosen)
        for row, answer in zip(chosen, answers, strict=True):
            row += [label] * (answer == "yes")
    return [tuple(row) for row in chosen]


def _measured(rows: LabelledRows, predicted: Sequence[Labels]) -> MeasuredScore:
    """Return the score of predictions and its interval, by groups."""
    if rows.metric == "macro_f1":
        wanted, given = [label for (label,) in rows.labels], [label for (label,) in predicted]
        statistic = macro_f1_pair(wanted, given, given)
        low, high = corpus_interval(statistic, len(wanted), groups=rows.groups, centred=True)
        score = macro_f1(wanted, given)
        return MeasuredScore(score, min(low, score), max(high, score), len(wanted))
    if rows.metric == "sample_f1":
        values = multilabel_f1(rows.labels, predicted)
    else:
        values = np.array([float(want == give) for want, give in zip(rows.labels, predicted, strict=True)])
    low, high = interval(values, groups=rows.groups)
    score = float(values.mean())
    return MeasuredScore(score, min(low, score), max(high, score), len(values))


def _folds(rows: LabelledRows) -> NDArray[np.int64] | None:
    """Return the fold of each row [N], stratified by label, a group in one fold; None if there are too few rows."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = ["\n".join(sorted(row)) for row in rows.labels]
    groups = rows.groups or list(map(str, range(len(labels))))
    counts = Counter(label for row in rows.labels for label in row)
    if sum(count >= FOLDS for count in counts.values()) < 2 or len(set(groups)) < FOLDS:
        return None
    frequent = Counter(labels)
    most = max(frequent, key=lambda label: frequent[label])
    strata = [label if frequent[label] >= FOLDS else most for label in labels]  # a class needs a row for each fold
    if frequent[most] < FOLDS:
        strata = [""] * len(labels)
    folds = np.full(len(labels), -1)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(labels)), strata, groups)):
        folds[test] = fold
    return folds
