"""Label noise: labels that models not trained on the row consider wrong.

Out-of-fold disagreement (the first half of confident learning: Northcutt et al. 2021, arXiv 1911.00068) of two fast
models with different errors: logistic regression and complement naive Bayes (Rennie et al. 2003) over TF-IDF of words
and bigrams, combined by the geometric mean. cleanlab's own selection of rows was no better: bench/AUDIT.md. With a
language model, a logistic regression over its states is the third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from tunesmith.data.audit.options import Read
from tunesmith.data.parallel import in_order

Probabilities = NDArray[np.float64]

FOLDS = 5
LEAST = 1e-4  # minimum probability
DOUBTED = 0.35  # ratio of the given label's probability to the highest one below which the label is doubted
DOUBTED_READ = 0.5  # the same with a language model, whose probabilities are less extreme
MOST_READ = 20_000  # rows up to which a language model is used
MIN_ROWS = 100  # rows
MIN_ROWS_PER_LABEL = 5  # rows per label
MOST_LABELS = 200
FITTED = 20_000  # rows that the models are fitted on; all rows are checked
CHARACTERS = 4000
BATCH = 5000
STEPS = 60_000  # of the logistic regression; fewer rows get more epochs


@dataclass(frozen=True, slots=True)
class Judge:
    """Two linear models of one fold: regression weights [V, K] and biases [K], naive Bayes weights [V, K]."""

    line: NDArray[np.float32]
    bias: NDArray[np.float32]
    bayes: NDArray[np.float32]
    classes: NDArray[np.int64]

    def probabilities(self, features: Any, labels: int) -> Probabilities:
        """Return the geometric mean of both models' probabilities, [N, labels]; near 0 for labels not in the fold."""
        both = np.full((2, features.shape[0], labels), LEAST)
        both[0][:, self.classes] += normalized(expit(features @ self.line + self.bias))
        both[1][:, self.classes] += softmax(features @ self.bayes, axis=1)
        return normalized(np.sqrt(both[0] * both[1]))


@dataclass(frozen=True, slots=True)
class Judges:
    """The models of all folds; none was fitted on the rows of its fold."""

    vectors: Any
    models: list[Judge]
    labels: list[str]

    def probabilities(self, texts: Sequence[str], fold: int) -> Probabilities:
        """Return label probabilities, [N, K], from the model fitted on all other folds."""
        features = self.vectors.transform([text[:CHARACTERS] for text in texts])
        return self.models[fold].probabilities(features, len(self.labels))


@dataclass(frozen=True, slots=True)
class Doubts:
    """Result of the check."""

    doubted: dict[int, tuple[str, float]]  # index of a row -> (more likely label, probability ratio)
    right: dict[str, float]  # label -> share of its rows predicted as labelled
    judges: Judges  # the fitted models
    folds: NDArray[np.int64]  # fold of each row, [N]


def doubts(
    texts: Callable[[int], str],
    labels: Sequence[str],
    keys: NDArray[np.uint64],
    *,
    workers: int = 1,
    read: Read | None = None,
) -> Doubts | None:
    """Find rows whose label the models doubt; None if there is too little data to fit them.

    Equal texts, by their hashes `keys` [N], share a fold. `read` returns final states of a language model for texts.
    """
    counts = Counter(labels)
    usable = sorted(label for label, count in counts.items() if count >= MIN_ROWS_PER_LABEL)
    if len(labels) < MIN_ROWS or not 2 <= len(usable) <= MOST_LABELS:
        return None
    label_ids = {label: i for i, label in enumerate(usable)}
    rows = np.array([i for i, label in enumerate(labels) if label in label_ids], np.int64)
    ids = np.array([label_ids[labels[i]] for i in rows], np.int64)
    folds = (keys % np.uint64(FOLDS)).astype(np.int64)
    judges = _fit(texts, rows, ids, folds=folds[rows], labels=usable)
    if judges is None:
        return None
    doubted: dict[int, tuple[str, float]] = {}
    right: Counter[int] = Counter()
    parts: list[tuple[int, NDArray[np.int64]]] = []
    for fold in range(FOLDS):
        in_fold = np.flatnonzero(folds[rows] == fold)
        parts += [(fold, in_fold[start : start + BATCH]) for start in range(0, len(in_fold), BATCH)]
    pieces = (([texts(int(i)) for i in rows[part]], fold) for fold, part in parts)
    judged = in_order(_judge, judges, pieces, workers=workers)
    states = None if read is None or len(rows) > MOST_READ else read([texts(int(i)) for i in rows], usable)
    from_states = None if states is None else _from_states(states, ids, folds[rows])
    bound = DOUBTED if from_states is None else DOUBTED_READ
    for (_, part), from_words in zip(parts, judged, strict=True):
        mean = from_words if from_states is None else normalized(np.sqrt(from_words * from_states[part]))
        best = mean.argmax(axis=1)
        right.update(ids[part][best == ids[part]].tolist())
        ratio = mean[np.arange(len(part)), ids[part]] / mean.max(axis=1)
        doubted |= {int(rows[part[i]]): (usable[best[i]], float(ratio[i])) for i in np.flatnonzero(ratio < bound)}
    return Doubts(doubted, {label: right[i] / counts[label] for label, i in label_ids.items()}, judges, folds)


