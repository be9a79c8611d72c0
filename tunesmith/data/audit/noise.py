"""Labels that a model which never saw the row is sure are wrong.

Out-of-fold disagreement (confident learning's first half: Northcutt et al. 2021, arXiv 1911.00068) of two cheap models
that err differently, a logistic regression and a complement naive Bayes (Rennie et al. 2003) over TF-IDF of words and
pairs of words; their geometric mean decides. cleanlab's own choice of rows was no better: bench/AUDIT.md.
Where a language model is at hand, a regression over what it makes of each text is a third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from tunesmith.data.audit.ask import Read
from tunesmith.data.audit.pool import in_order

Probabilities = NDArray[np.float64]

FOLDS = 5
LEAST = 1e-4  # no model is surer than this
DOUBTED = 0.35  # the given label's probability over the likeliest one's, below which the label is doubted
DOUBTED_READ = 0.5  # the same where a language model has read the rows too: its judgement is nearer to even
MOST_READ = 20_000  # rows that a language model reads; of more it reads none
FEWEST, FEWEST_EACH = 100, 5
MOST_LABELS = 200
FITTED = 20_000  # rows that the models learn from; all rows are judged
CHARACTERS = 4000
BATCH = 5000
STEPS = 60_000  # of the logistic regression; few rows are gone over more often


@dataclass(frozen=True, slots=True)
class Judge:
    """Two linear models of one fold: (V, K) weights and (K) biases of the regression, (V, K) of naive Bayes."""

    line: NDArray[np.float32]
    bias: NDArray[np.float32]
    bayes: NDArray[np.float32]
    classes: NDArray[np.int64]

    def probabilities(self, features: Any, labels: int) -> Probabilities:
        """(n, labels): the geometric mean of both models' probabilities, those of unknown labels next to zero."""
        sides = np.full((2, features.shape[0], labels), LEAST)
        sides[0][:, self.classes] += normalized(expit(features @ self.line + self.bias))
        sides[1][:, self.classes] += softmax(features @ self.bayes, axis=1)
        return normalized(np.sqrt(sides[0] * sides[1]))


@dataclass(frozen=True, slots=True)
class Judges:
    """Models by fold: none learned from the rows of its own fold."""

    vectors: Any
    models: list[Judge]
    labels: list[str]

    def probabilities(self, texts: Sequence[str], fold: int) -> Probabilities:
        """(n, K) of the labels, by the models that learned from all other folds."""
        features = self.vectors.transform([text[:CHARACTERS] for text in texts])
        return self.models[fold].probabilities(features, len(self.labels))


@dataclass(frozen=True, slots=True)
class Doubts:
    """`doubted`: place among the rows given -> (likelier label, ratio); `right`: label -> share judged as labelled."""

    doubted: dict[int, tuple[str, float]]
    right: dict[str, float]
    judges: Judges
    folds: NDArray[np.int64]


def doubts(
    texts: Callable[[int], str],
    labels: Sequence[str],
    keys: NDArray[np.uint64],
    *,
    workers: int = 1,
    read: Read | None = None,
) -> Doubts | None:
    """Which rows have a label that the models doubt; None where there is too little to learn from.

    `texts(i)` is the text of row i; rows of equal `keys` (the same text) share a fold; `read` is what a language model
    makes of texts.
    """
    counts = Counter(labels)
    usable = sorted(label for label, count in counts.items() if count >= FEWEST_EACH)
    if len(labels) < FEWEST or not 2 <= len(usable) <= MOST_LABELS:
        return None
    number = {label: i for i, label in enumerate(usable)}
    rows = np.array([i for i, label in enumerate(labels) if label in number], np.int64)
    ids = np.array([number[labels[i]] for i in rows], np.int64)
    folds = (keys % np.uint64(FOLDS)).astype(np.int64)
    judges = _fit(texts, rows, ids, folds[rows], usable)
    if judges is None:
        return None
    found: dict[int, tuple[str, float]] = {}
    right: Counter[int] = Counter()
    parts = list(_batches(folds[rows]))
    pieces = (([texts(int(i)) for i in rows[part]], fold) for fold, part in parts)
    judged = in_order(_judge, judges, pieces, workers=workers)
    states = None if read is None or len(rows) > MOST_READ else read([texts(int(i)) for i in rows], usable)
    third = None if states is None else _by_states(states, ids, folds[rows])
    bound = DOUBTED if third is None else DOUBTED_READ
    for (_, part), words in zip(parts, judged, strict=True):
        chances = words if third is None else normalized(np.sqrt(words * third[part]))
        best = chances.argmax(axis=1)
        right.update(ids[part][best == ids[part]].tolist())
        ratio = chances[np.arange(len(part)), ids[part]] / chances.max(axis=1)
        found |= {int(rows[part[i]]): (usable[best[i]], float(ratio[i])) for i in np.flatnonzero(ratio < bound)}
    return Doubts(found, {label: right[i] / counts[label] for label, i in number.items()}, judges, folds)


