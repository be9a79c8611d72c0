"""Prompts to be answered anew: from rows with an answer, without one, and from chats that end with a question."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.examples.parsers import question
from tunesmith.data.examples.prompts import Completion, rl_prompts
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.objectives import Rl
from tunesmith.objectives.instruct import asked

RL = Rl(reward="rules:score")


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(f"rows.jsonl:{i}", one) for i, one in enumerate(fields, 1)]


def test_a_row_with_an_answer_keeps_it_as_its_reference_and_the_row_beside_it():
    (one,) = rl_prompts(
        rows({"q": "Who?", "a": "Me.", "id": 7}), columns={"prompt": "q", "answer": "a"}, instruction="Say:"
    )
    assert one.prompt == (Message("user", "Say:\n\nWho?"),)
    assert (one.reference, one.row["id"], one.where) == ("Me.", 7, "rows.jsonl:1")


def test_a_row_of_a_prompt_alone_has_no_reference():
    (one,) = RL.examples(rows({"prompt": "Who?", "level": 2}), group="")
    attempt = Completion(one, "Me.", True)
    assert (one.prompt, one.reference) == ((Message("user", "Who?"),), "")
    assert (attempt.question, attempt.row["level"]) == ("Who?", 2)


def test_a_chat_may_end_with_the_question():
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "?"},
    ]
    (one,) = Rl(messages="messages", reward="r:s").examples(rows({"messages": turns}), group="")
    assert [message.content for message in one.prompt] == ["hi", "ho", "?"]
    assert asked(one) == list(one.prompt)


def test_chats_that_begin_alike_and_end_with_other_questions_are_no_copies():
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    chats = [{"messages": [*begun, {"role": "user", "content": f"task {i}"}]} for i in range(3)]
    assert len({question(one) for one in RL.examples(rows(*chats), group="")}) == 3


def test_all_parts_of_a_prompt_are_asked_and_a_bad_answer_is_no_reference():
    whole = {"system": "Be short.", "input": "The text.", "instruction": "Summarise."}
    said = [Message("system", "Be short."), Message("user", "Summarise.\n\nThe text.")]
    (one,) = RL.examples(rows({**whole, "chosen": "a", "rejected": "b"}), group="")
    assert (list(one.prompt), one.reference) == (said, "")
    (one,) = Rl(prompt="q", reward="r:s").examples(rows({"q": "Who?", "system": "Be short."}), group="")
    assert list(one.prompt) == [Message("system", "Be short."), Message("user", "Who?")]
    turns = [{"role": "user", "content": "Who?"}]
    (one,) = Rl(messages="m", reward="r:s").examples(rows({"m": turns, "system": "Be short."}), group="")
    assert one.prompt[0] == Message("system", "Be short.")
    (one,) = RL.examples(rows({"prompt": "Who?", "completion": "Nobody.", "label": False}), group="")
    assert (one.prompt, one.reference) == ((Message("user", "Who?"),), "")


def test_rows_without_anything_like_a_prompt_are_refused():
    with pytest.raises(DataError, match="no known format"):
        RL.examples(rows({"colour": "red"}), group="")


def test_a_blank_prompt_is_refused_with_its_place():
    with pytest.raises(DataError, match=r"rows.jsonl:2: column 'prompt' is blank"):
        RL.examples(rows({"prompt": "Who?"}, {"prompt": " "}), group="")


def test_rows_of_texts_alone_are_asked_as_they_stand():
    for fields in ({"text": "Who?"}, {"text": "Who?", "label": "person"}, {"source": "wiki", "text": "Who?"}):
        (one,) = RL.examples(rows(fields), group="")
        assert (one.prompt, one.reference) == ((Message("user", "Who?"),), "")


def test_pairs_of_whole_chats_without_a_prompt_column_are_refused_until_one_is_named():
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    pair = rows({"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "You."}]})
    with pytest.raises(DataError, match=r"no column with a prompt among .*chosen.*; name it in objective\.prompt"):
        RL.examples(pair, group="")
    (one,) = RL.model_copy(update={"prompt": "chosen"}).examples(pair, group="")
    assert (one.prompt, one.reference) == ((Message("user", "Who?"),), "Me.")