def _from_states(states: NDArray[np.float32], ids: NDArray[np.int64], folds: NDArray[np.int64]) -> Probabilities:
    """Return out-of-fold probabilities, [N, K], of a logistic regression over states [N, D]."""
    from sklearn.linear_model import LogisticRegression

    features = (states - states.mean(axis=0)) / (states.std(axis=0) + 1e-6) / np.sqrt(states.shape[1])
    probabilities = np.full((len(ids), ids.max() + 1), LEAST)
    for fold in range(FOLDS):
        in_fold = folds == fold
        model = LogisticRegression(C=3, max_iter=1000).fit(features[~in_fold], ids[~in_fold])
        probabilities[np.ix_(in_fold, model.classes_)] += model.predict_proba(features[in_fold])
    return normalized(probabilities)


def _judge(judges: Judges, piece: tuple[list[str], int]) -> NDArray[np.float32]:
    return judges.probabilities(*piece).astype(np.float32)


def _fit(
    texts: Callable[[int], str],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    *,
    folds: NDArray[np.int64],
    labels: list[str],
) -> Judges | None:
    """Fit the models on at most FITTED rows; None if a fold has one label only, or no word occurs in two rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.naive_bayes import ComplementNB

    sample = np.arange(len(rows))
    if len(rows) > FITTED:
        sample = np.sort(np.random.default_rng(0).choice(len(rows), FITTED, replace=False))
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000, dtype=np.float32)
    if any(len(np.unique(ids[sample][folds[sample] != fold])) < 2 for fold in range(FOLDS)):
        return None
    try:
        features = vectors.fit_transform(texts(int(i))[:CHARACTERS] for i in rows[sample])
    except ValueError:  # no word occurs in two rows, so there are no features
        return None
    models = []
    for fold in range(FOLDS):
        others = np.flatnonzero(folds[sample] != fold)
        targets = ids[sample][others]
        epochs = max(3, min(15, STEPS // len(others)))
        line = SGDClassifier(loss="log_loss", alpha=1e-4, max_iter=epochs, tol=None, random_state=0)
        line.fit(features[others], targets)
        bayes = ComplementNB(alpha=0.3).fit(features[others], targets)
        weights = line.coef_
        bias = line.intercept_
        if len(line.classes_) == 2:  # scikit-learn stores one weight vector for two labels
            weights = np.vstack([-weights, weights])
            bias = np.concatenate([-bias, bias])
        # float32, transposed: what prediction needs, in half the memory.
        models.append(
            Judge(
                np.ascontiguousarray(weights.T, np.float32),
                bias.astype(np.float32),
                np.ascontiguousarray(bayes.feature_log_prob_.T, np.float32),
                line.classes_,
            )
        )
    return Judges(vectors, models, labels)


def normalized(values: Probabilities) -> Probabilities:
    """Divide each row by its sum."""
    return np.asarray(values / values.sum(axis=1, keepdims=True).clip(1e-12))
