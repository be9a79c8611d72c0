"""Which row to ask for next: the ones the model is unsure of, and the ones that nothing labelled resembles.

N rows, D features, S rows of a sample. The first rows are the middles of clusters. After that each round takes half its
rows from clusters without a label (coverage: Hacohen et al. 2022, "Active Learning on a Budget", arXiv 2202.02794)
and half from the rows with the smallest margin between the two likeliest labels, spread by k-means weighted with
that margin (Zhdanov 2019, "Diverse mini-batch Active Learning", arXiv 1901.05954).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.words import words_of

Vectors = NDArray[np.float32]
Indexes = NDArray[np.int64]

# Rows labelled before the model is asked, and rows of one round.
FIRST, ROUND = 20, 10
# A round picks among this many times its size of the unsurest rows.
AMONG = 10
# scikit-learn's C for unit-length features; clusters are looked for among at most SAMPLE rows.
STRENGTH, SAMPLE = 10.0, 4000
MOST_CLUSTERS = 400
# Width of TF-IDF vectors, and words that are kept.
WIDTH, MOST_WORDS = 128, 50_000


def tfidf_vectors(texts: Sequence[str]) -> Vectors:
    """[N, D]: words and pairs of words, weighed by TF-IDF and brought to at most 128 numbers by SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        ngram_range=(1, 2), tokenizer=words_of, token_pattern=None, sublinear_tf=True, max_features=MOST_WORDS
    )
    try:
        counts = words.fit_transform(texts)
    except ValueError:  # no text holds a word
        return np.ones((len(texts), 1), dtype=np.float32)
    width = min(WIDTH, counts.shape[1] - 1, len(texts) - 1)
    if width < 1:
        return np.ones((len(texts), 1), dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):  # texts that are all alike have no variance to explain
        found = TruncatedSVD(width, random_state=0).fit_transform(counts)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths == 0, 1, lengths), dtype=np.float32)  # zeros stay what they are


def rank(vectors: Vectors, labels: Mapping[int, str], *, seed: int) -> list[int]:
    """Every row without a label, the one worth most first; `vectors` is [N, D] with rows of length 1."""
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
    """One ranking: all rows, the labels so far, the rows without one, and the source of chance."""

    vectors: Vectors
    labels: Mapping[int, str]
    open_rows: Indexes
    chance: np.random.Generator

    def doubt(self) -> NDArray[np.float64]:
        """[N]: 1 less the margin between the two likeliest labels; -1 for rows that have a label."""
        from sklearn.linear_model import LogisticRegression

        known = list(self.labels)
        model = LogisticRegression(C=STRENGTH, max_iter=300)
        model.fit(self.vectors[known], [self.labels[row] for row in known])
        likely = np.sort(model.predict_proba(self.vectors[self.open_rows]), axis=1)
        found = np.full(len(self.vectors), -1.0)
        found[self.open_rows] = 1 - (likely[:, -1] - likely[:, -2])
        return found

    def uncovered(self, count: int) -> list[int]:
        """At most `count` rows, each the middle of a cluster without a label, from the largest cluster on."""
        known = np.fromiter(self.labels, dtype=np.int64, count=len(self.labels))
        known = self._sample(known, MOST_CLUSTERS - count)
        sample = self._sample(self.open_rows, SAMPLE - len(known))
        rows = np.concatenate([known, sample])
        clusters, distances = self._clusters(rows, len(known) + count)
        taken = set(clusters[: len(known)].tolist())
        sizes = np.bincount(clusters)
        free = [cluster for cluster in np.argsort(-sizes, kind="stable").tolist() if cluster not in taken]
        found = []
        for cluster in free[:count]:
            members = np.flatnonzero(clusters == cluster)
            if len(members):
                found.append(int(rows[members[distances[members].argmin()]]))
        return found

    def spread(self, doubt: NDArray[np.float64], count: int, *, without: Sequence[int]) -> list[int]:
        """At most `count` of the unsurest rows that are unlike each other, the unsurest first."""
        pool = np.setdiff1d(self.open_rows, np.array(without, dtype=np.int64))
        unsure = pool[np.argsort(-doubt[pool], kind="stable")[: AMONG * count]]
        if len(unsure) <= count:
            return [int(row) for row in unsure]
        clusters, distances = self._clusters(unsure, count, weights=doubt[unsure] + 1e-9)
        found = []
        for cluster in np.unique(clusters):
            members = np.flatnonzero(clusters == cluster)
            found.append(int(unsure[members[distances[members].argmin()]]))
        return sorted(found, key=lambda row: (-doubt[row], row))

    def rest(self, head: Sequence[int], doubt: NDArray[np.float64] | None = None) -> list[int]:
        """The other rows without a label, the unsurest first, or in an order drawn once."""
        left = np.setdiff1d(self.open_rows, np.array(head, dtype=np.int64))
        order = self.chance.permutation(len(left)) if doubt is None else np.argsort(-doubt[left], kind="stable")
        return [int(row) for row in left[order]]

    def _sample(self, rows: Indexes, most: int) -> Indexes:
        return rows if len(rows) <= most else np.sort(self.chance.choice(rows, most, replace=False))

    def _clusters(
        self, rows: Indexes, count: int, weights: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each of the rows its cluster and the squared distance to its middle."""
        from sklearn.cluster import KMeans

        points = self.vectors[rows]
        different = len(np.unique(points, axis=0)) if len(points) <= 4 * count else len(points)
        means = KMeans(min(count, different), n_init=1, max_iter=15, random_state=int(self.chance.integers(2**31)))
        clusters = means.fit_predict(points, sample_weight=weights).astype(np.int64)
        distances = ((points - means.cluster_centers_[clusters]) ** 2).sum(axis=1)
        return clusters, distances.astype(np.float64)


Job = Callable[[], None]


def in_background(job: Job) -> None:
    """Run the job beside the others; it does not keep the program from ending."""
    threading.Thread(target=job, name="label order", daemon=True).start()


class Order:
    """The current ranking of all rows; new labels make a new one beside the page, which never waits for it."""

    def __init__(self, vectors: Vectors, *, seed: int = 0, start: Callable[[Job], None] = in_background) -> None:
        self._vectors, self._seed, self._start = vectors, seed, start
        self._lock = threading.Lock()
        self._labels: dict[int, str] = {}
        self._ranking: list[int] | None = None
        self._busy = False
        self._stale = False

    def ranking(self) -> list[int]:
        """The rows, the one worth most first; only the very first call waits."""
        with self._lock:
            if self._ranking is None:
                self._ranking, self._stale = rank(self._vectors, self._labels, seed=self._seed), False
            return self._ranking

    def learn(self, labels: Mapping[int, str]) -> None:
        """Take these labels for all there are, and rank anew when there is time."""
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
            found: list[int] | None = None
            try:
                found = rank(self._vectors, labels, seed=self._seed)
            finally:  # whatever went wrong is told by the thread; the old ranking goes on serving
                with self._lock:
                    self._ranking, self._busy = found or self._ranking, found is not None
