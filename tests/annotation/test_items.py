"""What is worth judging."""

from __future__ import annotations

from tests.annotation.voting import item
from tunesmith.annotation.items import FIRST, SECOND, AnswerSide, make_item, prompt_key, read_items, sample
from tunesmith.annotation.vote_rows import prompt_of
from tunesmith.annotation.vote_store import Event
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import Call

ASKED = [[Message("user", f"Prompt {n}")] for n in range(4)]


def test_equal_and_empty_answers_are_left_out_and_counted():
    sides = [AnswerSide("a", ["same", "x", "one", "Case"]), AnswerSide("b", [" same\n", " ", "two", "case"])]
    found = sample(ASKED, sides)
    assert [set(one.answers) for one in found.items] == [{"one", "two"}, {"Case", "case"}]
    assert (found.same, found.empty) == (1, 1)


def test_the_same_answers_from_either_side_are_the_same_item():
    one = make_item(ASKED[0], ("x", "y"), ("base", "tuned"), gold=SECOND)
    other = make_item(ASKED[0], ("y", "x"), ("tuned", "base"), gold=FIRST)
    assert one == other
    assert one.answers[(FIRST, SECOND).index(one.gold)] == "y"


def test_an_item_comes_back_from_its_event_as_it_was():
    one = item(1, gold=FIRST)
    entry = one.entry
    assert read_items([Event(1, 0.0, "", entry.kind, entry.item, entry.body or {})]) == {one.key: one}


def test_chats_that_differ_in_a_call_alone_are_two_and_keep_it_in_words():
    towns = [
        (Message("user", "Weather?"), Message("assistant", "", (Call("weather", f'{{"town": "{town}"}}'),)))
        for town in ("Oslo", "Rome")
    ]
    chats = [(*chat, Message("tool", "Rain."), Message("user", "And?")) for chat in towns]
    assert len({prompt_key(chat) for chat in chats}) == 2
    items = [make_item(chat, ["Take a coat."], ["one"]) for chat in chats]
    assert len({one.key for one in items}) == 2
    entry = items[0].entry
    back = read_items([Event(1, 0.0, "", entry.kind, entry.item, entry.body or {})])[entry.item]
    assert "Oslo" in back.messages[1].content
    assert prompt_of(items[0].messages) == prompt_of(back.messages)
    assert prompt_key(items[0].messages) == prompt_key(back.messages)


def test_neither_model_comes_first_more_often():
    first = sum(item(n).by[0] == "base" for n in range(400))
    assert 160 < first < 240