def _by_states(states: NDArray[np.float32], ids: NDArray[np.int64], folds: NDArray[np.int64]) -> Probabilities:
    """(n, K): out-of-fold probabilities of a logistic regression over states (n, D)."""
    from sklearn.linear_model import LogisticRegression

    spread = (states - states.mean(axis=0)) / (states.std(axis=0) + 1e-6) / np.sqrt(states.shape[1])
    found = np.full((len(ids), ids.max() + 1), LEAST)
    for fold in range(FOLDS):
        mine = folds == fold
        model = LogisticRegression(C=3, max_iter=1000).fit(spread[~mine], ids[~mine])
        found[np.ix_(mine, model.classes_)] += model.predict_proba(spread[mine])
    return normalized(found)


def _judge(judges: Judges, piece: tuple[list[str], int]) -> NDArray[np.float32]:
    return judges.probabilities(*piece).astype(np.float32)


def _batches(folds: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for fold in range(FOLDS):
        mine = np.flatnonzero(folds == fold)
        for start in range(0, len(mine), BATCH):
            yield fold, mine[start : start + BATCH]


def _fit(
    texts: Callable[[int], str],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    folds: NDArray[np.int64],
    labels: list[str],
) -> Judges | None:
    """The judges, fitted on at most FITTED of the rows; None where a fold leaves one label, or no words are shared."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.naive_bayes import ComplementNB

    taken = np.arange(len(rows))
    if len(rows) > FITTED:
        taken = np.sort(np.random.default_rng(0).choice(len(rows), FITTED, replace=False))
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=50_000, dtype=np.float32)
    if any(len(np.unique(ids[taken][folds[taken] != fold])) < 2 for fold in range(FOLDS)):
        return None
    try:
        features = vectors.fit_transform(texts(int(i))[:CHARACTERS] for i in rows[taken])
    except ValueError:  # no word stands in two rows: nothing that one row could tell of another
        return None
    models = []
    for fold in range(FOLDS):
        others = np.flatnonzero(folds[taken] != fold)
        wanted = ids[taken][others]
        passes = max(3, min(15, STEPS // len(others)))
        line = SGDClassifier(loss="log_loss", alpha=1e-4, max_iter=passes, tol=None, random_state=0)
        models.append(
            _judge_of(line.fit(features[others], wanted), ComplementNB(alpha=0.3).fit(features[others], wanted))
        )
    return Judges(vectors, models, labels)


def _judge_of(line: Any, bayes: Any) -> Judge:
    """What of two fitted models is needed to ask them, in half the memory."""
    weights, bias = line.coef_, line.intercept_
    if len(line.classes_) == 2:  # scikit-learn keeps one line between two labels
        weights, bias = np.vstack([-weights, weights]), np.concatenate([-bias, bias])
    sides = [np.ascontiguousarray(side.T, np.float32) for side in (weights, bayes.feature_log_prob_)]
    return Judge(sides[0], bias.astype(np.float32), sides[1], line.classes_)


def normalized(values: Probabilities) -> Probabilities:
    """Each row divided by its sum."""
    return np.asarray(values / values.sum(axis=1, keepdims=True).clip(1e-12))
