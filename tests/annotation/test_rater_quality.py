"""Who clicks at random is named, who reads is not: on simulated people whose care is known."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.annotation.voting import Ballot, item, keyed, right, simulate
from tunesmith.annotation.items import FIRST, SECOND
from tunesmith.annotation.rater_quality import Hits, _p_value, gold, position, raters
from tunesmith.annotation.summary import summarise

ITEMS = [item(n) for n in range(60)]
PLANTED = [item(n, gold=FIRST, by=("right", "wrong")) for n in range(100, 120)]


def named(ballot: Ballot) -> list[str]:
    items = keyed([*ITEMS, *PLANTED])
    return sorted(one.rater for one in raters(items, ballot.votes.standing()) if one.at_random)


def test_the_left_share_is_tested_against_a_fair_coin():
    ballot = Ballot()
    for n in range(10):
        # The first answer, which stands on the left nine times of ten.
        ballot.cast("Ana", ITEMS[n], FIRST, left=0 if n else 1)
    found = position(ballot.votes.standing())
    assert (found.votes, found.left) == (10, 0.9)
    # 2 * (1 + 10) / 2 ** 10
    assert found.p_value == pytest.approx(22 / 1024)


def test_planted_items_are_scored_by_their_own_label():
    ballot = Ballot()
    for n in range(4):
        wrong = SECOND if PLANTED[n].gold == FIRST else FIRST
        ballot.cast("Ana", PLANTED[n], wrong if n == 0 else PLANTED[n].gold)
    found = gold(keyed(PLANTED), ballot.votes.standing())
    assert (found.items, found.right) == (4, 0.75)


def test_one_who_clicks_among_three_who_read_is_named_most_times_and_nobody_else_ever():
    found = list[str]()
    for seed in range(20):
        ballot = Ballot()
        for rater, care in (("Ana", 0.85), ("Bo", 0.85), ("Cy", 0.85), ("Mallory", 0.5)):
            simulate(ballot, rater, ITEMS, care=care, seed=f"many {seed}")
        found += named(ballot)
    assert found.count("Mallory") >= 14  # 84 of 100 rounds
    assert set(found) == {"Mallory"}


def test_one_who_is_alone_is_named_by_planted_items_only():
    ballot = Ballot()
    simulate(ballot, "Mallory", [*ITEMS, *PLANTED], care=0.5, seed="alone")
    assert named(ballot) == ["Mallory"]
    ballot = Ballot()
    simulate(ballot, "Mallory", ITEMS, care=0.5, seed="alone")
    assert named(ballot) == []


def test_of_two_who_disagree_nobody_is_named():
    ballot = Ballot()
    simulate(ballot, "Ana", ITEMS, care=0.9, seed="two")
    simulate(ballot, "Bo", ITEMS, care=0.5, seed="two")
    assert named(ballot) == []


def test_an_odd_taste_is_not_taken_for_clicking():
    odd = list[str]()
    for seed in range(20):
        ballot = Ballot()
        for rater, care in (("Ana", 0.95), ("Bo", 0.95), ("Cy", 0.95), ("Odd", 0.75)):
            simulate(ballot, rater, ITEMS, care=care, seed=f"odd {seed}")
        odd += named(ballot)
    assert odd == []


def test_one_who_never_says_what_the_others_say_is_compared_with_nothing():
    ballot = Ballot()
    for rater, label in (("Ana", FIRST), ("Bo", FIRST), ("Cy", FIRST), ("Dee", SECOND)):
        for n in range(3):
            ballot.cast(rater, ITEMS[n], label)
    found = {one.rater: one for one in raters(keyed(ITEMS), ballot.votes.standing())}
    assert (found["Dee"].compared, found["Dee"].agreed, found["Dee"].by_chance) == (3, 0.0, 0.0)
    assert not found["Dee"].at_random


def test_matches_by_chance_are_counted_over_planted_and_shared_items_together():
    # Both of two planted and one of one shared, all by a coin: one in eight.
    assert _p_value([Hits(n=2, hits=2, chance=0.5), Hits(n=1, hits=1, chance=0.5)]) == pytest.approx(1 / 8)
    assert _p_value([Hits(n=2, hits=1, chance=0.5)]) == pytest.approx(3 / 4)


def test_one_who_always_presses_the_same_key_is_named_for_it():
    ballot = Ballot()
    for n, one in enumerate(ITEMS[:30]):
        ballot.cast("Lefty", one, (FIRST, SECOND)[n % 2], left=n % 2)
    (found,) = raters(keyed(ITEMS), ballot.votes.standing())
    assert found.at_random
    assert "left answer in 100% of 30 votes" in found.reasons[0]


def test_of_two_hundred_who_read_at_most_two_are_named():
    wrong = 0
    for seed in range(50):
        ballot = Ballot()
        for rater in ("Ana", "Bo", "Cy", "Di"):
            simulate(ballot, rater, [*ITEMS[:40], *PLANTED[:5]], care=0.8, seed=f"care {seed}")
        wrong += len(named(ballot))
    assert wrong <= 2


def test_speed_is_the_median_and_votes_that_nobody_can_have_read_are_counted():
    long = [item(n, "word " * 100, "word " * 50) for n in range(3)]
    ballot = Ballot()
    for one, seconds in zip(long, (2.0, 20.0, 30.0), strict=True):
        ballot.cast("Ana", one, FIRST, seconds=seconds)  # 150 words at 15 a second take 10
    (found,) = raters(keyed(long), ballot.votes.standing())
    assert (found.seconds, found.too_fast) == (20.0, pytest.approx(1 / 3))


def test_the_summary_counts_planted_items_apart():
    ballot = Ballot()
    simulate(ballot, "Ana", [*ITEMS[:3], *PLANTED[:2]], care=1.0, seed="summary")
    found = summarise(keyed([*ITEMS, *PLANTED]), ballot.votes, store="votes.db")
    assert (found.items, found.judged, found.votes, found.gold.items) == (
        60,
        3,
        dict(Counter(map(right, ITEMS[:3])).most_common()),
        2,
    )
    assert [duel.models for duel in found.duels] == [("base", "tuned")]
