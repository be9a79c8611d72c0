"""What the events amount to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.annotation.vote_state import VoteState
from tunesmith.annotation.vote_store import Event


def event(number: int, rater: str, kind: str, item: str = "", **body: object) -> Event:
    return Event(number, 0.0, rater, kind, item, body)


def test_the_last_vote_of_a_person_stands_and_taking_it_back_brings_the_one_before():
    votes = VoteState([event(1, "Ana", "vote", "x", label="a"), event(2, "Ana", "vote", "x", label="b")])
    assert votes.on("x") == {"Ana": "b"}
    votes.take(event(3, "Ana", "undo", "x", of=2))
    assert votes.on("x") == {"Ana": "a"}
    votes.take(event(4, "Ana", "undo", "x", of=1))
    assert votes.on("x") == {}
    assert votes.items() == []


def test_an_undo_takes_back_what_its_person_did_last_and_nothing_of_others():
    votes = VoteState([event(1, "Ana", "vote", "x", label="a"), event(2, "Bo", "vote", "y", label="b")])
    last = votes.last("Ana")
    assert last is not None
    assert last.number == 1
    votes.take(event(3, "Ana", "undo", "x", of=1))
    assert votes.last("Ana") is None
    assert votes.on("y") == {"Bo": "b"}


def test_the_same_undo_from_two_tabs_counts_once():
    votes = VoteState([event(1, "Ana", "vote", "x", label="a"), event(2, "Ana", "vote", "y", label="a")])
    votes.take(event(3, "Ana", "undo", "y", of=2))
    votes.take(event(4, "Ana", "undo", "y", of=2))
    assert votes.on("x") == {"Ana": "a"}


def test_what_a_person_has_withdrawn_is_known_until_they_vote_again():
    votes = VoteState([event(1, "Ana", "vote", "x", label="a"), event(2, "Bo", "vote", "x", label="b")])
    assert votes.withdrawn("x", "Ana") is None
    votes.take(event(3, "Ana", "undo", "x", of=1))
    assert votes.withdrawn("x", "Ana") == "a"
    assert votes.withdrawn("x", "Bo") is None
    votes.take(event(4, "Ana", "vote", "x", label="c"))
    assert votes.withdrawn("x", "Ana") is None


def test_a_vote_ends_the_skipping_of_its_row():
    votes = VoteState([event(1, "Ana", "skip", "x")])
    assert votes.skipped("Ana") == {"x"}
    assert votes.skipped("Bo") == set()
    votes.take(event(2, "Ana", "vote", "x", label="a"))
    assert votes.skipped("Ana") == set()


def test_most_votes_win_and_a_tie_has_no_label():
    votes = VoteState(
        [event(n, rater, "vote", "x", label=label) for n, (rater, label) in enumerate(["Aa", "Ba", "Cb"], 1)]
    )
    assert votes.label("x") == "a"
    votes.take(event(4, "D", "vote", "x", label="b"))
    assert votes.label("x") is None
    assert votes.label("unknown") is None


def test_labels_keep_the_order_in_which_they_were_first_known():
    votes = VoteState(
        [event(1, "", "word", label="b"), event(2, "Ana", "vote", "x", label="a"), event(3, "", "word", label="b")]
    )
    assert votes.words == ["b", "a"]


@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.sampled_from(["vote", "skip", "undo"]), st.sampled_from("xyz")), max_size=30
    )
)
def test_undoing_everything_leaves_nothing(acts: list[tuple[str, str, str]]):
    votes, number = VoteState(), 0

    def take(rater: str, kind: str, item: str) -> None:
        nonlocal number
        number += 1
        last = votes.last(rater)
        if kind == "undo" and last is not None:
            votes.take(event(number, rater, "undo", last.item, of=last.number))
        elif kind != "undo":
            votes.take(event(number, rater, kind, item, label=f"{rater}{number}"))

    for act in acts:
        take(*act)
    for rater in "AB":
        while votes.last(rater) is not None:
            take(rater, "undo", "")
    assert votes.items() == []
    assert not votes.skipped("A")
    assert not votes.skipped("B")
