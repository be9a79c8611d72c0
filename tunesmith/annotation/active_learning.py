"""Active learning: the order in which rows are labelled, by coverage and by uncertainty of a model.

N rows, D features. The first rows are the ones nearest to cluster centers. After that, half of each round comes from
clusters without a label (coverage: Hacohen et al. 2022, "Active Learning on a Budget", arXiv 2202.02794) and half
from the rows with the smallest margin between the two most likely labels, diversified by k-means weighted with that
margin (Zhdanov 2019, "Diverse mini-batch Active Learning", arXiv 1901.05954).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.text.words import words_of

Vectors = NDArray[np.float32]
Indexes = NDArray[np.int64]

FIRST = 20  # labelled rows before a model is trained
ROUND = 10  # rows per round
AMONG = 10  # a round chooses among AMONG * ROUND of the most uncertain rows
STRENGTH = 10.0  # scikit-learn's C for unit-length features
SAMPLE = 4000  # rows that are clustered at most
MOST_CLUSTERS = 400
WIDTH = 128  # dimensions of the TF-IDF vectors after SVD
MOST_WORDS = 50_000  # vocabulary of TF-IDF


def tfidf_vectors(texts: Sequence[str]) -> Vectors:
    """Return unit-length vectors of texts: TF-IDF of word 1-2-grams reduced by truncated SVD, [N, D <= WIDTH]."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        ngram_range=(1, 2), tokenizer=words_of, token_pattern=None, sublinear_tf=True, max_features=MOST_WORDS
    )
    try:
        counts = words.fit_transform(texts)
    except ValueError:  # no text contains a word
        return np.ones((len(texts), 1), dtype=np.float32)
    width = min(WIDTH, counts.shape[1] - 1, len(texts) - 1)
    if width < 1:
        return np.ones((len(texts), 1), dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):  # equal texts have no variance to explain
        vectors = TruncatedSVD(width, random_state=0).fit_transform(counts)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), dtype=np.float32)


