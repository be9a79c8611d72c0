"""Chats that call tools: what is read, what is learned, and what counts as right."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from tests.bases import policy, template
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import Call
from tunesmith.errors import DataError
from tunesmith.metrics.scores import tool_calls
from tunesmith.models.batch import collate
from tunesmith.objectives import Instruct
from tunesmith.objectives.instruct import asked, reference

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLED = {"function": {"name": "weather", "arguments": '{"city": "Paris", "days": 2}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [CALLED]},
    {"role": "tool", "content": "good"},
    {"role": "assistant", "content": "It is good."},
]
# As Qwen 2.5 writes tools; `generation` marks for transformers what an assistant said.
KNOWS_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content }}{% for call in m.tool_calls or [] %}{% set f = call.function %}"
    "{{ '<tool_call>' + ({'name': f.name, 'arguments': f.arguments} | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# Nearly as Qwen 3 Coder writes calls, but lists are no JSON.
XML = KNOWS_TOOLS.replace(
    "{{ '<tool_call>' + ({'name': f.name, 'arguments': f.arguments} | tojson) + '</tool_call>' }}",
    "{{ '<tool_call><function=' + f.name + '>' }}{% for k, v in f.arguments | items %}"
    "{{ '<parameter=' + k + '>' + v | string + '</parameter>' }}{% endfor %}{{ '</function></tool_call>' }}",
)


def chat(metric: str = "rouge_l", **more: Any) -> Chat:
    row = Row("t.jsonl:1", {"messages": TURNS, "tools": json.dumps([WEATHER])} | more)
    (found,) = Instruct(messages="messages", metric=metric).examples([row], group="")
    assert isinstance(found, Chat)
    return found


def knowing(source: str = KNOWS_TOOLS) -> Template:
    tokenizer = copy.deepcopy(template("llama").tokenizer)
    tokenizer.chat_template = source
    return Template(tokenizer)


def test_tools_stand_on_the_first_turn_and_calls_on_theirs():
    found = chat()
    assert json.loads(found.messages[0].tools) == [WEATHER]
    assert found.messages[4] == Message("assistant", "", (Call("weather", '{"city": "Paris", "days": 2}'),))


def test_a_sharegpt_turn_is_read_as_the_same_call():
    said = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'},
        {"from": "observation", "value": "good"},
        {"from": "gpt", "value": "It is good."},
    ]
    (found,) = Instruct().examples([Row("t.jsonl:1", {"conversations": said})], group="")
    assert isinstance(found, Chat)
    assert found.messages[1].calls == chat().messages[4].calls


@pytest.mark.parametrize(
    ("turn", "finding"),
    [
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "tool call without a name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "without a name or without a JSON object of arguments",
        ),
        ({"role": "assistant", "tool_calls": 5}, "expected a list of tool_calls; write each"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 100_000}]},
            "without a name or without a JSON object of arguments",
        ),
        ({"role": "user", "content": "q", "tool_calls": [CALLED]}, r"\(user\): tool call"),
    ],
)
def test_a_call_that_is_none_is_refused_with_its_place(turn: dict[str, Any], finding: str):
    turns = [{"role": "user", "content": "q"}, turn] if turn["role"] == "assistant" else [turn, TURNS[-1]]
    with pytest.raises(DataError, match=rf"^t\.jsonl:1: turn [12].*{finding}"):
        Instruct(messages="m").examples([Row("t.jsonl:1", {"m": turns})], group="")


def test_tools_that_are_no_list_are_refused():
    with pytest.raises(DataError, match=r"^t\.jsonl:1: expected tools as a list of objects with a name; write each"):
        chat(tools={"name": "weather"})
    with pytest.raises(DataError, match=r"^t\.jsonl:1: tools are invalid JSON; write a list"):
        chat(tools="weather")


@pytest.mark.parametrize("tools", [[{"function": "x"}], [{"function": None}], [{"type": "function"}], "[" * 100_000])
def test_a_tool_that_is_no_object_with_a_name_is_refused(tools: Any):
    with pytest.raises(
        DataError, match=r"^t\.jsonl:1: (tools are invalid JSON|expected tools as a list of objects with a name); write"
    ):
        chat(tools=tools)


def test_all_that_the_assistant_said_and_called_is_learned_and_nothing_else():
    form = knowing()
    (made,) = Instruct().encode(chat(), form, limit=512).sequences
    told = form.tokenizer.decode([i for i, learn in zip(made.ids, made.learn, strict=True) if learn])
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>'
    assert told == f"Yes<|im_end|>{call}<|im_end|>It is good.<|im_end|>"


def test_the_first_loss_with_tools_and_many_turns_is_the_one_of_transformers_own_mask():
    form, made, objective = knowing(), policy("llama"), Instruct()
    turns = copy.deepcopy(TURNS)
    turns[4]["tool_calls"][0]["function"]["arguments"] = {"city": "Paris", "days": 2}
    theirs = form.tokenizer.apply_chat_template(
        turns, tools=[WEATHER], return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    mask = torch.tensor([theirs["assistant_masks"]]).bool()
    ids = torch.tensor([theirs["input_ids"]])
    row = objective.encode(chat(), form, limit=512)
    batch = collate([row])
    with torch.no_grad():
        loss = objective.loss(batch, made)
        mean = made.network(input_ids=ids, labels=torch.where(mask, ids, -100)).loss
    assert row.sequences[0].ids == ids[0].tolist()
    assert loss.units == int(mask.sum())
    assert loss.total.item() / loss.units == pytest.approx(mean.item(), rel=1e-4)


def test_a_template_without_tools_gets_them_in_words():
    form = template("llama")
    text = form.tokenizer.decode(form.chat(chat().messages).ids)
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>" in text
    assert "<|im_start|>user\n<tool_response>\ngood\n</tool_response><|im_end|>" in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call><|im_end|>' in text


def test_a_template_whose_calls_cannot_be_parsed_gets_them_in_words_so_that_a_perfect_call_scores():
    form, by_calls = knowing(XML), chat(metric="tool_calls")
    assert XML != KNOWS_TOOLS
    assert form.call_format is None  # it writes lists as Python does
    (made,) = Instruct().encode(by_calls, form, limit=512).sequences
    told = form.decode([i for i, learn in zip(made.ids, made.learn, strict=True) if learn])
    assert tool_calls([reference(by_calls)], [told]).tolist() == [1]


def test_a_chat_without_tools_is_written_as_ever():
    plain = [Message(turn["role"], turn["content"]) for turn in TURNS[:4]]
    said = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in plain)
    assert template("llama").tokenizer.decode(template("llama").prompt(plain)) == said + "<|im_start|>assistant\n"


def test_an_argument_cannot_close_a_turn():
    form = knowing()
    call = Call("weather", json.dumps({"city": "<|im_end|>"}))
    made = form.chat([Message("user", "q"), Message("assistant", "", (call,))])
    assert made.ids.count(2) == 2


def test_by_calls_a_chat_is_judged_by_its_last_call_else_by_its_last_answer():
    assert reference(chat()) == "It is good."
    by_calls = chat(metric="tool_calls")
    assert asked(by_calls) == list(by_calls.messages[:4])
    assert tool_calls([reference(by_calls)], ['{"name": "weather", "arguments": {"days": 2, "city": "Paris"}}']) == [1]


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": 1, "b": {"c": [2]}}}</tool_call>', 1),
        ('Sure: {"name": "f", "parameters": {"b": {"c": [2]}, "a": 1}} there.', 1),
        ('{"name": "f", "arguments": {"a": 1}}', 0),
        ('{"name": "g", "arguments": {"a": 1, "b": {"c": [2]}}}', 0),
        ('{"name": "f", "arguments": {"a": 1, "b": {"c": [2]}', 0),
        ("I cannot.", 0),
    ],
)
def test_a_call_is_right_when_name_and_arguments_are_equal(given: str, right: int):
    gold = '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": {"c": [2]}}}\n</tool_call>'
    assert tool_calls([gold], [given]).tolist() == [right]


@pytest.mark.parametrize(
    ("gold", "given", "right"),
    [
        ("true", "1", 0),
        ("[0, {}]", "[false, {}]", 0),
        ("true", "true", 1),
        ("1", "1.0", 1),
        ('{"b": 0}', '{"b": 0.0}', 1),
    ],
)
def test_a_boolean_is_no_number_and_a_whole_number_may_have_a_point(gold: str, given: str, right: int):
    called = '{{"name": "f", "arguments": {{"a": {}}}}}'
    assert tool_calls([called.format(gold)], [called.format(given)]).tolist() == [right]


def test_where_nothing_was_to_be_called_nothing_may_be():
    assert tool_calls(["It is good."] * 2, ["Good.", '{"name": "f", "arguments": {}}']).tolist() == [1, 0]


def test_a_call_with_its_arguments_as_parameters_keeps_them():
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "weather", "parameters": {"city": "Oslo"}}]}
    (chat,) = Instruct(messages="m").examples([Row("r:1", {"m": [TURNS[1], called]})], group="")
    assert isinstance(chat, Chat)
    assert chat.messages[-1].calls == (Call("weather", '{"city": "Oslo"}'),)


def test_a_column_of_tools_that_is_named_is_read_or_refused():
    row = Row("r:1", {"messages": [TURNS[1], TURNS[2]], "functions": [WEATHER], "system": "Be kind."})
    (chat,) = Instruct(tools="functions").examples([row], group="")
    (named,) = Instruct(messages="messages", tools="functions").examples([row], group="")
    assert isinstance(chat, Chat)
    assert isinstance(named, Chat)
    assert "weather" in chat.messages[0].tools
    assert [message.content for message in named.messages][:1] == ["Be kind."]
    with pytest.raises(DataError, match=r"no column 'function'; did you mean 'functions'\?"):
        Instruct(tools="function").examples([row], group="")


def test_a_chat_whose_tools_are_too_long_keeps_its_question():
    many = json.dumps([WEATHER] * 20)
    chat = [Message("user", "Weather in Paris?", tools=many), Message("assistant", "Good.")]
    assert template("llama").fit(chat, 60) == (chat, False)


def test_tools_and_a_system_text_beside_a_prompt_and_an_answer_are_read():
    fields = {"system": "Be brief.", "question": "Is it wet?", "answer": "Yes.", "tools": [WEATHER]}
    for named in (Instruct(), Instruct(prompt="question", answer="answer")):
        (found,) = named.examples([Row("t.jsonl:1", fields)], group="")
        assert isinstance(found, Chat)
        assert found.messages[0].content == "Be brief."
        assert "weather" in found.messages[0].tools


def test_calls_are_scored_only_where_there_are_some():
    (found,) = Instruct(metric="tool_calls").examples([Row("t.jsonl:1", {"prompt": "q", "answer": "a"})], group="")
    with pytest.raises(DataError, match=r"^objective\.metric: tool_calls, and no answer of the rows calls a tool"):
        Instruct(metric="tool_calls").bind([found], "decoder")


HERMES = [
    {"from": "system", "value": "Call as <tool_call>."},
    {"from": "human", "value": "Weather in Paris?"},
    {
        "from": "gpt",
        "value": '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
    },
    {"from": "tool", "value": "<tool_response>\ngood\n</tool_response>"},
    {"from": "gpt", "value": "It is good."},
]


def test_a_text_that_is_nothing_but_marked_calls_is_read_as_calls_and_a_marked_result_as_a_result():
    (found,) = Instruct(metric="tool_calls").examples([Row("t.jsonl:1", {"conversations": HERMES})], group="")
    assert isinstance(found, Chat)
    assert found.messages[2] == chat().messages[4]
    assert found.messages[3] == Message("tool", "good")
    assert Instruct(metric="tool_calls").bind([found], "decoder").metric == "tool_calls"
    text = template("llama").tokenizer.decode(template("llama").chat(found.messages).ids)
    assert text.count("<tool_response>") == 1


@pytest.mark.parametrize("several", [False, True])
def test_json_alone_beside_tools_is_learned_in_the_form_that_the_prompt_asks_for(several: bool):
    call = {"name": "weather", "arguments": {"city": "Paris"}}
    fields = {"query": "q", "tools": json.dumps([WEATHER]), "answers": json.dumps([call] * 2 if several else call)}
    objective = Instruct(prompt="query", answer="answers", metric="tool_calls")
    (found,) = objective.examples([Row("t.jsonl:1", fields)], group="")
    assert isinstance(found, Chat)
    assert [one.plain() for one in found.messages[-1].calls] == [call] * (1 + several)
    assert objective.bind([found], "decoder").metric == "tool_calls"
    text = template("llama").tokenizer.decode(template("llama").chat(found.messages).ids)
    assert text.endswith("</tool_call><|im_end|>\n")


@pytest.mark.parametrize(
    "answer", ['I look: <tool_call>{"name": "f", "arguments": {}}</tool_call>', "<tool_call>no</tool_call>", "[]", "{}"]
)
def test_a_text_that_is_more_than_calls_stays_as_it_is(answer: str):
    (found,) = Instruct().examples([Row("t.jsonl:1", {"prompt": "q", "answer": answer, "tools": [WEATHER]})], group="")
    assert isinstance(found, Chat)
    assert found.messages[-1] == Message("assistant", answer)


def test_json_alone_without_tools_is_an_answer_like_any_other_and_can_be_scored_as_a_call():
    answer, objective = '{"name": "f", "arguments": {}}', Instruct(metric="tool_calls")
    (found,) = objective.examples([Row("t.jsonl:1", {"prompt": "q", "answer": answer})], group="")
    assert isinstance(found, Chat)
    assert found.messages[-1] == Message("assistant", answer)
    assert objective.bind([found], "decoder").metric == "tool_calls"
