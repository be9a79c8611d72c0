"""Metrics of preference scores: pairs ranked correctly, AUC, correlation with length, and a probe.

N examples, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.metrics.scores import RowStatistic
from tunesmith.progress import track

FloatArray = NDArray[np.float64]

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
FOLDS = 5


def wins(scores: ArrayLike, *, tie: float = 0.0) -> FloatArray:
    """Return 1 where the chosen answer scores higher, `tie` where scores are equal, else 0; [N, 2] -> [N]."""
    first, second = np.asarray(scores, dtype=np.float64).reshape(-1, 2).T
    ahead: FloatArray = np.where(first == second, tie, first > second).astype(np.float64)
    return ahead


def auc_pair(base: ArrayLike, tuned: ArrayLike, good: ArrayLike) -> RowStatistic:
    """Return a function from row indices (repeats allowed) to the AUC of base and tuned scores on these rows.

    AUC is the share of (good, bad) pairs in which the good answer scores higher, ties counting half. It has no
    per-row value, since every good answer is compared with the same bad ones.

    Args:
        base: scores of the base model, [N].
        tuned: scores of the tuned model, [N].
        good: whether the answer is good, [N].

    Returns:
        The function; it returns 0.5 where the rows lack good or bad answers.
    """
    sides = [np.unique(np.asarray(side, dtype=np.float64), return_inverse=True)[1] for side in (base, tuned)]
    liked = np.asarray(good, dtype=bool)

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        counts = np.bincount(rows, minlength=len(liked))
        pairs = float(counts[liked].sum() * counts[~liked].sum())
        if not pairs:
            return 0.5, 0.5
        first, second = (_pairs_won(side, counts * liked, counts * ~liked) / pairs for side in sides)
        return first, second

    return statistic


def _pairs_won(ranks: NDArray[np.intp], good: NDArray[np.intp], bad: NDArray[np.intp]) -> float:
    """Count (good, bad) pairs in which the good answer ranks higher, ties by half (Mann-Whitney U); all [N]."""
    good_per_rank = np.bincount(ranks, weights=good)
    bad_per_rank = np.bincount(ranks, weights=bad)
    return float(good_per_rank @ (np.cumsum(bad_per_rank) - bad_per_rank / 2))


def length_bias(scores: ArrayLike, lengths: ArrayLike) -> float:
    """Return the Pearson correlation of score differences with length differences within pairs, both [N, 2].

    It is 0 where scores or lengths never differ.
    """
    score, length = (np.diff(np.asarray(pairs, dtype=np.float64).reshape(-1, 2))[:, 0] for pairs in (scores, lengths))
    if len(score) < 2 or not score.std() or not length.std():
        return 0.0
    return float(np.corrcoef(score, length)[0, 1])


def difference_probe(states: ArrayLike, *, groups: Sequence[str] | None = None) -> FloatArray:
    """Fit the direction along which chosen answers score higher than rejected ones.

    Logistic regression without intercept on standardised differences, each pair in both directions. Cross-validation
    by group chooses C.

    Args:
        states: hidden states of chosen and rejected answers, [N, 2, D].
        groups: group of each pair, [N]; None makes every pair its own group.

    Returns:
        [D], for unstandardised states.
    """
    pairs = np.asarray(states, dtype=np.float64)
    differences = pairs[:, 0] - pairs[:, 1]
    scale = np.sqrt((differences**2).mean(axis=0))
    scale[scale == 0] = 1
    features = differences / scale
    names = [str(i) for i in range(len(features))] if groups is None else groups
    fold_of = {name: i % FOLDS for i, name in enumerate(dict.fromkeys(names))}
    folds = np.array([fold_of[name] for name in names])
    tracked = track(STRENGTHS, "cross-validating the probe", unit="settings")
    correct = {strength: _correct_pairs(features, folds, strength) for strength in tracked}
    direction: FloatArray = _direction(features, max(STRENGTHS, key=lambda strength: correct[strength])) / scale
    return direction


def _correct_pairs(features: FloatArray, folds: NDArray[np.int64], strength: float) -> int:
    """Count the pairs that out-of-fold fits rank correctly."""
    return sum(
        int((features[folds == fold] @ _direction(features[folds != fold], strength) > 0).sum())
        for fold in track(set(folds.tolist()), "cross-validating", unit="folds")
        if (folds != fold).any()
    )


def _direction(features: FloatArray, strength: float) -> FloatArray:
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([features, -features])
    sides = np.repeat([1, 0], len(features))
    fitted = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000).fit(both, sides)
    direction: FloatArray = fitted.coef_[0]
    return direction
