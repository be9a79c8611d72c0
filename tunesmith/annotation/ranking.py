"""Ranking of models by the preferences of raters, and win rates controlled for answer length.

M models, G games, R resamples. A game is one vote between answers of two models; a tie is half a win for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tunesmith.annotation.items import FIRST, SECOND, TIE, Item
from tunesmith.annotation.vote_store import Event
from tunesmith.metrics.resampling import Clusters, percentiles
from tunesmith.metrics.significance import interval

FloatArray = NDArray[np.float64]

RESAMPLES = 1000
# Newton's method converges to this step size in about ten steps; STEPS is only a safety limit.
STILL = 1e-9
STEPS = 100
FEWEST_PROMPTS = 2  # for an interval
SCORES = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}


class Ranked(BaseModel):
    """One model in the ranking."""

    model: str
    strength: float  # probability of beating an average model (Bradley-Terry)
    ci95: tuple[float, float] | None
    votes: int


class Duel(BaseModel):
    """Win rate between two models; the interval resamples whole prompts."""

    models: tuple[str, str]
    votes: int
    prompts: int
    won: float  # win rate of the first model, ties counting half
    ci95: tuple[float, float] | None
    same_length: float | None  # win rate at equal answer length, see `at_same_length`


@dataclass(frozen=True, slots=True)
class Game:
    """A vote between answers of two models, which are sorted by name."""

    models: tuple[str, str]
    prompt: str
    score: float  # 1 if the first model won, 0.5 for a tie, else 0
    longer: float  # log length of the first answer minus that of the second, in characters + 1


def games(items: Mapping[str, Item], votes: Iterable[Event]) -> list[Game]:
    """Return the votes between answers of two models, in the order in which they were cast.

    Control items and answers written by raters are skipped.
    """
    cast = list(votes)
    played: list[Game] = []
    people = {vote.rater for vote in cast}
    for vote in cast:
        item = items.get(vote.item)
        label = str(vote.body["label"])
        if item is None or item.gold or label not in SCORES or len(set(item.by)) < 2 or people & set(item.by):
            continue
        first, second = (np.log(len(answer) + 1.0) for answer in item.answers)
        score = SCORES[label]
        longer = float(first - second)
        models = (item.by[0], item.by[1])
        if models[0] > models[1]:
            score, longer, models = 1 - score, -longer, (models[1], models[0])
        played.append(Game(models, "\x1e".join(message.said for message in item.messages), score, longer))
    return played


def rank(played: Sequence[Game], *, seed: int = 0) -> list[Ranked]:
    """Rank models by the Bradley-Terry model, the strongest first; empty where the games do not connect all models.

    The seed is that of the bootstrap over prompts.
    """
    names = sorted({name for game in played for name in game.models})
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([[index[name] for name in game.models] for game in played], dtype=np.intp).reshape(-1, 2)
    scores = np.array([game.score for game in played])
    if len(names) < 2 or not _connected(pairs, len(names)):
        return []
    clusters = Clusters.of(len(played), [game.prompt for game in played])
    strengths = _strengths(_wins(pairs, scores, len(names))[None])[0]
    ci: FloatArray | None = None
    if clusters.count >= FEWEST_PROMPTS:
        row_sets = clusters.drawn_rows(np.random.default_rng(seed), RESAMPLES)
        resampled = _strengths(np.stack([_wins(pairs[rows], scores[rows], len(names)) for rows in row_sets]))
        if np.ptp(resampled, axis=0).max() > 1e-9:  # equal resamples would claim certainty
            ci = np.clip([percentiles(resampled[:, i], clusters.count) for i in range(len(names))], 0, 1)
    ranked = [
        Ranked(
            model=name,
            strength=float(strengths[i]),
            ci95=None if ci is None else (float(ci[i, 0]), float(ci[i, 1])),
            votes=int((pairs == i).sum()),
        )
        for name, i in index.items()
    ]
    return sorted(ranked, key=lambda model: -model.strength)


def duels(played: Sequence[Game]) -> list[Duel]:
    """Return the win rates of all pairs of models with a game, sorted by name."""
    results = []
    for models in sorted({game.models for game in played}):
        own_games = [game for game in played if game.models == models]
        prompts = [game.prompt for game in own_games]
        count = len(set(prompts))
        scores = np.array([game.score for game in own_games])
        duel = Duel(
            models=models,
            votes=len(own_games),
            prompts=count,
            won=float(scores.mean()),
            ci95=interval(scores, groups=prompts) if count >= FEWEST_PROMPTS else None,
            same_length=at_same_length(scores, np.array([game.longer for game in own_games])),
        )
        results.append(duel)
    return results


def at_same_length(scores: FloatArray, longer: FloatArray) -> float | None:
    """Return the win rate predicted for answers of equal length.

    Logistic regression of the score on the difference of log lengths. A weak ridge penalty on the slope keeps it
    finite for few games.

    Args:
        scores: 1, 0.5 or 0 per game, [G].
        longer: difference of log lengths per game, [G].

    Returns:
        The win rate, or None where the lengths never differ.

    Source: Dubois et al. 2024, arXiv 2404.04475 (length-controlled AlpacaEval).
    """
    deviation = float(longer.std())
    if deviation < 1e-9:
        return None
    x = np.stack([np.ones(len(longer)), longer / deviation], axis=1)
    weights = np.zeros(2)
    ridge = np.diag([1e-6, 1.0])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (scores - chance) - ridge @ weights
        hessian = (x * (chance * (1 - chance))[:, None]).T @ x + ridge
        step = np.linalg.solve(hessian, gradient)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return float(1 / (1 + np.exp(-weights[0])))


def _wins(pairs: NDArray[np.intp], scores: FloatArray, models: int) -> FloatArray:
    """Count wins of row model over column model, [M, M], from model indices [G, 2] and scores [G]."""
    wins = np.zeros((models, models))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), scores)
    np.add.at(wins, (pairs[:, 1], pairs[:, 0]), 1 - scores)
    return wins


def _strengths(wins: FloatArray) -> FloatArray:
    """Fit Bradley-Terry strengths, [R, M], to win counts, [R, M, M]: probabilities of beating an average model.

    Newton's method on the likelihood, which is log-concave (Hunter 2004, "MM algorithms for generalized Bradley-Terry
    models"). Half a win for both models of each pair that played keeps the strengths finite.
    """
    models = wins.shape[1]
    met = ((wins + wins.transpose(0, 2, 1)).sum(axis=0) > 0).astype(np.float64)
    wins = wins + met / 2
    played = wins + wins.transpose(0, 2, 1)
    strength = np.zeros(wins.shape[:2])  # logarithms, 0 for the average model
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))
        gradient = (wins - played * chance).sum(axis=2)
        curvature = played * chance * (1 - chance)
        # A common shift of all strengths leaves the likelihood unchanged; adding 1 / M to every entry fixes the mean.
        hessian = np.eye(models) * curvature.sum(axis=2)[:, :, None] - curvature + 1 / models
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        strength = strength + np.clip(step, -2, 2)
        strength = strength - strength.mean(axis=1, keepdims=True)
        if np.abs(step).max() < STILL:
            break
    return np.asarray(1 / (1 + np.exp(-strength)), dtype=np.float64)


def _connected(pairs: NDArray[np.intp], models: int) -> bool:
    """Return whether the games connect all models, directly or through others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(models, models))
    return int(connected_components(graph, directed=False)[0]) == 1
