"""How often a score agrees with people, and what it has to do with length. N examples, D features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.evaluation.metrics import RowStatistic

Floats = NDArray[np.float64]

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)
FOLDS = 5


def wins(scores: ArrayLike, *, tie: float = 0.0) -> Floats:
    """[N, 2] -> [N]: 1 where the chosen answer, which stands first, scores higher, `tie` where both score the same."""
    first, second = np.asarray(scores, dtype=np.float64).reshape(-1, 2).T
    ahead: Floats = np.where(first == second, tie, first > second).astype(np.float64)
    return ahead


def auc_pair(base: ArrayLike, tuned: ArrayLike, good: ArrayLike) -> RowStatistic:
    """From row numbers (repeats allowed) to the AUC of base and of tuned on them; a coin's where one side is empty.

    Good answers are no rows of their own: all of their shares hang on the same bad ones.
    """
    sides = [np.unique(np.asarray(side, dtype=np.float64), return_inverse=True)[1] for side in (base, tuned)]
    liked = np.asarray(good, dtype=bool)

    def statistic(rows: NDArray[np.intp]) -> tuple[float, float]:
        times = np.bincount(rows, minlength=len(liked))
        pairs = float(times[liked].sum() * times[~liked].sum())
        if not pairs:
            return 0.5, 0.5
        first, second = (_won_over(side, times * liked, times * ~liked) / pairs for side in sides)
        return first, second

    return statistic


def _won_over(ranks: NDArray[np.intp], good: NDArray[np.intp], bad: NDArray[np.intp]) -> float:
    """In how many pairs of a good and a bad answer the good one stands higher, ties by half; (N,) ranks and counts."""
    liked, other = np.bincount(ranks, weights=good), np.bincount(ranks, weights=bad)
    return float(liked @ (np.cumsum(other) - other / 2))


def length_bias(scores: ArrayLike, lengths: ArrayLike) -> float:
    """Correlation, within [N, 2] pairs, of the difference in score with the difference in length; 0 without any."""
    score, length = (np.diff(np.asarray(one, dtype=np.float64).reshape(-1, 2))[:, 0] for one in (scores, lengths))
    if len(score) < 2 or not score.std() or not length.std():
        return 0.0
    return float(np.corrcoef(score, length)[0, 1])


def difference_probe(states: ArrayLike, *, groups: Sequence[str] | None = None) -> Floats:
    """[N, 2, D] states of chosen and other answers -> [D], the direction along which the chosen ones lie higher.

    Logistic regression on standardised differences, each pair in both directions; how far it may follow the rows is
    picked by cross-validation in which a group stays in one part.
    """
    pairs = np.asarray(states, dtype=np.float64)
    differences = pairs[:, 0] - pairs[:, 1]
    spread = np.sqrt((differences**2).mean(axis=0))
    spread[spread == 0] = 1
    features = differences / spread
    parts = _parts(len(features), groups)
    won = {strength: _won(features, parts, strength) for strength in STRENGTHS}
    found: Floats = _direction(features, max(STRENGTHS, key=lambda strength: won[strength])) / spread
    return found


def _parts(rows: int, groups: Sequence[str] | None) -> NDArray[np.int64]:
    """[N]: each row's part."""
    names = [str(i) for i in range(rows)] if groups is None else groups
    place = {name: i % FOLDS for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])


def _won(features: Floats, parts: NDArray[np.int64], strength: float) -> int:
    """Pairs told right by a fit that has not seen them."""
    return sum(
        int((features[parts == part] @ _direction(features[parts != part], strength) > 0).sum())
        for part in set(parts.tolist())
        if (parts != part).any()
    )


def _direction(features: Floats, strength: float) -> Floats:
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([features, -features])
    sides = np.repeat([1, 0], len(features))
    fitted = LogisticRegression(C=strength, fit_intercept=False, max_iter=2000).fit(both, sides)
    found: Floats = fitted.coef_[0]
    return found
