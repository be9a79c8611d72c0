"""Prompts and answers: what is learned of them, and what it costs."""

from __future__ import annotations

import pytest
import torch

from tests.bases import chats, policy, template
from tests.tiny import DECODERS
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import collate
from tunesmith.objectives import Instruct
from tunesmith.objectives.instruct import asked, reference

PAIRS = [Row("qa.jsonl:1", {"prompt": "Capital?", "answer": "Paris.", "doc": "x"})]


def test_pairs_become_chats_with_the_instruction_in_front():
    found = Instruct(prompt="prompt", answer="answer", instruction="Be brief.").examples(PAIRS, group="doc")
    assert found == [
        Chat("qa.jsonl:1", (Message("user", "Be brief.\n\nCapital?"), Message("assistant", "Paris.")), "x")
    ]


def test_system_turns_and_tools_of_any_usual_name_stand_beside_columns_that_are_named():
    fields = {"question": "q", "response": "a", "system_prompt": "be kind", "functions": "[]", "System": "SAP"}
    found = Instruct(prompt="question", answer="response").columns([Row("x:1", fields)])
    assert found == {"prompt": "question", "answer": "response", "system": "system_prompt", "tools": "functions"}


def test_columns_are_detected():
    assert Instruct().columns(PAIRS) == {"prompt": "prompt", "answer": "answer"}
    assert Instruct(messages="turns").columns(PAIRS) == {"messages": "turns"}


def test_turns_after_the_last_answer_are_dropped():
    said = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    (found,) = Instruct(messages="m").examples([Row("qa.jsonl:1", {"m": said})], group="")
    assert isinstance(found, Chat)
    assert [message.role for message in found.messages] == ["user", "assistant"]


def test_rows_without_an_answer_are_refused():
    with pytest.raises(DataError, match=r"^qa\.jsonl:1: no assistant turn"):
        Instruct(messages="m").examples([Row("qa.jsonl:1", {"m": [{"role": "user", "content": "hi"}]})], group="")


def test_the_longest_answer_is_set_from_the_training_answers():
    rows = [Chat("r", (Message("user", "q"), Message("assistant", "x" * 60)))] * 40
    assert Instruct().bind(rows, "decoder").max_new_tokens == 46  # 60 / 3 * 1.5 + 16
    assert Instruct(max_new_tokens=9).bind(rows, "decoder").max_new_tokens == 9


def test_the_reference_is_the_last_answer_and_the_question_all_before_it():
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    chat = Chat("r", turns)
    assert reference(chat) == "d"
    assert asked(chat) == list(turns[:3])
    assert asked(chat, "Be brief.")[-1] == Message("user", "c\n\nBe brief.")


@pytest.mark.parametrize("kind", DECODERS)
def test_all_answers_of_a_chat_are_learned(kind: str):
    form = template(kind)
    turns = tuple(Message(("user", "assistant")[i % 2], word) for i, word in enumerate(("q", "one", "r", "two")))
    (made,) = Instruct().encode(Chat("r", turns), form, limit=512).sequences
    end = form.tokenizer.decode(form.end_ids)
    told = form.tokenizer.decode([i for i, learn in zip(made.ids, made.learn, strict=True) if learn])
    assert told == f"one{end}two{end}"


@pytest.mark.parametrize("kind", DECODERS)
def test_the_first_loss_is_the_one_that_transformers_computes(kind: str):
    objective, made, form = Instruct(), policy(kind), template(kind)
    rows = [objective.encode(chat, form, limit=512) for chat in chats()]
    batch = collate(rows)
    sequences = [row.sequences[0] for row in rows]
    width = max(len(one.ids) for one in sequences)
    ids = torch.tensor([[*one.ids, *[0] * (width - len(one.ids))] for one in sequences])
    mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in sequences])
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(sequences):
        learn = torch.tensor(one.learn)
        labels[row, : len(one.ids)][learn] = torch.tensor(one.ids)[learn]
    with torch.no_grad():
        loss = objective.loss(objective.prepare(batch, made), made)
        mean = made.network(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert loss.units == objective.units(batch) == sum(one.learned for one in sequences)
    assert loss.total.item() / loss.units == pytest.approx(mean.item(), rel=1e-4)


def test_a_prompt_that_is_too_long_gives_way_and_the_row_is_counted():
    chat = Chat("r", (Message("user", "fox " * 80), Message("assistant", "Paris.")))
    made = Instruct().encode(chat, template("llama"), limit=90)
    whole = Instruct().encode(chats(1)[0], template("llama"), limit=512)
    assert (made.shortened, whole.shortened) == (True, False)
    assert 89 <= made.length <= 90
    assert made.sequences[0].learned == len(template("llama").answer(chat.messages[:1], "Paris.")) + 1


def test_an_answer_longer_than_the_limit_is_cut_and_teaches_no_end():
    chat = Chat("r", (Message("user", "Tell me."), Message("assistant", "fox " * 80)))
    made = Instruct().encode(chat, template("llama"), limit=90)
    assert (made.shortened, made.length) == (True, 90)
    assert made.sequences[0].learn[-1]
    assert 2 not in made.sequences[0].ids[-40:]


def test_no_head_of_its_own_is_needed():
    assert Instruct().head(32) is None


def test_one_named_column_is_laid_over_what_the_rows_show():
    rows = [Row("a.jsonl:1", {"prompt": "p", "answer": "a", "better": "b"})]
    assert Instruct(answer="better").columns(rows) == {"prompt": "prompt", "answer": "better"}


def test_one_named_column_without_another_part_beside_it_is_refused():
    rows = [Row("a.jsonl:1", {"text": "t", "label": "x", "reply": "r"})]
    with pytest.raises(DataError, match=r"^a\.jsonl: objective\.answer is set, .*; name objective\.prompt and"):
        Instruct(answer="reply").columns(rows)


def test_answers_in_other_scripts_get_the_room_of_their_bytes():
    rows = [Chat("r", (Message("user", "q"), Message("assistant", "\u3042" * 40)))] * 40
    assert Instruct().bind(rows, "decoder").max_new_tokens == 106  # 120 bytes / 2 * 1.5 + 16
