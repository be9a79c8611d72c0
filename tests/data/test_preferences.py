"""Pairs and thumbs in the shapes that people's files have, and what is refused in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.data.examples.parsers import fingerprint, question
from tunesmith.data.examples.preferences import pairs, unpaired_preferences, written
from tunesmith.data.examples.types import Pair, UnpairedPreference
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError

COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
SIDES = {"chosen": "chosen", "rejected": "rejected"}
ASKED = (Message("user", "Capital?"),)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def row(**fields: Any) -> Row:
    return Row("p.jsonl:1", fields)


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (COLUMNS, {"prompt": "Capital?", "chosen": "Paris.", "rejected": "Rome."}),
        # TRL, conversational
        (COLUMNS, {"prompt": [user("Capital?")], "chosen": [said("Paris.")], "rejected": [said("Rome.")]}),
        # TRL, the prompt inside both chats
        (SIDES, {"chosen": [user("Capital?"), said("Paris.")], "rejected": [user("Capital?"), said("Rome.")]}),
        # UltraFeedback
        (
            COLUMNS,
            {
                "prompt": "Capital?",
                "chosen": [user("Capital?"), said("Paris.")],
                "rejected": [user("Capital?"), said("Rome.")],
            },
        ),
        # Anthropic's hh-rlhf
        (
            SIDES,
            {
                "chosen": "\n\nHuman: Capital?\n\nAssistant: Paris.",
                "rejected": "\n\nHuman: Capital?\n\nAssistant: Rome.",
            },
        ),
        # the same, cut into prompt and answers, with Windows' line ends
        (COLUMNS, {"prompt": "\r\n\r\nHuman: Capital?\r\n\r\nAssistant:", "chosen": "Paris.", "rejected": "Rome."}),
        # LLaMA-Factory: turns of from and value, one of them alone
        (
            COLUMNS,
            {
                "prompt": [{"from": "human", "value": "Capital?"}],
                "chosen": {"from": "gpt", "value": "Paris."},
                "rejected": [{"from": "gpt", "value": "Rome."}],
            },
        ),
        # contents in parts, as OpenAI's programs write them
        (
            COLUMNS,
            {
                "prompt": "Capital?",
                "chosen": [said([{"type": "text", "text": "Paris."}])],
                "rejected": [said([{"type": "text", "text": "Rome."}])],
            },
        ),
        # chats in the cells of a table, as Python and as JSON shows them
        (
            SIDES,
            {
                "chosen": str([user("Capital?"), said("Paris.")]),
                "rejected": json.dumps([user("Capital?"), said("Rome.")]),
            },
        ),
        # a question that differs by blanks alone
        (SIDES, {"chosen": [user("Capital?"), said("Paris.")], "rejected": [user("Capital?\n"), said("Rome.")]}),
    ],
)
def test_a_pair_is_read_from_every_usual_shape(columns: dict[str, str], fields: dict[str, Any]):
    assert pairs([row(**fields)], columns=columns) == [Pair("p.jsonl:1", ASKED, "Paris.", "Rome.")]


def test_earlier_turns_instruction_group_and_margin_are_kept():
    turns = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: Capital?\n\nAssistant: "
    fields = {"chosen": f"{turns}Paris.", "rejected": f"{turns}Rome.", "by": 1.5, "thread": 7}
    (found,) = pairs([row(**fields)], columns={**SIDES, "margin": "by"}, instruction="Be brief.", group="thread")
    assert [message.role for message in found.prompt] == ["user", "assistant", "user"]
    assert found.prompt[0].content == "Be brief.\n\nhi"
    assert (found.margin, found.group) == (1.5, "7")
    fields = [{"prompt": "q", "chosen": "a", "rejected": "b", "by": by} for by in (2, None, "")]
    found_ = pairs([row(**one) for one in fields], columns={**COLUMNS, "margin": "by"})
    assert [pair.margin for pair in found_] == [2.0, 0.0, 0.0]  # nobody need say by how much


@pytest.mark.parametrize(
    ("columns", "fields", "finding"),
    [
        (COLUMNS, {"prompt": "q", "chosen": "A b", "rejected": " A  b "}, "are the same answer; drop the row"),
        (COLUMNS, {"prompt": "q", "chosen": "a", "rejected": " "}, "column 'rejected' is blank"),
        (COLUMNS, {"prompt": "q", "chosen": "a", "rejected": []}, r"column 'rejected' must be text, got \[\]"),
        (COLUMNS, {"prompt": "q", "chosen": [said("")], "rejected": "b"}, "'chosen' must end with a non-blank answer"),
        (COLUMNS, {"prompt": "q", "chosen": [user("q")], "rejected": "b"}, "'chosen' must end with a non-blank answer"),
        (
            COLUMNS,
            {"prompt": [said("q")], "chosen": "a", "rejected": "b"},
            "ends with an answer; end it with a user turn",
        ),
        (SIDES, {"chosen": "a", "rejected": "b"}, "an answer without a prompt; set objective.prompt"),
        (
            SIDES,
            {"chosen": [user("q"), said("a")], "rejected": [user("other"), said("b")]},
            "the turns before chosen and rejected differ; cut both chats",
        ),
        (
            COLUMNS,
            {"prompt": "q", "chosen": [user("other"), said("a")], "rejected": [user("other"), said("b")]},
            "the prompt differs from the turns before the answer in 'chosen'",
        ),
        (
            {**COLUMNS, "margin": "by"},
            {"prompt": "q", "chosen": "a", "rejected": "b", "by": "much"},
            "column 'by' must be a number, got 'much'",
        ),
        ({**COLUMNS, "margin": "by"}, {"prompt": "q", "chosen": "a", "rejected": "b", "by": "nan"}, "must be a number"),
    ],
)
def test_a_pair_that_cannot_be_learned_is_refused_with_line_and_cure(
    columns: dict[str, str], fields: dict[str, Any], finding: str
):
    with pytest.raises(DataError, match=rf"^p\.jsonl:1: .*{finding}"):
        pairs([row(**fields)], columns=columns)


def test_the_prompt_may_be_the_first_question_of_a_chat_of_many_turns():
    before = [user("Capital?"), said("Paris."), user("Of Italy?")]
    fields = {"prompt": "Capital?", "chosen": [*before, said("Rome.")], "rejected": [*before, said("Oslo.")]}
    (found,) = pairs([row(**fields)], columns=COLUMNS)
    assert [turn.content for turn in found.prompt] == ["Capital?", "Paris.", "Of Italy?"]


@pytest.mark.parametrize("read", [pairs, unpaired_preferences])
def test_turns_before_the_question_are_kept_wherever_they_stand(read: Any):
    """A chat beside its prompt may begin with the prompt's last question, its first, or its system turn."""
    system, answer = {"role": "system", "content": "Speak French."}, said("Rome.")
    asked = [user("Capital?"), said("Paris."), user("Of Italy?")]
    parts = ("chosen", "rejected") if read is pairs else ("answer", "label")
    for prompt, chat in (
        ([system, *asked], [user("Of Italy?"), answer]),
        ([system, *asked], [system, *asked, answer]),
        ([system, user("Capital?")], [*asked, answer]),
        ([system, user("Of Italy?")], [system, *asked, answer]),
        ([user("Of Italy?")], [system, *asked, answer]),
    ):
        judged = (chat, [*chat[:-1], said("Oslo.")] if read is pairs else True)
        columns = {name: name for name in ("prompt", *parts)}
        (found,) = read([row(prompt=prompt, **dict(zip(parts, judged, strict=True)))], columns=columns)
        assert [turn.content for turn in found.prompt] == ["Speak French.", "Capital?", "Paris.", "Of Italy?"] or (
            len(chat) == 2 and found.prompt[-1].content == "Of Italy?" and found.prompt[0].role == "system"
        )


