"""Votes as rows of the preference objective, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.annotation.voting import Ballot, item, keyed, label_for
from tunesmith.annotation.items import (
    ANSWER,
    BAD,
    FIRST,
    GOOD,
    ITEM,
    OWN,
    SECOND,
    TIE,
    make_item,
    prompt_key,
    read_items,
)
from tunesmith.annotation.vote_rows import pair_rows, read_votes, thumb_rows
from tunesmith.annotation.vote_store import Event
from tunesmith.data.examples.preferences import pairs, unpaired_preferences
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError


def as_rows(found: list[dict[str, Any]]) -> list[Row]:
    """The rows as `data.rows` would read them."""
    return [Row(f"votes.jsonl:{n}", json.loads(json.dumps(row))) for n, row in enumerate(found, 1)]


def test_a_vote_is_a_row_that_the_preference_objective_reads_as_it_is():
    one, chat = item(1), make_item([Message("system", "s"), Message("user", "u")], ("x", "y"), ("a", "b"))
    ballot = Ballot()
    ballot.cast("Ana", one, label_for(one, "second 1"))
    ballot.cast("Ana", chat, label_for(chat, "x"))
    rows = as_rows(pair_rows(keyed([one, chat]), ballot.votes).rows)
    read = pairs(rows, columns=detect(rows).columns)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in read] == [
        ((Message("user", "Prompt 1"),), "second 1", "first 1"),
        ((Message("system", "s"), Message("user", "u")), "x", "y"),
    ]
    assert rows[0].fields["raters"] == ["Ana"]
    assert (rows[0].fields["chosen_by"], rows[0].fields["rejected_by"]) == ("tuned", "base")


def test_an_answer_that_was_cut_off_is_told_in_its_row():
    plain, ballot = item(1), Ballot()
    key = prompt_key(plain.messages)
    made = [Event(9, 9.0, "", ANSWER, key, {"text": text, "finished": text != "first 1"}) for text in plain.answers]
    one = read_items([Event(8, 8.0, "", ITEM, plain.key, plain.entry.body or {}), *made])[plain.key]
    ballot.cast("Ana", one, label_for(one, "second 1"))
    ballot.cast("Bo", one, OWN, text="better")
    rows = as_rows(pair_rows(keyed([one]), ballot.votes).rows)
    assert [row.fields.get("rejected_cut") for row in rows].count(True) == 2
    assert not any("chosen_cut" in row.fields for row in rows)
    read = pairs(rows, columns=detect(rows).columns)
    assert {(pair.rejected, pair.cut) for pair in read} == {
        ("first 1", (False, True)),
        ("second 1", (False, False)),
    }
    good = as_rows(thumb_rows(keyed([one]), ballot.votes).rows)
    assert {
        (thumb.answer, thumb.good, thumb.cut) for thumb in unpaired_preferences(good, columns=detect(good).columns)
    } >= {
        ("first 1", False, True),
        ("second 1", True, False),
    }
    back = [vote.item for vote in read_votes(rows, rater="")]
    assert {dict(zip(one.answers, one.cut, strict=True))["first 1"] for one in back if "first 1" in one.answers} == {
        True
    }
    again = read_items([Event(1, 1.0, "", ITEM, one.key, one.entry.body or {}) for one in back])
    assert [one.cut for one in again.values()] == [one.cut for one in {one.key: one for one in back}.values()]


def test_ties_both_bad_and_draws_prefer_nothing_and_most_votes_win():
    items = [item(n) for n in range(4)]
    ballot = Ballot()
    ballot.cast("Ana", items[0], TIE)
    ballot.cast("Ana", items[1], BAD)
    for rater, label in (("Ana", FIRST), ("Bo", SECOND)):
        ballot.cast(rater, items[2], label)
    for rater, label in (("Ana", FIRST), ("Bo", SECOND), ("Cy", FIRST)):
        ballot.cast(rater, items[3], label)
    found = pair_rows(keyed(items), ballot.votes)
    assert [(row["chosen"], row["raters"]) for row in found.rows] == [(items[3].answers[0], ["Ana", "Cy"])]
    assert found.undecided == 3


def test_an_own_answer_is_chosen_over_both_whatever_others_say():
    one, ballot = item(1), Ballot()
    ballot.cast("Ana", one, OWN, text="better")
    ballot.cast("Bo", one, FIRST)
    rows = pair_rows(keyed([one]), ballot.votes).rows
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        one.answers, *(("better", answer) for answer in one.answers)
    ]  # fmt: skip


def test_thumbs_tell_of_each_answer_whether_it_is_good():
    items = [item(1), item(2), item(3, "alone"), item(4)]
    ballot = Ballot()
    ballot.cast("Ana", items[0], label_for(items[0], "first 1"))
    ballot.cast("Ana", items[1], BAD)
    ballot.cast("Ana", items[2], GOOD)
    ballot.cast("Ana", items[3], OWN, text="mine")
    rows = as_rows(thumb_rows(keyed(items), ballot.votes).rows)
    read = unpaired_preferences(rows, columns=detect(rows).columns)
    assert {thumb.answer: thumb.good for thumb in read} == {
        "first 1": True, "second 1": False, "first 2": False, "second 2": False, "alone": True,
        "mine": True, "first 4": False, "second 4": False,
    }  # fmt: skip


def test_an_answer_that_somebody_voted_for_is_not_bad_because_another_wrote_one():
    one, ballot = item(1), Ballot()
    ballot.cast("Ana", one, FIRST)
    ballot.cast("Bo", one, SECOND)
    ballot.cast("Cy", one, OWN, text="mine")
    rows = thumb_rows(keyed([one]), ballot.votes).rows
    assert [(row["completion"], row["label"]) for row in rows] == [("mine", True)]


def test_planted_items_are_never_rows():
    one, ballot = item(1, gold=FIRST), Ballot()
    ballot.cast("Ana", one, FIRST)
    assert pair_rows(keyed([one]), ballot.votes).rows == []


def test_rows_come_back_as_the_votes_they_were():
    one, two = item(1), item(2, "alone")
    ballot = Ballot()
    ballot.cast("Ana", one, SECOND)
    (back,) = read_votes(as_rows(pair_rows(keyed([one]), ballot.votes).rows), rater="file")
    assert (back.item, back.label, back.rater) == (one, SECOND, "Ana")
    ballot.cast("Bo", two, BAD)
    (back,) = read_votes(as_rows(thumb_rows(keyed([two]), ballot.votes).rows), rater="file")
    assert (back.item.answers, back.label, back.rater) == (("alone",), BAD, "Bo")


@pytest.mark.parametrize(
    "text",
    [
        "Human: why?",
        "Assistant: A.\n\nHuman: B?",
        "Assistant: yes",
        '[{"role": "user", "content": "x"}]',
        "[{'role': 'user', }]x]",
    ],
)
def test_a_text_that_looks_like_turns_comes_back_as_it_was(text: str):
    ask, ballot = [Message("user", text)], Ballot()
    one, alone = make_item(ask, (text, "plain"), ("a", "b")), make_item(ask, (text,), ("a",))
    ballot.cast("Ana", one, label_for(one, text))
    ballot.cast("Bo", one, OWN, text=f"{text} own")
    ballot.cast("Cy", alone, BAD)
    rows = as_rows(pair_rows(keyed([one]), ballot.votes).rows)
    back = read_votes(rows, rater="file")
    assert [(vote.item, vote.label, vote.text) for vote in back] == [
        (one, label_for(one, text), ""), (one, OWN, f"{text} own"),
    ]  # fmt: skip
    (back_alone,) = read_votes(as_rows(thumb_rows(keyed([alone]), ballot.votes).rows), rater="file")
    assert (back_alone.item, back_alone.label) == (alone, BAD)


def test_a_row_is_one_vote_of_each_person_it_names_and_an_own_answer_comes_back_as_one():
    one, two, ballot = item(1), item(2), Ballot()
    for rater in ("Ana, PhD", "Bo"):
        ballot.cast(rater, one, FIRST)
    ballot.cast("Cy", one, OWN, text="mine")
    ballot.cast("Cy", two, OWN, text="mine too")
    rows = as_rows(pair_rows(keyed([one, two]), ballot.votes).rows)
    assert len(rows) == 5
    back = read_votes(rows, rater="file")
    assert [(vote.item, vote.label, vote.rater, vote.text) for vote in back] == [
        (one, FIRST, "Ana, PhD", ""), (one, FIRST, "Bo", ""), (one, OWN, "Cy", "mine"), (two, OWN, "Cy", "mine too"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": " a "}], ":2: "),
        ([{"prompt": "p", "chosen": "a", "rejected": " a "}], "the same answer"),
        ([{"prompt": "p", "answer": "a"}], "contains no judgements"),
        ([{"text": "p", "label": "a"}, {"text": "q", "label": "b"}], "contains no judgements"),
    ],
)
def test_rows_that_judge_nothing_are_refused_with_their_place(rows: list[dict[str, Any]], said: str):
    with pytest.raises(DataError, match=said):
        read_votes(as_rows(rows), rater="file")


def test_what_names_nobody_and_what_judges_nothing_is_told_with_its_row():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for odd in ({"raters": {"Ana": 1}}, {"rater": True}, {"rater": "x" * 201}):
        with pytest.raises(DataError, match="invalid name of a rater or model .*; write a text"):
            read_votes(as_rows([{**pair, **odd}]), rater="file")
    with pytest.raises(DataError, match="column 'chosen' is blank"):
        read_votes(as_rows([pair, {**pair, "chosen": ""}]), rater="file")
    both = read_votes(as_rows([{**pair, "rater": "Ana", "raters": ["Bo"]}]), rater="file")
    assert sorted(vote.rater for vote in both) == ["Ana", "Bo"]


def test_a_rater_with_the_number_0_is_a_rater():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    votes = read_votes(as_rows([{**pair, "raters": [0, 1]}, {**pair, "prompt": "r", "rater": 0}]), rater="file")
    assert [vote.rater for vote in votes] == ["0", "1", "0"]
    (by_model,) = read_votes(as_rows([{**pair, "chosen_by": 0, "rejected_by": 1}]), rater="file")
    assert sorted(by_model.item.by) == ["0", "1"]
