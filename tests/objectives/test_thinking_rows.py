"""Rows with thoughts, and with excluded and weighted answers: how they are read, and what is learned of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import folder, policy, template
from tests.drafts import draft
from tunesmith.data.audit.row_view import view
from tunesmith.data.examples.types import Chat, Pair
from tunesmith.data.readers.row import Row
from tunesmith.data.schema.formats import detect
from tunesmith.data.tokenization.chat_template import Encoded, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError
from tunesmith.models.batch import collate
from tunesmith.objectives import Instruct, Preference
from tunesmith.pipelines.compare.tuned_arms import as_row
from tunesmith.training.fit import accumulate_gradients
from tunesmith.training.read import Reader

ASK = {"role": "user", "content": "2+2?"}
END = "<|im_end|>"
THOUGHT = "<think>\ntwo and two\n</think>\n\n"


def rows(*fields: dict[str, Any]) -> list[Row]:
    return [Row(f"t.jsonl:{number}", own) for number, own in enumerate(fields, 1)]


def read(fields: dict[str, Any], **keys: Any) -> Chat:
    (chat,) = Instruct(**keys).examples(rows(fields), group="")
    assert isinstance(chat, Chat)
    return chat


def taught(encoded: list[Encoded], kind: str = "qwen3") -> list[str]:
    tokens = [row.sequences[0] for row in encoded]
    return [
        str(template(kind).tokenizer.decode([i for i, learn in zip(t.ids, t.learn, strict=True) if learn]))
        for t in tokens
    ]


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": "4", "reasoning_content": "two and two"},
        {"role": "assistant", "content": "4", "reasoning": " two and two\n"},
        {"role": "assistant", "content": "4", "thinking": "two and two"},
        {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"},
        {"role": "assistant", "content": "two and two\n</think>\n4"},
        {"role": "gpt", "content": [{"type": "text", "text": "<think>two and two</think>4"}]},
    ],
)
def test_thoughts_of_a_turn_are_read_apart_from_its_answer(answer: dict[str, Any]):
    assert read({"messages": [ASK, answer]}).messages[1] == Message("assistant", "4", thoughts="two and two")


@pytest.mark.parametrize("column", ["reasoning_content", "reasoning", "thinking", "thoughts"])
def test_thoughts_in_a_column_belong_to_the_answer(column: str):
    found = detect(rows({"prompt": "2+2?", "completion": "4", column: "two and two"}))
    assert found.columns == {"thoughts": column, "prompt": "prompt", "answer": "completion"}
    assert "thoughts before the answer" in found.explain()
    chat = read({"prompt": "2+2?", "completion": "4", column: "two and two"})
    assert chat.messages[1] == Message("assistant", "4", thoughts="two and two")


def test_a_column_of_thoughts_may_be_named_and_may_be_blank():
    keys = {"prompt": "q", "answer": "a", "thoughts": "why"}
    assert read({"q": "2+2?", "a": "4", "why": "sum"}, **keys).messages[1].thoughts == "sum"
    assert read({"q": "2+2?", "a": "4", "why": ""}, **keys).messages[1].thoughts == ""


def test_thoughts_beside_named_columns_are_read_and_may_be_missing_in_other_files():
    named = Instruct(prompt="q", answer="a")
    assert named.columns(rows({"q": "2+2?", "a": "4", "reasoning": "sum"}))["thoughts"] == "reasoning"
    assert "thoughts" not in named.columns(rows({"q": "2+2?", "a": "4", "reasoning": ["sum"]}))
    with_column = Instruct(prompt="q", answer="a", thoughts="why")
    assert with_column.columns(rows({"q": "2+2?", "a": "4"})) == {"prompt": "q", "answer": "a"}
    with pytest.raises(DataError, match="^objective.thoughts: no training row has text in 'why'; name another column"):
        with_column.template_notes([PLAIN], template("qwen3"))


def test_a_test_file_without_thoughts_is_read_by_the_columns_of_the_training_file():
    read_rows = Reader(Instruct(), "")
    first = read_rows(rows({"prompt": "2+2?", "completion": "4", "reasoning": "sum"}))
    (second,) = read_rows(rows({"prompt": "3+3?", "completion": "6"}))
    assert isinstance(first[0], Chat)
    assert isinstance(second, Chat)
    assert (first[0].messages[1].thoughts, second.messages[1]) == ("sum", Message("assistant", "6"))


def test_a_chat_written_as_a_row_is_read_back_with_thoughts_and_weights():
    turns = (*THINKING.messages, Message("user", "more"), Message("assistant", "5", thoughts="hm", weight=0.5))
    chat = Chat("t.jsonl:1", turns, thinking="mask")
    assert read(as_row(chat)) == chat


@pytest.mark.parametrize("mode", ["auto", "learn", "mask", "drop", "keep"])
def test_a_row_may_decide_about_its_own_thoughts(mode: str):
    chat = read({"prompt": "2+2?", "completion": "<think>x</think>4", "thinking": mode})
    assert (chat.thinking, chat.messages[1].thoughts) == (mode, "x")
    assert Instruct(thinking="learn").mode_of(chat) == mode
    found = detect(rows({"prompt": "2+2?", "completion": "4", "thinking": mode}))
    assert "thoughts" not in found.columns
    assert "thinking" not in found.ignored


def test_turns_are_excluded_and_weighted():
    said = [
        ASK,
        {"role": "assistant", "content": "a", "train": False},
        ASK,
        {"role": "assistant", "content": "b", "weight": 0.5},
        ASK,
        {"role": "assistant", "content": "c", "loss": "true", "weight": "2"},
        ASK,
        {"role": "assistant", "content": "d", "weight": 0},
    ]
    chat = read({"messages": said})
    assert [message.weight for message in chat.messages if message.role == "assistant"] == [0.0, 0.5, 2.0]
    assert chat.messages[-1].content == "c"  # context behind the last learned answer is not needed


# ------------------------------------------------------------------ what is learned


def encode(chat: Chat, kind: str = "qwen3", limit: int = 512, **keys: Any) -> list[Encoded]:
    return Instruct(**keys).encode_all(chat, template(kind), limit=limit)


THINKING = Chat("r", (Message("user", "2+2?"), Message("assistant", "4", thoughts="two and two")))
PLAIN = Chat("r", (Message("user", "2+2?"), Message("assistant", "4")))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("auto", THOUGHT + "4" + END),
        ("learn", THOUGHT + "4" + END),
        ("keep", THOUGHT + "4" + END),
        ("mask", "4" + END),
        ("drop", "4" + END),
    ],
)
def test_thoughts_are_learned_masked_or_dropped(mode: str, expected: str):
    (row,) = encode(THINKING, thinking=mode)
    assert taught([row]) == [expected]
    shown = template("qwen3").tokenizer.decode(row.sequences[0].ids)
    assert ("two and two" in shown) is (mode != "drop")
    assert ("<think>\n\n</think>" in shown) is (mode == "drop")


@pytest.mark.parametrize("mode", ["auto", "learn", "mask", "drop", "keep"])
def test_a_row_without_thoughts_is_trained_with_thinking_off(mode: str):
    (row,) = encode(PLAIN, thinking=mode)
    assert row == encode(PLAIN, thinking="drop")[0]
    assert taught([row]) == ["4" + END]


def test_a_chat_with_thoughts_has_one_row_per_learned_answer():
    turns = (*THINKING.messages, Message("user", "more"), Message("assistant", "5", thoughts="hm"))
    excluded = (*THINKING.messages, *PLAIN.messages, turns[2], turns[3])
    assert taught(encode(Chat("r", turns))) == [THOUGHT + "4" + END, "<think>\nhm\n</think>\n\n5" + END]
    assert len(encode(Chat("r", excluded))) == 3
    first, *others = excluded
    silent = Chat("r", (first, Message("assistant", "4", weight=0.0), *others[1:]))
    assert taught(encode(silent)) == ["4" + END, "<think>\nhm\n</think>\n\n5" + END]


def test_thoughts_that_do_not_fit_are_not_learned_without_their_end():
    long = Chat("r", (Message("user", "2+2?"), Message("assistant", "4", thoughts="two and two " * 40)))
    (row,) = encode(long, limit=60)
    assert (len(row.sequences[0].ids), row.sequences[0].learned, row.shortened) == (60, 0, True)
    form, encoded = template("qwen3"), [row, *encode(PLAIN, limit=60)]
    assert Instruct().encoded_notes([long, PLAIN], encoded, form, limit=60) == [
        "1 of 2 rows are not learned: their thoughts do not fit into 60 tokens; raise data.max_tokens"
    ]
    assert Instruct().encoded_notes([PLAIN], encoded[1:], form, limit=60) == []
    assert Instruct().encoded_notes([long, PLAIN], encode(long, limit=900), form, limit=900) == []


def test_a_model_without_thoughts_drops_them_with_a_note():
    assert taught(encode(THINKING, "llama"), "llama") == ["4" + END]
    assert Instruct().template_notes([THINKING, PLAIN], template("llama")) == [
        "thoughts of 1 of 2 rows are dropped: the chat template of this model has none"
    ]
    assert Instruct().template_notes([PLAIN], template("llama")) == []
    assert Instruct(thinking="mask").template_notes([THINKING, PLAIN], template("qwen3")) == [
        "thoughts of 1 of 2 rows are trained with thinking on, 1 of them masked; the other rows with thinking off"
    ]


@pytest.mark.parametrize("mode", ["learn", "mask", "keep"])
def test_a_model_without_thoughts_refuses_what_needs_them_in_a_line_with_the_fix(mode: str):
    with pytest.raises(
        DataError, match=f"^objective.thinking: {mode}, but .* use thinking: drop, or a model that"
    ) as e:
        Instruct(thinking=mode).template_notes([PLAIN], template("llama"))
    assert "\n" not in str(e.value)
    own = Chat("t.jsonl:7", THINKING.messages, thinking=mode)
    with pytest.raises(DataError, match=rf"^t\.jsonl:7: thinking: {mode}, but "):
        Instruct().template_notes([own], template("llama"))


def test_both_answers_of_a_preference_have_thoughts_or_neither():
    ask = (Message("user", "2+2?"),)
    both = Pair("r", ask, "<think>a</think>4", "<think>b</think>5")
    encoded = Preference().encode(both, template("qwen3"), limit=256)
    found = [
        template("qwen3").tokenizer.decode([i for i, y in zip(s.ids, s.learn, strict=True) if y])
        for s in encoded.sequences
    ]
    assert found == ["<think>\na\n</think>\n\n4" + END, "<think>\nb\n</think>\n\n5" + END]
    with pytest.raises(DataError, match="^r: only one of chosen and rejected has thoughts; give both or neither"):
        Preference().encode(Pair("r", ask, "<think>a</think>4", "5"), template("qwen3"), limit=256)


# ------------------------------------------------------------------ weights


def test_the_loss_and_its_gradient_are_the_weighted_mean_over_the_learned_tokens():
    """Against transformers' own logits: sum of w * nll over sum of w, in any cut into micro-batches."""
    from transformers import AutoModelForCausalLM

    weighted = [
        Tokens([5, 9, 30, 41, 77], [False, True, True, True, True], [0.0, 0.5, 0.5, 2.0, 2.0]),
        Tokens([8, 12, 60, 61], [False, False, True, True]),
        Tokens([90, 14, 15], [False, True, False], [0.0, 0.25, 0.0]),
    ]
    network = AutoModelForCausalLM.from_pretrained(folder("llama"))
    total, units = torch.zeros(()), 0.0
    for row in weighted:
        logs = network(torch.tensor([row.ids])).logits[0].log_softmax(dim=1)
        for i in range(1, len(row.ids)):
            weight = (row.weights or [float(learn) for learn in row.learn])[i]
            total = total - weight * logs[i - 1, row.ids[i]]
            units += weight
    (total / units).backward()
    expected = {name: value.grad for name, value in network.named_parameters()}
    for cut in ([3], [1, 2], [1, 1, 1]):
        made, rest = policy("llama"), [Encoded((tokens,), "r") for tokens in weighted]
        for value in made.network.parameters():
            value.requires_grad_(True)
        batches = [collate([rest.pop(0) for _ in range(size)]) for size in cut]
        loss, _ = accumulate_gradients(made, Instruct(), batches)
        assert loss == pytest.approx(float(total.detach() / units), rel=1e-5)
        for name, value in made.network.named_parameters():
            if value.grad is not None:
                torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_weights_of_one_are_the_loss_without_weights():
    ids, learn = [5, 9, 30, 41], [False, True, True, True]
    made = policy("llama")
    plain = Instruct().loss(collate([Encoded((Tokens(ids, learn),), "r")]), made)
    same = Instruct().loss(collate([Encoded((Tokens(ids, learn, [0.0, 1.0, 1.0, 1.0]),), "r")]), made)
    assert float(plain.total.detach()) == pytest.approx(float(same.total.detach()), rel=1e-6)
    assert (plain.units, same.units) == (3, 3.0)


# ------------------------------------------------------------------ init and audit


def test_init_counts_the_rows_with_thoughts(tmp_path: Path):
    file = tmp_path / "sums.jsonl"
    lines = [{"prompt": f"{i}+1?", "completion": str(i + 1), "reasoning": f"{i} and one"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    made = draft(str(file))
    objective = made.recipe.objective
    assert isinstance(objective, Instruct)
    assert (objective.thoughts, objective.thinking) == ("reasoning", "auto")
    assert "40 of 40 rows have thoughts" in made.reasons["objective.thinking"]


def test_audit_finds_no_contradiction_in_two_ways_of_thinking_and_lists_thoughts_without_an_end():
    columns = {"prompt": "prompt", "answer": "completion"}
    views = [view(row, columns) for row in rows(*({"prompt": "q", "completion": f"<think>{i}</think>4"} for i in "ab"))]
    assert views[0] == views[1]
    (broken,) = rows({"prompt": "q", "completion": "<think>endless"})
    assert view(broken, columns).problem == "unreadable"
    assert "thoughts that do not end" in view(broken, columns).why
    (chat,) = rows({"messages": [ASK, {"role": "assistant", "content": "<think>x</think>4"}]})
    assert view(chat, {"messages": "messages"}).answer == "4"
