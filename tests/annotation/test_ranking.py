"""Models by strength, and what length had to do with it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.annotation.voting import Ballot, item, keyed, label_for
from tunesmith.annotation.items import BAD, FIRST, TIE
from tunesmith.annotation.ranking import Game, at_same_length, duels, games, rank


def game(a: str, b: str, score: float, prompt: str = "p", longer: float = 0.0) -> Game:
    return Game((a, b), prompt, score, longer)


def test_three_wins_of_four_are_the_odds_of_the_strengths():
    # With half a win for each the odds are 3.5 to 1.5, and each stands its root away from the average.
    first, second = rank([game("a", "b", score, f"p{n}") for n, score in enumerate((1.0, 1.0, 1.0, 0.0))])
    root = (3.5 / 1.5) ** 0.5
    assert (first.model, first.votes) == ("a", 4)
    assert first.strength == pytest.approx(root / (1 + root))
    assert second.strength == pytest.approx(1 - first.strength)
    assert first.ci95 is not None
    assert first.ci95[0] < first.strength < first.ci95[1]


def test_an_order_of_strength_is_found_through_models_that_never_met():
    chance = random.Random(7)
    strength = {"a": 4.0, "b": 2.0, "c": 1.0}
    played = []
    for n in range(300):
        a, b = (("a", "b"), ("b", "c"))[n % 2]
        played.append(game(a, b, float(chance.random() < strength[a] / (strength[a] + strength[b])), f"p{n}"))
    ranked = rank(played)
    assert [one.model for one in ranked] == ["a", "b", "c"]
    assert ranked[0].ci95 is not None
    assert ranked[2].ci95 is not None
    assert ranked[0].ci95[0] > ranked[2].ci95[1]


def test_strengths_of_a_chain_are_the_odds_of_each_link_however_far_they_lie_apart():
    # Nothing but its own votes bears on a link of a chain, so each difference is the logarithm of its odds.
    played = [game(a, b, 1.0, f"p{n}") for a, b in ("ab", "bc", "cd", "de") for n in range(200)]
    link = np.log(200.5 / 0.5)
    wanted = [1 / (1 + np.exp(-link * place)) for place in (2, 1, 0, -1, -2)]
    assert [one.model for one in rank(played)] == list("abcde")
    assert [one.strength for one in rank(played)] == pytest.approx(wanted, rel=1e-9)


def test_models_in_two_worlds_are_not_ranked():
    assert rank([game("a", "b", 1.0), game("c", "d", 1.0)]) == []
    assert rank([]) == []


def test_one_prompt_alone_has_no_interval():
    ranked = rank([game("a", "b", 1.0), game("a", "b", 1.0)])
    assert [one.ci95 for one in ranked] == [None, None]


def test_a_few_prompts_that_all_went_one_way_are_no_certainty():
    played = [game("a", "b", 1.0, prompt) for prompt in ("p", "q")]
    assert [one.ci95 for one in rank(played)] == [None, None]
    (duel,) = duels(played)
    assert duel.ci95 is not None
    assert duel.ci95[0] < 0.5


def test_ties_are_half_a_win_and_other_votes_are_no_games():
    items = [item(n) for n in range(5)]
    mine = item(9, by=("base", "base"))
    ballot = Ballot()
    for one, said in zip(items, ("first", TIE, "second", BAD, "second"), strict=True):
        number = one.messages[0].content.removeprefix("Prompt ")
        ballot.cast("Ana", one, said if said in (TIE, BAD) else label_for(one, f"{said} {number}"))
    ballot.cast("Ana", mine, FIRST)
    played = games(keyed([*items, mine]), ballot.votes.standing())
    (duel,) = duels(played)
    assert (duel.models, duel.votes, duel.prompts, duel.won) == (("base", "tuned"), 4, 4, 0.375)


def test_an_answer_that_a_person_wrote_is_no_model():
    one, ballot = item(1, by=("Ana", "tuned")), Ballot()
    ballot.cast("Ana", one, FIRST)
    assert games(keyed([one]), ballot.votes.standing()) == []


def test_a_win_that_is_all_length_is_even_at_the_same_length():
    chance = random.Random(3)
    longer = np.array([chance.gauss(1.0, 1.0) for _ in range(400)])
    scores = np.array([float(chance.random() < 1 / (1 + np.exp(-2 * x))) for x in longer])
    assert scores.mean() > 0.7
    assert at_same_length(scores, longer) == pytest.approx(0.5, abs=0.08)
    assert at_same_length(scores, np.ones(400)) is None