def test_a_prompt_that_says_other_things_than_its_chat_is_refused():
    other = [{"role": "system", "content": "Be brief."}, user("q"), said("a")]
    asked = [{"role": "system", "content": "Speak French."}, user("q")]
    with pytest.raises(DataError, match="the prompt differs from the turns before the answer in 'chosen'"):
        pairs([row(prompt=asked, chosen=other, rejected=other)], columns=COLUMNS)


def test_what_a_judged_question_is_about_stands_behind_it_and_earlier_turns_before_it():
    fields = {"prompt": "Answer.", "input": "Capital?", "history": [["Hi", "Hello"]], "chosen": "a", "rejected": "b"}
    (found,) = pairs([row(**fields)], columns={**COLUMNS, "input": "input", "history": "history"})
    turns = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Answer.\n\nCapital?")]
    assert found.prompt == tuple(turns)


def test_a_list_written_as_text_that_cannot_be_read_back_is_refused_and_never_learned():
    unread = "[{'content': 'Capital?', 'role': 'user'}\n {'content': 'Paris.', 'role': 'assistant'}]"  # numpy's
    with pytest.raises(
        DataError, match=r"'chosen': list of turns written as text .*; save the rows as jsonl or parquet"
    ):
        pairs([row(prompt="q", chosen=unread, rejected="b")], columns=COLUMNS)
    plain = '[{"role": "nurse", "shift": 2}]'  # an answer that is a list of something else
    (found,) = pairs([row(prompt="q", chosen=plain, rejected="b")], columns=COLUMNS)
    assert found.chosen == plain


