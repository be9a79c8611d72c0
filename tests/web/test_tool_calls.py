"""A model that learned to call functions: Python, the server and its stream return the calls of the row."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import torch

from tests.bases import base, folder, policy, template
from tests.data.test_call_formats import TEMPLATES
from tests.engine_stub import engine_stub
from tests.served import Served, served, served_outside
from tunesmith.data.readers.row import Row
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.inference.engine_server import EngineServer
from tunesmith.inference.identify import ModelManifest, find_model
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load, save_model
from tunesmith.inference.serving.backends.openai_server import EngineBackend
from tunesmith.inference.serving.protocol import Limits
from tunesmith.models.batch import collate
from tunesmith.models.loading.checkpoint import write_folder
from tunesmith.objectives import Instruct
from tunesmith.objectives.instruct import asked
from tunesmith.techniques import Full

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "object"}}}}}]
CALLS = [{"name": "look", "arguments": {"at": {"a": ["é\n", None, 1.5]}}}, {"name": "look", "arguments": {}}]
ASKED = [{"role": "user", "content": "Look."}]
ANSWER = {
    "role": "assistant",
    "content": "I look.",
    "tool_calls": [
        {"type": "function", "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])}}
        for call in CALLS
    ],
}


def learned(out: Path, source: str) -> Path:
    """A run folder with a tiny model that knows one row by heart."""
    tokenizer = copy.deepcopy(template("llama").tokenizer)
    tokenizer.chat_template = source
    form, objective, made = Template(tokenizer), Instruct(max_new_tokens=300), policy("llama", Full())
    (chat,) = objective.examples([Row("t.jsonl:1", {"messages": [*ASKED, ANSWER], "tools": TOOLS})], group="")
    batch = collate([objective.encode(chat, form, limit=1024)])
    optimizer = torch.optim.Adam([value for _, value in made.trainable()], lr=1e-2)
    made.train(True)
    for _ in range(300):
        loss = objective.loss(batch, made)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        if loss.total.item() < 0.02 * loss.units:
            break
    made.train(False)
    about = ModelManifest(
        base=str(folder("llama")),
        fingerprint=base("llama").fingerprint,
        family="decoder",
        objective=objective,
        technique=Full(),
        template_hash=form.hash,
        limit=1024,
    )
    model = LocalModel(made, form, objective, 1024)
    write_folder(out / "model", lambda half: save_model(half, model, about))
    return out


@contextmanager
def over_vllm(run: Path) -> Iterator[Served]:
    """The server before a program that speaks vLLM's protocol."""
    with engine_stub(find_model(run)) as stub:
        program = EngineBackend({"run": run}, EngineServer(stub.url, offline=True), offline=True)
        with served_outside(program, limits=Limits(rows=2)) as server:
            yield server


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, "torch") for name in ("without tools", "hermes", "qwen3-coder", "mistral")),
        ("hermes", "vllm"),
    ],
)
def test_the_calls_of_the_server_and_of_its_stream_are_those_of_python_and_of_the_row(
    name: str, engine: str, tmp_path: Path
):
    run = learned(tmp_path / "run", TEMPLATES[name][0])
    model = load(run)
    assert (model.template.call_format is not None) == TEMPLATES[name][1]
    row = Row("t.jsonl:1", {"messages": [*ASKED, ANSWER], "tools": TOOLS})
    (chat,) = Instruct(metric="tool_calls").examples([row], group="")
    reply = model.reply(asked(chat))
    assert reply.calls == CALLS
    with over_vllm(run) if engine == "vllm" else served({"run": [run]}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        whole = client.chat.completions.create(model="run", messages=ASKED, tools=TOOLS).choices[0]
        parts = list(client.chat.completions.create(model="run", messages=ASKED, tools=TOOLS, stream=True))
        assert server.bugs == []
    deltas = [part.choices[0].delta for part in parts]
    streamed = [call for delta in deltas for call in delta.tool_calls or []]
    for calls in (whole.message.tool_calls, streamed):
        plain = [{"name": c.function.name, "arguments": json.loads(c.function.arguments)} for c in calls]
        assert plain == CALLS
    assert [call.index for call in streamed] == [0, 1]
    assert whole.message.content == "".join(delta.content or "" for delta in deltas) == "I look."
    assert whole.finish_reason == parts[-1].choices[0].finish_reason == "tool_calls"
    sent = {"role": "assistant", "content": whole.message.content, "tool_calls": whole.message.tool_calls}
    turns = [*ASKED, json.loads(json.dumps(sent, default=lambda call: call.model_dump()))]
    (again,) = Instruct(metric="tool_calls").examples([Row("t.jsonl:2", {"messages": turns, "tools": TOOLS})], group="")
    assert again.messages == chat.messages  # what the API sent is the row again
