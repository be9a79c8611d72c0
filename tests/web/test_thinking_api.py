"""Thoughts through the HTTP API: apart from the answer, whole and in pieces, by every name of the switch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import tunesmith
from tests.bases import template
from tests.served import Served, save_run, served, served_outside
from tests.thinking import ANSWER, KIND, THOUGHTS, UNFINISHED, WHOLE, dictate, ids_of
from tunesmith.cli.options import UsageError
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.backends.external import ExternalModel
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.protocol import Limits
from tunesmith.inference.serving.request import GenerationRequest
from tunesmith.objectives import Instruct
from tunesmith.techniques import Lora

ASKED: Any = [{"role": "user", "content": "What is 2 + 2?"}]
OFF: list[dict[str, Any]] = [
    {"enable_thinking": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"reasoning_effort": "none"},
]
ON: list[dict[str, Any]] = [
    {},
    {"enable_thinking": True},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"reasoning_effort": "medium"},
    {"chat_template_kwargs": {"reasoning_effort": "low"}},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that thinks by default, one that does not, and one whose model cannot."""
    folder = tmp_path_factory.mktemp("runs")
    thinking = Instruct(max_new_tokens=40, max_thinking_tokens=60, think_by_default=True)
    save_run(folder / "thinks", Lora(rank=4), thinking, kind=KIND)
    save_run(folder / "quiet", Lora(rank=4), thinking.model_copy(update={"think_by_default": False}), kind=KIND)
    save_run(folder / "plain", Lora(rank=4))
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        dictate(patch, ids_of(WHOLE), off=ids_of(ANSWER))
        with served({name: [runs / name] for name in ("thinks", "quiet", "plain")}) as found:
            yield found
            assert found.bugs == []


def sent(server: Served, model: str = "thinks", **more: Any) -> httpx2.Response:
    body = {"model": model, "messages": ASKED, **more}
    return httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.parametrize("switch", ON)
def test_thoughts_are_apart_from_the_answer(server: Served, switch: dict[str, Any]):
    body = sent(server, **switch).json()
    message, usage = body["choices"][0]["message"], body["usage"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHTS, ANSWER)
    count = len(ids_of(WHOLE.partition("\n\n")[0], end=False))
    assert usage["completion_tokens_details"] == {"reasoning_tokens": count}
    assert usage["completion_tokens"] == len(ids_of(WHOLE, end=False)) > count


@pytest.mark.parametrize("switch", OFF)
def test_without_thinking_there_are_no_thoughts(server: Served, switch: dict[str, Any]):
    body = sent(server, **switch).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_the_default_is_the_mode_of_training(server: Served):
    assert "reasoning_content" not in sent(server, "quiet").json()["choices"][0]["message"]
    assert sent(server, "quiet", enable_thinking=True).json()["choices"][0]["message"]["reasoning_content"] == THOUGHTS
    listed = httpx2.get(f"{server.url}/v1/models").json()["data"]
    about = {model["id"]: model.get("thinking") for model in listed}
    assert about["thinks"] == {"default": True, "switch": "enable_thinking"}
    assert about["quiet"]["default"] is False
    assert about["plain"] is None