@pytest.mark.parametrize("part", ["messages", "conversations"])
def test_a_thumb_may_stand_beside_a_whole_chat(part: str):
    turns = [{"from": "human", "value": "Capital?"}, {"from": "gpt", "value": "Paris."}]
    (found,) = unpaired_preferences([row(turns=turns, label="no")], columns={part: "turns", "label": "label"})
    assert found == UnpairedPreference("p.jsonl:1", ASKED, "Paris.", False)


@pytest.mark.parametrize(
    ("label", "good"),
    [(True, True), (False, False), ("1", True), (0, False), ("True", True), ("0.0", False), (1.0, True), ("Yes", True)],
)
def test_a_thumb_is_up_or_down(label: Any, good: bool):
    columns = {"prompt": "prompt", "answer": "completion", "label": "label"}
    (found,) = unpaired_preferences([row(prompt="Capital?", completion="Paris.", label=label)], columns=columns)
    assert found == UnpairedPreference("p.jsonl:1", ASKED, "Paris.", good)


def test_a_thumb_that_is_neither_is_refused():
    columns = {"prompt": "prompt", "answer": "completion", "label": "label"}
    with pytest.raises(DataError, match=r"^p\.jsonl:1: column 'label' must be true or false, 1 or 0, .*, got 'fine'"):
        unpaired_preferences([row(prompt="q", completion="a", label="fine")], columns=columns)


def test_what_the_system_column_says_stands_before_what_was_judged():
    fields = {"system": "Answer in French.", "prompt": "Capital?", "chosen": "Paris.", "rejected": "Rome."}
    (pair,) = pairs([row(**fields)], columns={**COLUMNS, "system": "system"})
    assert pair.prompt == (Message("system", "Answer in French."), *ASKED)
    rated = {"system": "Be brief.", "prompt": "Capital?", "completion": "Paris.", "label": "👍"}
    columns = {"prompt": "prompt", "answer": "completion", "label": "label", "system": "system"}
    (thumb,) = unpaired_preferences([row(**rated)], columns=columns)
    assert (thumb.prompt[0], thumb.good) == (Message("system", "Be brief."), True)


def test_pairs_turned_round_ask_the_same_and_are_not_the_same():
    one, other = Pair("r", ASKED, "Paris.", "Rome."), Pair("s", ASKED, "rome.", "paris.")
    assert question(one) == question(other)
    assert fingerprint(one) != fingerprint(other)
    assert question(one) != question(Pair("t", ASKED, "Paris.", "Oslo."))
    assert written(one) == "Capital?\nParis.\nRome."