def rank(vectors: Vectors, labels: Mapping[int, str], *, seed: int) -> list[int]:
    """Rank all unlabelled rows, the most informative first.

    The vectors of all rows, [N, D], have unit length; labels known so far are by row index.

    Returns:
        Row indices.
    """
    open_rows = np.setdiff1d(np.arange(len(vectors)), np.fromiter(labels, dtype=np.int64, count=len(labels)))
    if not len(open_rows):
        return []
    work = _Work(vectors, labels, open_rows, np.random.default_rng([seed, len(labels)]))
    if len(labels) < FIRST or len(set(labels.values())) < 2:
        head = work.uncovered(max(ROUND, FIRST - len(labels)))
        return [*head, *work.rest(head)]
    doubt = work.doubt()
    covering = work.uncovered(ROUND // 2)
    doubted = work.spread(doubt, ROUND - len(covering), without=covering)
    head = [row for pair in zip(doubted, covering, strict=False) for row in pair]
    head += [row for row in (*doubted, *covering) if row not in head]
    return [*head, *work.rest(head, doubt)]


@dataclass(frozen=True, slots=True)
class _Work:
    """State of one ranking."""

    vectors: Vectors
    labels: Mapping[int, str]
    open_rows: Indexes
    chance: np.random.Generator

    def doubt(self) -> NDArray[np.float64]:
        """Return 1 - margin between the two most likely labels, -1 for labelled rows; [N]."""
        from sklearn.linear_model import LogisticRegression

        known = list(self.labels)
        model = LogisticRegression(C=STRENGTH, max_iter=300)
        model.fit(self.vectors[known], [self.labels[row] for row in known])
        likely = np.sort(model.predict_proba(self.vectors[self.open_rows]), axis=1)
        doubt = np.full(len(self.vectors), -1.0)
        doubt[self.open_rows] = 1 - (likely[:, -1] - likely[:, -2])
        return doubt

    def uncovered(self, count: int) -> list[int]:
        """Return at most `count` rows nearest to centers of clusters without a label, largest cluster first."""
        known = np.fromiter(self.labels, dtype=np.int64, count=len(self.labels))
        known = self._sample(known, MOST_CLUSTERS - count)
        sample = self._sample(self.open_rows, SAMPLE - len(known))
        rows = np.concatenate([known, sample])
        clusters, distances = self._clusters(rows, len(known) + count)
        taken = set(clusters[: len(known)].tolist())
        sizes = np.bincount(clusters)
        free = [cluster for cluster in np.argsort(-sizes, kind="stable").tolist() if cluster not in taken]
        centers = []
        for cluster in free[:count]:
            members = np.flatnonzero(clusters == cluster)
            if len(members):
                centers.append(int(rows[members[distances[members].argmin()]]))
        return centers

    def spread(self, doubt: NDArray[np.float64], count: int, *, without: Sequence[int]) -> list[int]:
        """Return at most `count` of the most uncertain rows, diversified by clustering, most uncertain first."""
        pool = np.setdiff1d(self.open_rows, np.array(without, dtype=np.int64))
        unsure = pool[np.argsort(-doubt[pool], kind="stable")[: AMONG * count]]
        if len(unsure) <= count:
            return [int(row) for row in unsure]
        clusters, distances = self._clusters(unsure, count, weights=doubt[unsure] + 1e-9)
        centers = []
        for cluster in np.unique(clusters):
            members = np.flatnonzero(clusters == cluster)
            centers.append(int(unsure[members[distances[members].argmin()]]))
        return sorted(centers, key=lambda row: (-doubt[row], row))

    def rest(self, head: Sequence[int], doubt: NDArray[np.float64] | None = None) -> list[int]:
        """Return the remaining unlabelled rows, most uncertain first, or in random order without `doubt`."""
        left = np.setdiff1d(self.open_rows, np.array(head, dtype=np.int64))
        order = self.chance.permutation(len(left)) if doubt is None else np.argsort(-doubt[left], kind="stable")
        return [int(row) for row in left[order]]

    def _sample(self, rows: Indexes, most: int) -> Indexes:
        return rows if len(rows) <= most else np.sort(self.chance.choice(rows, most, replace=False))

    def _clusters(
        self, rows: Indexes, count: int, weights: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the cluster of each row and its squared distance to the center."""
        from sklearn.cluster import KMeans

        points = self.vectors[rows]
        distinct = len(np.unique(points, axis=0)) if len(points) <= 4 * count else len(points)
        means = KMeans(min(count, distinct), n_init=1, max_iter=15, random_state=int(self.chance.integers(2**31)))
        clusters = means.fit_predict(points, sample_weight=weights).astype(np.int64)
        distances = ((points - means.cluster_centers_[clusters]) ** 2).sum(axis=1)
        return clusters, distances.astype(np.float64)


Job = Callable[[], None]


def in_background(job: Job) -> None:
    """Run the job in a daemon thread, which does not delay the end of the program."""
    threading.Thread(target=job, name="label order", daemon=True).start()


class LabelQueue:
    """The current ranking of all rows, updated in the background after new labels.

    Args:
        vectors: unit-length vectors of all rows, [N, D].
        seed: of the clustering and sampling.
        start: runs a job; tests pass one that collects jobs.
    """

    def __init__(self, vectors: Vectors, *, seed: int = 0, start: Callable[[Job], None] = in_background) -> None:
        self._vectors, self._seed, self._start = vectors, seed, start
        self._lock = threading.Lock()
        self._labels: dict[int, str] = {}
        self._ranking: list[int] | None = None
        self._busy = False
        self._stale = False

    def ranking(self) -> list[int]:
        """Return the unlabelled rows, the most informative first. Only the first call computes it and waits."""
        with self._lock:
            if self._ranking is None:
                self._ranking = rank(self._vectors, self._labels, seed=self._seed)
                self._stale = False
            return self._ranking

    def learn(self, labels: Mapping[int, str]) -> None:
        """Replace the labels by these, and start a new ranking in the background if they differ."""
        with self._lock:
            if labels == self._labels:
                return
            self._labels, self._stale = dict(labels), True
            if self._busy or self._ranking is None:
                return
            self._busy = True
        self._start(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._busy, labels, self._stale = self._stale, self._labels, False
                if not self._busy:
                    return
            ranking: list[int] | None = None
            try:
                ranking = rank(self._vectors, labels, seed=self._seed)
            finally:  # after an error, which the thread reports, the previous ranking remains in use
                with self._lock:
                    self._ranking = ranking or self._ranking
                    self._busy = ranking is not None
