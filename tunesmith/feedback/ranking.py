"""Models ranked by what people preferred, and by how much their length had to do with it.

M models, G games, R resamples. A game is one vote between the answers of two models; a tie is half a win for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tunesmith.evaluation.resampling import Clusters, percentiles
from tunesmith.evaluation.significance import interval
from tunesmith.feedback.items import FIRST, SECOND, TIE, Item
from tunesmith.feedback.store import Event

Floats = NDArray[np.float64]

RESAMPLES = 1000
# Newton's method ends where nothing moves by more, after some ten steps; the bound is for what cannot happen.
STILL, STEPS = 1e-9, 100
FEWEST_PROMPTS = 2
SCORES = {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}


class Ranked(BaseModel):
    """One model: the chance that it beats the average one (Bradley-Terry), with its interval, and its votes."""

    model: str
    strength: float
    ci95: tuple[float, float] | None
    votes: int


class Duel(BaseModel):
    """Two models that met: how often the first won, ties halved; and the same were all answers equally long.

    The interval and the tests draw whole prompts. `same_length` is the intercept of a logistic regression of the votes
    on the difference of the logarithms of the lengths (Dubois et al. 2024, "Length-Controlled AlpacaEval").
    """

    models: tuple[str, str]
    votes: int
    prompts: int
    won: float
    ci95: tuple[float, float] | None
    same_length: float | None


@dataclass(frozen=True, slots=True)
class Game:
    """A vote between two models, in the order of their names: the share of the win that the first has, and by how much
    its answer is longer, as a difference of logarithms."""

    models: tuple[str, str]
    prompt: str
    score: float
    longer: float


def games(items: Mapping[str, Item], votes: Iterable[Event]) -> list[Game]:
    """The votes between answers of two models, in the order in which they were cast.

    Planted items are no games, nor are answers that one of the people wrote.
    """
    cast, found = list(votes), list[Game]()
    people = {vote.rater for vote in cast}
    for vote in cast:
        item = items.get(vote.item)
        label = str(vote.body["label"])
        if item is None or item.gold or label not in SCORES or len(set(item.by)) < 2 or people & set(item.by):
            continue
        first, second = (np.log(len(answer) + 1.0) for answer in item.answers)
        score, longer, models = SCORES[label], float(first - second), (item.by[0], item.by[1])
        if models[0] > models[1]:
            score, longer, models = 1 - score, -longer, (models[1], models[0])
        found.append(Game(models, "\x1e".join(message.said for message in item.messages), score, longer))
    return found


def rank(played: Sequence[Game], *, seed: int = 0) -> list[Ranked]:
    """All models that met, the strongest first; empty where some never met, not even through others."""
    names = sorted({name for game in played for name in game.models})
    place = {name: i for i, name in enumerate(names)}
    pairs = np.array([[place[name] for name in game.models] for game in played], dtype=np.intp).reshape(-1, 2)
    scores = np.array([game.score for game in played])
    if len(names) < 2 or _apart(pairs, len(names)):
        return []
    clusters = Clusters.of(len(played), [game.prompt for game in played])
    strengths = _strengths(_wins(pairs, scores, len(names))[None])[0]
    ci: Floats | None = None
    if clusters.count >= FEWEST_PROMPTS:
        draws = clusters.drawn_rows(np.random.default_rng(seed), RESAMPLES)
        drawn = _strengths(np.stack([_wins(pairs[rows], scores[rows], len(names)) for rows in draws]))
        if np.ptp(drawn, axis=0).max() > 1e-9:  # where all went one way, every draw says the same, however few they are
            ci = np.clip([percentiles(drawn[:, i], clusters.count) for i in range(len(names))], 0, 1)
    ranked = [
        Ranked(
            model=name,
            strength=float(strengths[i]),
            ci95=None if ci is None else (float(ci[i, 0]), float(ci[i, 1])),
            votes=int((pairs == i).sum()),
        )
        for name, i in place.items()
    ]
    return sorted(ranked, key=lambda one: -one.strength)


def duels(played: Sequence[Game]) -> list[Duel]:
    """Each two models that met, in the order of their names."""
    found = []
    for models in sorted({game.models for game in played}):
        some = [game for game in played if game.models == models]
        clusters = Clusters.of(len(some), [game.prompt for game in some])
        scores = np.array([game.score for game in some])
        ci = None
        if clusters.count >= FEWEST_PROMPTS:
            ci = interval(scores, groups=[game.prompt for game in some])
        won, same = float(scores.mean()), at_same_length(scores, np.array([game.longer for game in some]))
        found.append(Duel(models=models, votes=len(some), prompts=clusters.count, won=won, ci95=ci, same_length=same))
    return found


def at_same_length(scores: Floats, longer: Floats) -> float | None:
    """[G], [G] -> the share of wins were all answers equally long; None where the lengths never differ.

    Logistic regression with a weak ridge on the slope alone, so that few games cannot make it infinite.
    """
    spread = float(longer.std())
    if spread < 1e-9:
        return None
    x = np.stack([np.ones(len(longer)), longer / spread], axis=1)
    weights, ridge = np.zeros(2), np.diag([1e-6, 1.0])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (scores - chance) - ridge @ weights
        curve = (x * (chance * (1 - chance))[:, None]).T @ x + ridge
        step = np.linalg.solve(curve, slope)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return float(1 / (1 + np.exp(-weights[0])))


def _wins(pairs: NDArray[np.intp], scores: Floats, models: int) -> Floats:
    """[G, 2], [G] -> [M, M]: how often each beat each."""
    wins = np.zeros((models, models))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), scores)
    np.add.at(wins, (pairs[:, 1], pairs[:, 0]), 1 - scores)
    return wins


def _strengths(wins: Floats) -> Floats:
    """[R, M, M] -> [R, M]: each model's chance to beat an average one.

    Newton's method until nothing moves, on the likelihood of Bradley and Terry, which has one peak (Hunter 2004, "MM
    algorithms for generalized Bradley-Terry models"). Half a win for each two that met keeps a model that always won
    from infinity.
    """
    models = wins.shape[1]
    met = ((wins + wins.transpose(0, 2, 1)).sum(axis=0) > 0).astype(np.float64)
    wins = wins + met / 2
    played = wins + wins.transpose(0, 2, 1)
    strength = np.zeros(wins.shape[:2])  # logarithms, 0 for the average model
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(strength[:, None, :] - strength[:, :, None]))
        slope = (wins - played * chance).sum(axis=2)
        curve = played * chance * (1 - chance)
        # All strengths may move together; one more in each place of the matrix holds their mean.
        bend = np.eye(models) * curve.sum(axis=2)[:, :, None] - curve + 1 / models
        step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        strength = strength + np.clip(step, -2, 2)
        strength = strength - strength.mean(axis=1, keepdims=True)
        if np.abs(step).max() < STILL:
            break
    return np.asarray(1 / (1 + np.exp(-strength)), dtype=np.float64)


def _apart(pairs: NDArray[np.intp], models: int) -> bool:
    """Whether some models never met, not even through others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(models, models))
    return int(connected_components(graph, directed=False)[0]) > 1