def test_a_stream_has_the_thoughts_in_pieces_of_their_own(server: Served):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    parts = list(
        client.chat.completions.create(
            model="thinks", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [part.choices[0].delta for part in parts if part.choices]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(thoughts) == THOUGHTS
    assert sum(map(bool, thoughts)) > 1
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    last_thought = max(index for index, text in enumerate(thoughts) if text)
    assert not any(delta.content for delta in deltas[:last_thought])
    assert parts[-1].usage.completion_tokens_details.reasoning_tokens > 0


def test_the_http_answer_is_that_of_python(server: Served, runs: Path):
    model = load(runs / "thinks")
    for thinking in (True, False):
        reply = model.reply([Message("user", ASKED[0]["content"])], thinking=thinking)
        body = sent(server, enable_thinking=thinking).json()
        message = body["choices"][0]["message"]
        assert (message["content"], message.get("reasoning_content", "")) == (reply.text, reply.thoughts)
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == reply.thought_tokens
        assert (body["usage"]["prompt_tokens"], reply.thoughts_ended) == (reply.prompt_tokens, True)


def test_thoughts_that_are_cut_off_leave_the_answer_empty(runs: Path, monkeypatch: pytest.MonkeyPatch):
    dictate(monkeypatch, [*ids_of(UNFINISHED, end=False), *ids_of(" and", end=False)])
    with served({"thinks": [runs / "thinks"]}) as found:
        body = sent(found, max_tokens=40).json()
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert choice["message"]["reasoning_content"].startswith(THOUGHTS)
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 40}


def test_with_thinking_an_answer_may_be_longer_by_default(server: Served, runs: Path):
    model = load(runs / "thinks")
    assert model.sampling.max_new_tokens == 100
    assert model.sampling_for(thinking=False).max_new_tokens == 40


@pytest.mark.parametrize("switch", [*ON[1:4], {"chat_template_kwargs": {"thinking": True}}])
def test_a_model_without_thoughts_refuses_the_switch_in_one_line(server: Served, switch: dict[str, Any]):
    answer = sent(server, "plain", **switch)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["message"] == (
        f"{next(iter(switch))}: the chat template of this model has no thinking mode; leave the switch out, or use a "
        "model that thinks, such as Qwen3"
    )
    assert error["param"] == next(iter(switch))


@pytest.mark.parametrize("switch", OFF)
def test_no_thinking_is_no_wish_that_a_model_without_thoughts_cannot_meet(server: Served, switch: dict[str, Any]):
    assert sent(server, "plain", **switch).status_code == 200


def test_two_switches_that_contradict_each_other_are_refused(server: Served):
    answer = sent(server, enable_thinking=True, reasoning_effort="none")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "reasoning_effort: contradicts enable_thinking; send one of them"


def test_an_unknown_variable_of_the_template_is_refused(server: Served):
    answer = sent(server, chat_template_kwargs={"enable_thoughts": True})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("chat_template_kwargs.enable_thoughts: ")


def test_a_schema_turns_thinking_off_unless_it_is_asked_for(server: Served):
    schema = {"type": "json_object"}
    refused = sent(server, enable_thinking=True, response_format=schema)
    assert refused.status_code == 400
    assert "would bind the thoughts" in refused.json()["error"]["message"]


def test_thoughts_of_an_earlier_answer_are_read(server: Served):
    turns = [*ASKED, {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHTS}, *ASKED]
    body = httpx2.post(f"{server.url}/v1/chat/completions", json={"model": "thinks", "messages": turns}).json()
    assert body["choices"][0]["message"]["content"] == ANSWER


def test_the_server_may_think_by_default_and_refuses_to_where_no_model_can(runs: Path, tmp_path: Path):
    token = {"token_file": tmp_path / "token", "admin_token_file": tmp_path / "admin", "port": 0, "offline": True}
    with tunesmith.serve(runs / "quiet", thinking=True, **token) as found:
        for key, status in (("guess", 401), ((tmp_path / "admin").read_text().strip(), 404)):
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx2.post(f"{found.url}admin/unload", json={"model": "nothing"}, headers=headers)
            assert answer.status_code == status
        listed = httpx2.get(f"{found.url}v1/models").json()["data"]
    assert {model["id"]: model["thinking"]["default"] for model in listed}["quiet"] is True
    with pytest.raises(UsageError, match="^thinking: none of the served models can think; leave the option out"):
        tunesmith.serve(runs / "plain", thinking=True, **token)


class Outside:
    """Another program that writes its completion in pieces of three characters, whatever marks they cut."""

    title = "a program"

    def __init__(self) -> None:
        objective = Instruct(max_new_tokens=40, max_thinking_tokens=60, think_by_default=True)
        self.models = {"thinks": ExternalModel("thinks", template(KIND), objective, 128, 512)}
        self.prompts: list[list[int]] = []

    async def draw(
        self, model: ExternalModel, ids: list[int], request: GenerationRequest
    ) -> AsyncGenerator[CompletionChunk, None]:
        self.prompts.append(ids)
        whole = WHOLE if request.thinking else ANSWER
        for start in range(0, len(whole), 3):
            yield CompletionChunk(whole[start : start + 3])
        yield CompletionChunk(end="stop", new_tokens=len(ids_of(whole, end=False)))

    def close(self) -> None:
        pass


def test_another_program_has_its_thoughts_apart_too():
    program = Outside()
    with served_outside(program, limits=Limits(rows=2)) as found:
        body = sent(found).json()
        message = body["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (THOUGHTS, ANSWER)
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
        assert sent(found, enable_thinking=False).json()["choices"][0]["message"]["content"] == ANSWER
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0, timeout=60)
        deltas = [
            part.choices[0].delta
            for part in client.chat.completions.create(model="thinks", messages=ASKED, stream=True)
        ]
        thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
        assert ("".join(thoughts), sum(map(bool, thoughts)) > 1) == (THOUGHTS, True)
        assert "".join(delta.content or "" for delta in deltas) == ANSWER
        assert found.bugs == []
    on, off = (template(KIND).tokenizer.decode(program.prompts[i]) for i in (0, 1))
    assert off == f"{on}<think>\n\n</think>\n\n"
