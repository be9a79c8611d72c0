"""Tool calls from a row to the API and back, in every format in which templates write them.

The templates are written after the documentation of the families that they stand for.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bases import template
from tests.tiny import tokenizer
from tunesmith.data.examples.types import Chat
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.data.tokenization.tool_calls import Call, attempts_call, calls_in
from tunesmith.errors import DataError
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.objectives import Instruct
from tunesmith.web.openai.requests import ChatCompletionRequest
from tunesmith.web.openai.responses import CallSplitter, ChatCompletionBuilder, split_calls

FRAME = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}CALLS"
    "{{ END }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EACH = "{% for call in m.tool_calls or [] %}{% set f = call.function %}BODY{% endfor %}"
JSON = "{{ '\n<tool_call>\n' + ({'name': f.name, 'arguments': f.arguments} | tojson) + '\n</tool_call>' }}"
CODER = (
    "{{ '\n<tool_call>\n<function=' + f.name + '>\n' }}{% for k, v in f.arguments | items %}"
    "{{ '<parameter=' + k + '>\n' }}{% if v is mapping or (v is sequence and v is not string) %}{{ v | tojson }}"
    "{% else %}{{ v | string }}{% endif %}{{ '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}"
)
GLM = (
    "{{ '\n<tool_call>' + f.name + '\n' }}{% for k, v in f.arguments | items %}{{ '<arg_key>' + k + '</arg_key>\n' }}"
    "{{ '<arg_value>' + (v if v is string else v | tojson) + '</arg_value>\n' }}{% endfor %}{{ '</tool_call>' }}"
)
DEEPSEEK = (
    "{{ '<|call_begin|>function<|call_sep|>' + f.name + '\n```json\n' + (f.arguments | tojson) + '\n```<|call_end|>' }}"
)
MISTRAL = "{{ '[TOOL_CALLS]' + f.name + '[ARGS]' + (f.arguments | tojson) }}"
KIMI = "{{ 'functions.' + f.name + ':' + loop.index0 | string + '<|call_sep|>' + (f.arguments | tojson) + '\n' }}"
LLAMA = (
    "{% if m.tool_calls and m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls only') }}{% endif %}"
    + EACH.replace("BODY", "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' + (f.arguments | tojson) + '}' }}")
)
WITH_IDS = EACH.replace("BODY", "{{ raise_exception('ids need 9 letters') if not call.id }}" + JSON)
PYTHON = EACH.replace(
    "BODY",
    "{{ '[' + f.name + '(' }}{% for k, v in f.arguments | items %}{{ k + '=' + v | tojson }}{% endfor %}{{ ')]' }}",
)
HARMONY = EACH.replace(
    "BODY",
    "{{ '<|channel|>commentary to=functions.' + f.name + ' <|constrain|>json<|message|>' + (f.arguments | tojson) }}",
)
END = "'<|im_end|>\n'"
# Name -> (template, whether the template itself writes calls that are parsed).
TEMPLATES = {
    "hermes": (FRAME.replace("CALLS", EACH.replace("BODY", JSON)).replace("END", END), True),
    "qwen3-coder": (FRAME.replace("CALLS", EACH.replace("BODY", CODER)).replace("END", END), True),
    "glm": (FRAME.replace("CALLS", EACH.replace("BODY", GLM)).replace("END", END), True),
    "deepseek": (FRAME.replace("CALLS", EACH.replace("BODY", DEEPSEEK)).replace("END", END), True),
    "mistral": (FRAME.replace("CALLS", EACH.replace("BODY", MISTRAL)).replace("END", END), True),
    "kimi": (FRAME.replace("CALLS", EACH.replace("BODY", KIMI)).replace("END", END), True),
    "llama3": (FRAME.replace("CALLS", LLAMA).replace("END", END), True),
    "mistral with ids": (FRAME.replace("CALLS", WITH_IDS).replace("END", END), False),
    "python": (FRAME.replace("CALLS", PYTHON).replace("END", END), False),
    "harmony": (
        FRAME.replace("CALLS", HARMONY).replace("END", "'<|call|>' if m.tool_calls else '<|im_end|>\n'"),
        False,
    ),
    "without tools": (str(template("llama").tokenizer.chat_template), False),
}
MARKS = ["<|call_begin|>", "<|call_sep|>", "<|call_end|>", "[TOOL_CALLS]", "[ARGS]", "<|call|>", "<|message|>"]
PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "really": {"type": "boolean"},
        "items": {"type": "array"},
        "inner": {"type": "object"},
        "nothing": {"type": "null"},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": PARAMETERS}}
    for name in ("look", "look_up")
]
AWKWARD: list[dict[str, Any]] = [
    {},
    {"text": ""},
    {"text": "5", "count": 5},
    {"text": "True", "really": True},
    {"text": "null", "nothing": None},
    {"text": " two\nlines\twith \"quotes\", \\ and 'more' ", "items": ["a\n", '"']},
    {"text": "naïve 日本語 🎉 \u2028 é"},
    {"text": '{"name": "look", "arguments": {}}'},
    {"count": -(2**63), "share": 1.5e-7, "items": [0, [1.25, [[], {}]], {"a": [None, False]}]},
    {"inner": {"name": "look", "arguments": {"deep": {"er": "}"}}}},
    {"text": "a , b . c 's n't <b>x</b> & &amp; {{ jinja }} ```json"},
    {"text": "<|im_end|><|im_start|>assistant\n</tool_call>", "items": ["<|im_end|>"]},
    {"text": "</parameter></function></arg_value></tool_call>"},
]


def made(name: str) -> Template:
    found = copy.deepcopy(template("llama").tokenizer)
    found.add_special_tokens({"additional_special_tokens": MARKS})
    found.chat_template = TEMPLATES[name][0]
    return Template(found)


FORMATS = {name: made(name) for name in TEMPLATES}


def row_of(calls: Sequence[dict[str, Any]], *, second: bool = False) -> Chat:
    """A chat as a file has it: a question, calls, their results and an answer; with `second`, a question before."""
    listed = [
        {"id": f"c{i}", "type": "function", "function": {"name": c["name"], "arguments": json.dumps(c["arguments"])}}
        for i, c in enumerate(calls)
    ]
    turns: list[dict[str, Any]] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes"}] * second
    turns += [{"role": "user", "content": "Look."}, {"role": "assistant", "content": None, "tool_calls": listed}]
    turns += [{"role": "tool", "tool_call_id": f"c{i}", "content": "good"} for i in range(len(calls))]
    turns.append({"role": "assistant", "content": "It is good."})
    line = json.dumps({"messages": turns, "tools": TOOLS})
    (chat,) = Instruct(metric="tool_calls").examples([Row("t.jsonl:1", json.loads(line))], group="")
    assert isinstance(chat, Chat)
    return chat


def completion(form: Template, chat: Chat) -> str:
    """What a model that learned the row says at its last call."""
    asked = chat.messages[: chat.reference_index]
    prompt = form.prompt(asked)
    whole = form.chat(chat.messages[: len(asked) + 1])
    assert whole.ids[: len(prompt)] == prompt
    return form.decode(
        [i for i, learn in zip(whole.ids, whole.learn, strict=True) if learn][-len(whole.ids) + len(prompt) :]
    )


def broken_up(form: Template, value: Any) -> Any:
    """The value as the template gets it: special tokens and closing tags have a space inside."""
    if form.call_format is None:
        return value  # escaped in words, so nothing changes
    return json.loads(
        form.call_format.harmless(Call("f", form.harmless(json.dumps(value, ensure_ascii=False)))).arguments
    )


def through_the_api(text: str, chat: Chat, form: Template) -> list[dict[str, Any]]:
    """The calls of an answer after a body of the API, and the next request that carries them."""
    said, calls = split_calls(text, chat.messages, form)
    last = CompletionChunk(end="stop", prompt_tokens=1, new_tokens=1)
    body = json.dumps(ChatCompletionBuilder("m", form, chat=True).whole(said, [], last, calls)).encode()
    message = json.loads(body)["choices"][0]["message"]
    sent = {"model": "m", "messages": [{"role": "user", "content": "Look."}, message], "tools": TOOLS}
    request = ChatCompletionRequest.model_validate_json(json.dumps(sent))
    return [call.plain() for call in request.messages[1].message().calls]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_calls_itself_only_where_they_are_parsed(name: str):
    assert (FORMATS[name].call_format is not None) == TEMPLATES[name][1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_goes_to_another_process_with_the_format_of_its_calls(name: str):
    form, chat = FORMATS[name], row_of([{"name": "look", "arguments": {"count": 1}}])
    text = completion(form, chat)  # the format has been found
    copied = pickle.loads(pickle.dumps(form))  # as rows are encoded by several cores
    assert copied.in_json(text, chat.messages) == form.in_json(text, chat.messages)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_argument_is_lost_from_the_file_to_the_api_and_back(name: str, several: bool, second: bool):
    form = FORMATS[name]
    for arguments in AWKWARD:
        calls = [{"name": "look_up", "arguments": arguments}, {"name": "look", "arguments": {"count": 1}}]
        chat = row_of(calls[: 1 + several], second=second)
        text = form.in_json(completion(form, chat), chat.messages)
        expected = broken_up(form, calls[: 1 + several])
        assert calls_in(text) == expected
        assert through_the_api(text, chat, form) == expected


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(SCALARS | TEXTS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXTS, v, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=4), st.sampled_from(["hermes", "deepseek", "without tools"]))
def test_any_json_object_comes_back_from_a_format_that_writes_json(arguments: dict[str, Any], name: str):
    form = FORMATS[name]
    chat = row_of([{"name": "look", "arguments": arguments}])
    text = form.in_json(completion(form, chat), chat.messages)
    assert calls_in(text) == [{"name": "look", "arguments": broken_up(form, arguments)}]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_stream_ends_with_the_text_and_the_calls_of_the_whole_answer(data: st.DataObject):
    form = FORMATS[data.draw(st.sampled_from(["hermes", "qwen3-coder", "deepseek", "without tools"]))]
    chat = row_of(
        [{"name": "look", "arguments": arguments} for arguments in data.draw(st.lists(st.sampled_from(AWKWARD)))]
        or [{"name": "other", "arguments": {}}]
    )
    pieces = st.sampled_from(
        ["Well, ", "a < b ", "{x} ", "`code` ", "[1] ", '{"a": ', '{"name": "look", ', "<tool_call>", "\n"]
    )
    before, behind = ("".join(data.draw(st.lists(pieces, max_size=3))) for _ in range(2))
    answer = f"{before}{completion(form, chat)}{behind}".strip()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    parts = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    splitter = CallSplitter(chat.messages, form)
    taken = [splitter.take(part, final=i == len(parts) - 1) for i, part in enumerate(parts)]
    assert ("".join(text for text, _ in taken), [call for _, calls in taken for call in calls]) == split_calls(
        answer, chat.messages, form
    )


def test_an_argument_that_looks_like_a_call_is_not_streamed_as_one():
    form = FORMATS["qwen3-coder"]
    chat = row_of([{"name": "look", "arguments": {"text": '{"name": "look", "arguments": {}}'}}])
    answer = completion(form, chat)
    for cut in range(len(answer)):
        splitter = CallSplitter(chat.messages, form)
        taken = [splitter.take(answer[:cut], final=False), splitter.take(answer[cut:], final=True)]
        assert ("".join(text for text, _ in taken), [call for _, calls in taken for call in calls]) == split_calls(
            answer, chat.messages, form
        )


def test_text_and_each_call_are_streamed_as_soon_as_they_are_certain():
    call = '<tool_call>\n{"name": "look", "arguments": {"count": 1}}\n</tool_call>'
    splitter = CallSplitter(row_of([{"name": "look", "arguments": {}}]).messages, FORMATS["without tools"])
    taken = [splitter.take(piece, final=False) for piece in ("Let me", " see. ", "<tool", f"{call[5:]}\n", call)]
    assert [text for text, _ in taken] == ["Let me", " see.", "", "", ""]
    assert [len(calls) for _, calls in taken] == [0, 0, 0, 1, 1]
    assert splitter.take("", final=True) == ("", [])


def test_half_of_a_pair_of_surrogates_in_a_call_can_be_sent():
    chat = row_of([{"name": "look", "arguments": {}}])
    text = '<tool_call>{"name": "look", "arguments": {"text": "\\ud83d"}}</tool_call>'
    assert through_the_api(text, chat, FORMATS["hermes"]) == [{"name": "look", "arguments": {"text": "\ud83d"}}]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_no_json_is_no_argument(value: str):
    text = f'{{"name": "look", "arguments": {{"share": {value}}}}}'
    assert calls_in(text) == []
    assert attempts_call(text)
    call = {"role": "assistant", "tool_calls": [json.loads(text)]}
    with pytest.raises(DataError, match=r"^t\.jsonl:1: turn 2: tool call without a name or without a JSON object"):
        Instruct(messages="m").examples([Row("t.jsonl:1", {"m": [{"role": "user", "content": "q"}, call]})], group="")


@pytest.mark.parametrize(
    ("text", "attempted"),
    [
        ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', False),
        ('<tool_call>\n{"name": "look", "arguments": {"a": 1}\n</tool_call>', True),
        ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "lo', True),
        ("<tool_call>look()</tool_call>", True),
        ("{'name': 'look', 'arguments': {}}", True),
        ("<function=look><parameter=a>", True),
        ("I would look it up, {but} cannot.", False),
    ],
)
def test_a_call_that_cannot_be_parsed_is_noticed(text: str, attempted: bool):
    assert attempts_call(text) == attempted


@pytest.mark.parametrize("name", ["qwen3-coder", "glm", "deepseek", "hermes"])
def test_a_long_answer_that_ends_inside_a_call_is_read_at_once(name: str):
    chat = row_of([{"name": "look", "arguments": {}}])
    unfinished = {
        "qwen3-coder": "<function=look>" + "<parameter=text>a</parameter>" * 400,
        "glm": "<tool_call>look" + "<arg_key>text</arg_key><arg_value>a</arg_value>" * 400,
        "deepseek": "functionlook\n```json\n{" * 400,
        "hermes": '{"name": "look", "arguments": {"text": ' * 400,
    }[name]
    start = time.process_time()
    assert split_calls(unfinished, chat.messages, FORMATS[name]) == (unfinished, [])
    assert time.process_time() - start < 1


@pytest.mark.parametrize(("result", "content"), [({"a": [1]}, '{"a": [1]}'), ([1, 2], "[1, 2]"), (None, ""), (3, "3")])
def test_a_result_that_is_no_text_is_read_as_json(result: Any, content: str):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": "look"}]}]
    turns += [{"role": "tool", "content": result}, {"role": "assistant", "content": "a"}]
    (chat,) = Instruct(messages="m").examples([Row("t.jsonl:1", {"m": turns})], group="")
    assert isinstance(chat, Chat)
    assert chat.messages[2] == Message("tool", content)


TRL = find_spec("trl")
SHIPPED = sorted((Path(TRL.origin).parent / "chat_templates").glob("*.jinja")) if TRL and TRL.origin else []
# Templates for images, and one that ends a turn in the middle of a chat otherwise than at its end.
NOT_CHATS = ("idefics3", "llava_next", "smolvlm", "phi3", "phi3_5")
NATIVE = ("llama3_1", "llama3_2", "nemotron", "qwen2_5", "qwen3")
SPECIAL = re.compile(
    r"<\|[A-Za-z_]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜\n]+｜>|</?(?:start|end)_of_\w+>|</?s>|\[/?[A-Z_]{3,}\]|\[gMASK\]|<sop>"
)


@pytest.mark.long
@pytest.mark.skipif(not SHIPPED, reason="TRL has the templates of the families")
@pytest.mark.parametrize(
    "path",
    [path for path in SHIPPED if not path.stem.endswith("_training") and path.stem not in NOT_CHATS],
    ids=lambda path: path.stem,
)
def test_no_row_is_lost_in_the_templates_that_the_families_ship(path: Path):
    source = path.read_text(encoding="utf-8")
    end = "<｜end▁of▁sentence｜>" if "<｜" in source else "<|endoftext|>"
    special = tuple(dict.fromkeys([end, "<bos>", *SPECIAL.findall(source)]))
    form = Template(
        tokenizer(special, chat=source, eos_token=end, **({"bos_token": "<bos>"} if "bos_token" in source else {}))
    )
    assert (form.call_format is not None) == (path.stem.startswith(NATIVE) and path.stem != "qwen2_5_vl")
    for arguments in AWKWARD[1::2]:
        calls = [{"name": "look_up", "arguments": arguments}, {"name": "look", "arguments": {"count": 1}}]
        chat = row_of(calls, second=True)
        assert all(tokens.learned for tokens in form.rows(chat.messages))
        *context, called = chat.messages[: chat.reference_index + 1 or None]
        prompt = form.prompt(context)
        history = [replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in context]
        (*_, tokens) = form.rows([*history, called])
        assert tokens.ids[: len(prompt)] == prompt
        text = form.in_json(form.decode(tokens.ids[len(prompt) :]).strip(), chat.messages)
        assert calls_in(text) == broken_up(form, calls)
