"""The server asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.bases import labelled, template
from tests.served import HEAD, LABELS, WRITES, Served, await_here, save_run, served
from tunesmith.annotation.import_export import export_votes, read_events
from tunesmith.annotation.thumbs import FILE
from tunesmith.annotation.vote_state import VOTE
from tunesmith.cli.commands.serve import folder_of
from tunesmith.data.tokenization.messages import Message, joined
from tunesmith.data.tokenization.tool_calls import Call
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.protocol import Limits
from tunesmith.inference.serving.request import GenerationRequest
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Classify, Multitask, Regress
from tunesmith.objectives.multitask import TaskRows, TaskSection
from tunesmith.techniques import Ia3, Lora
from tunesmith.web.openai.app import FOLDERS
from tunesmith.web.openai.requests import ChatCompletionRequest, ChatTurn
from tunesmith.web.openai.responses import split_calls
from tunesmith.web.openai.stream import CompletionStream

QUESTIONS = ("hi", "What is the capital of France?", "Is this review positive or negative? I like the phone.")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs: two that write over one base, a labeller with words, an encoder with a head."""
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "one", Lora(rank=4))
    save_run(folder / "two", Ia3(), seed=2)
    save_run(folder / "mood", Lora(rank=4), LABELS)
    save_run(folder / "head", Lora(rank=4), HEAD, kind="bert")
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Served]:
    sources = {name: [runs / name] for name in ("one", "two", "mood", "head")}
    with served(sources, splits={"both": {"one": 1.0, "two": 1.0}}) as found:
        yield found
        assert found.bugs == []


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


def chat(client: openai.OpenAI, question: str, model: str = "one", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **more)


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_official_client_gets_what_python_gets_whole_and_in_pieces(name: str, client: openai.OpenAI, runs: Path):
    model = load(runs / name)
    for question in QUESTIONS:
        wanted = model.reply([Message("user", question)])
        whole = chat(client, question, name)
        assert whole.choices[0].message.content == wanted.text
        assert whole.choices[0].finish_reason == ("stop" if wanted.finished else "length")
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (wanted.prompt_tokens, wanted.new_tokens)
        parts = list(chat(client, question, name, stream=True, stream_options={"include_usage": True}))
        said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert (said, parts[-1].usage.completion_tokens) == (wanted.text, wanted.new_tokens)
        assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_models_are_listed_with_the_base_and_the_splits(client: openai.OpenAI):
    assert {model.id for model in client.models.list()} == {"one", "two", "mood", "head", "llama", "both"}


def test_one_model_is_told_as_the_list_tells_it(client: openai.OpenAI):
    listed = {model.id: model for model in client.models.list()}
    for name in ("one", "both", "llama"):
        assert client.models.retrieve(name).id == listed[name].id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_question_that_was_not_read_whole_is_told_in_the_usage(client: openai.OpenAI):
    told = {text: chat(client, text, max_tokens=2).usage for text in ("hi", "word " * 600)}
    assert [usage.model_extra.get("shortened") for usage in told.values()] == [None, True]
    for room in (600, 0):  # at the limit to a token, and past it
        usage = client.completions.create(model="one", prompt=" a" * (100 + room), max_tokens=2).usage
        assert usage.model_extra.get("shortened") == (True if room else None)


def test_labels_come_with_calibrated_scores(server: Served, runs: Path):
    for name in ("mood", "head"):
        answer = httpx2.post(f"{server.url}/classify", json={"model": name, "input": list(QUESTIONS)}).json()
        for told, found in zip(answer["data"], load(runs / name).classify(QUESTIONS), strict=True):
            assert told["label"] == found.label
            assert told["probabilities"] == pytest.approx(found.probabilities, abs=1e-4)


def test_a_long_chat_is_refused_where_answers_alone_are_too_long_and_read_where_they_are_not(client: openai.OpenAI):
    asked: list[Any] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x y z " * 500}]
    with pytest.raises(openai.BadRequestError, match="expected at most .* tokens, got .*; send fewer messages"):
        client.chat.completions.create(model="one", messages=[*asked, {"role": "user", "content": "and?"}])


def test_where_nothing_is_asked_for_an_answer_is_no_longer_than_the_server_gives(runs: Path):
    asked = [{"role": "user", "content": "hi"}]
    with served({"one": [runs / "one"]}, limits=Limits(new_tokens=3)) as found:
        said = httpx2.post(f"{found.url}/v1/chat/completions", json={"model": "one", "messages": asked}).json()
    assert said["usage"]["completion_tokens"] <= 3


def test_scores_stop_and_seed_reach_the_answer(client: openai.OpenAI, runs: Path):
    whole = chat(client, "hi").choices[0].message.content
    cut = chat(client, "hi", stop=[whole[3:5]]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(whole[3:5])].strip(), "stop")
    scored = chat(client, "hi", logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in scored] == [3] * 4
    for token in scored:
        assert token.top_logprobs[0].logprob == token.logprob <= 0  # greedy: the likeliest was taken
    parts = list(chat(client, "hi", logprobs=True, max_tokens=4, stream=True))
    told = [
        token.token
        for part in parts
        for token in (part.choices[0].logprobs.content if part.choices[0].logprobs else [])
    ]
    assert told == [token.token for token in scored]
    warm = [chat(client, "hi", temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    free = {chat(client, "hi", temperature=1.5, seed=None).choices[0].message.content for _ in range(4)}
    assert len(free) > 1  # nobody asked for the same again
    for token in scored:
        assert token.bytes is None or bytes(token.bytes).decode(errors="replace") == token.token


def test_answers_hold_to_a_schema_and_to_json(client: openai.OpenAI):
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "mood", "schema": {**schema, "additionalProperties": False}},
    }
    for stream in (False, True):
        found = chat(client, "hi", response_format=wanted, max_tokens=60, stream=stream)
        text = "".join(p.choices[0].delta.content or "" for p in found) if stream else found.choices[0].message.content
        assert json.loads(text)["mood"] in ("good", "bad")


TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"word": "fox"}}\n</tool_call>'


def test_calls_of_tools_that_were_offered_come_back_as_calls(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch):
    from tunesmith.inference.serving.live_answer import ActiveRequest

    real = ActiveRequest._end
    asked: list[list[int]] = []
    ends: list[Any] = ["stop"]

    def calls(self: ActiveRequest, end: Any, why: str = "") -> None:
        asked.append(self.prompt)
        self.on_chunk(replace_text(self, end))

    def replace_text(row: ActiveRequest, end: Any) -> Any:
        from tunesmith.inference.serving.live_answer import CompletionChunk

        return CompletionChunk(f"Let me see. {CALL}"[len(row.sent) :], (), ends[0], len(row.prompt), len(row.ids))

    monkeypatch.setattr(ActiveRequest, "_end", calls)
    answer = chat(client, "Look up fox.", tools=[TOOL]).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", "Let me see.")
    (call,) = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look", {"word": "fox"})
    parts = list(chat(client, "Look up fox.", tools=[TOOL], stream=True))
    streamed = [call for part in parts for call in part.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in streamed] == ["look"]
    assert parts[-1].choices[0].finish_reason == "tool_calls"
    plain = chat(client, "Look up fox.").choices[0]
    assert (plain.finish_reason in ("stop", "length"), plain.message.tool_calls) == (True, None)
    other = chat(client, "x", tools=[{"type": "function", "function": {"name": "other", "parameters": {}}}]).choices[0]
    assert other.message.tool_calls is None  # nobody offered it
    ends[0] = "length"  # what comes behind the call is missing
    assert chat(client, "Look up fox.", tools=[TOOL]).choices[0].finish_reason == "length"
    monkeypatch.setattr(ActiveRequest, "_end", real)
    turns: list[Any] = [
        {"role": "user", "content": "Look up fox."},
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "an animal"},
    ]
    assert client.chat.completions.create(model="one", messages=turns, tools=[TOOL]).choices[0].message
    assert len(asked[0]) > len(asked[2])  # the tools were told


@pytest.mark.parametrize("key", ["seed", "stream", "stream_options", "logprobs", "top_logprobs", "tools", "user"])
def test_what_is_sent_as_null_is_not_asked_for(server: Served, key: str):
    asked = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, key: None}
    assert httpx2.post(f"{server.url}/v1/chat/completions", json=asked).status_code == 200


def test_texts_go_on_as_in_python(client: openai.OpenAI, runs: Path):
    wanted = load(runs / "one").complete(["The quick"])[0]
    answer = client.completions.create(model="one", prompt="The quick")
    assert (answer.choices[0].text, answer.usage.completion_tokens) == (wanted.text, wanted.new_tokens)
    assert client.completions.create(model="one", prompt=["The quick"]).choices[0].text == wanted.text
    with pytest.raises(openai.BadRequestError, match="prompt: .*send each text in its own request"):
        client.completions.create(model="one", prompt=["a", "b"])
    said = "".join(
        part.choices[0].text for part in client.completions.create(model="one", prompt="The quick", stream=True)
    )
    assert said == wanted.text


@pytest.mark.parametrize("name", ["one", "head"])
def test_states_of_texts_are_those_of_python(name: str, client: openai.OpenAI, runs: Path):
    wanted = load(runs / name).embed(QUESTIONS)
    found = client.embeddings.create(model=name, input=list(QUESTIONS))
    for one, states in zip(found.data, wanted.tolist(), strict=True):
        assert one.embedding == pytest.approx(states, abs=1e-3)
    width = wanted.shape[1]
    assert found.usage.prompt_tokens == sum(len(load(runs / name).tokens(text).ids) for text in QUESTIONS)
    with pytest.raises(openai.BadRequestError, match="input: .*check_embedding_ctx_length=False"):
        client.embeddings.create(model=name, input=[[1, 2, 3]])
    with pytest.raises(openai.BadRequestError, match=f"dimensions: expected {width} for {name}, got 3"):
        client.embeddings.create(model=name, input=QUESTIONS[0], dimensions=3)
    plain = client.embeddings.create(model=name, input=QUESTIONS[0], encoding_format="float", dimensions=width)
    assert plain.data[0].embedding == pytest.approx(wanted[0].tolist(), abs=1e-3)


def test_a_split_gives_each_person_one_model_and_both_to_all(client: openai.OpenAI):
    given = {user: chat(client, "hi", "both", user=user, max_tokens=1).model for user in map(str, range(12))}
    assert set(given.values()) == {"one", "two"}
    again = {user: chat(client, "hi", "both", user=user, max_tokens=1).model for user in list(given)[:4]}
    assert again == {user: given[user] for user in again}


def test_health_and_metrics_say_what_is_done(server: Served, client: openai.OpenAI):
    chat(client, "hi")
    health = httpx2.get(f"{server.url}/health").json()
    assert (health["status"], health["waiting"]) == ("ok", 0)
    page = httpx2.get(f"{server.url}/metrics").text
    assert 'tunesmith_requests_total{route="/v1/chat/completions",status="200"}' in page
    assert 'tunesmith_tokens_total{kind="answer",model="one"}' in page
    assert "tunesmith_waiting 0.0" in page


def test_runs_are_unloaded_loaded_and_rolled_back_by_name(server: Served, client: openai.OpenAI):
    def admin(what: str, name: str) -> httpx2.Response:
        return httpx2.post(f"{server.url}/admin/{what}", json={"model": name}, timeout=60)

    assert admin("unload", "two").json() == {"id": "two", "loaded": False}
    with pytest.raises(openai.NotFoundError, match="'two' is not served here"):
        chat(client, "hi", "two")
    assert admin("load", "two").json()["id"] == "two"
    assert chat(client, "hi", "two").model == "two"
    assert admin("rollback", "two").status_code == 404
    for name in ("/etc", "../one", "nobody"):
        assert admin("load", name).status_code == 404


def test_thumbs_land_in_the_runs_file_of_votes_as_rows_of_preference(server: Served, runs: Path, tmp_path: Path):
    asked = [{"role": "user", "content": "hi"}]
    for answer, good in (("fine", True), ("bad one", False), ("fine", True)):
        told = {"model": "one", "messages": asked, "answer": answer, "good": good, "rater": "ann"}
        assert httpx2.post(f"{server.url}/feedback", json=told).json() == {"kept": True}
    done = export_votes(runs / "one" / FILE, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert done.rows == 2
    assert sorted((row["prompt"], row["completion"], row["label"], row["by"]) for row in rows) == [
        ("hi", "bad one", False, "one"),
        ("hi", "fine", True, "one"),
    ]
    assert httpx2.post(f"{server.url}/feedback", json={**told, "model": "nobody"}).status_code == 404
    turns = [{"role": "user", "content": "hi"}, {"role": "user", "content": "there"}]
    for more in (
        {"answer": ""}, {"answer": " \n"}, {"messages": turns}, {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "system", "content": "be kind"}]}, {"model": "both"},
    ):  # fmt: skip
        assert httpx2.post(f"{server.url}/feedback", json={**told, **more}).status_code == 400, more
    assert export_votes(runs / "one" / FILE, tmp_path / "again.jsonl").rows == 2


def test_thumbs_of_people_without_a_name_each_count(server: Served, runs: Path):
    told = {"model": "two", "messages": [{"role": "user", "content": "hi"}], "answer": "fine", "good": True}
    for more in ({}, {"rater": ""}, {"rater": " ", "good": False}, {"rater": "ann"}):
        assert httpx2.post(f"{server.url}/feedback", json={**told, **more}).json() == {"kept": True}
    found = [event.rater for event in read_events(runs / "two" / FILE) if event.kind == VOTE]
    assert len(set(found)) == 4
    assert (all(found), found[-1]) == (True, "ann")


def test_thumbs_for_the_base_land_beside_those_of_the_first_run(tmp_path: Path):
    sources = {"one": [tmp_path / "one"], "two": [tmp_path / "two", tmp_path / "newer"]}
    assert [folder_of("two", sources, version).name for version in (1, 2)] == ["two", "newer"]
    assert folder_of("smollm2-135m", sources) == tmp_path / "one"


def test_each_task_of_a_run_that_learned_several_is_a_model_of_its_own(tmp_path: Path):
    parts = {"mood": LABELS.bind(labelled(4), "decoder"), "lines": WRITES, "kind": Classify(output="linear")}
    parts["kind"] = parts["kind"].bind(labelled(3), "decoder")
    tasks = {name: TaskSection(data=TaskRows(train="x.jsonl"), objective=part) for name, part in parts.items()}
    run = save_run(tmp_path / "three", Lora(rank=4), Multitask(tasks=tasks))
    thumb = {"messages": [{"role": "user", "content": "hi"}], "answer": "ho", "good": True}
    with served({"three": [run]}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)
        names = [f"three/{name}" for name in parts]
        assert {model.id for model in client.models.list()} == {"three", *names, "llama"}
        assert client.models.retrieve("three/mood").model_extra["labels"] == list(parts["mood"].labels)
        alone = load(run)
        for name in ("mood", "kind"):
            body = {"model": f"three/{name}", "input": list(QUESTIONS)}
            told = httpx2.post(f"{server.url}/classify", json=body).json()["data"]
            for one, wanted in zip(told, alone.classify(QUESTIONS, task=name), strict=True):
                assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-4)
        wanted_text = alone.reply([Message("user", "hi")], task="lines").text
        assert chat(client, "hi", "three/lines").choices[0].message.content == wanted_text
        assert httpx2.post(f"{server.url}/feedback", json={"model": "three/lines", **thumb}).json() == {"kept": True}
        assert (
            "is not a classifier" in httpx2.post(f"{server.url}/classify", json={"model": "three", "input": "a"}).text
        )
        assert server.bugs == []
    assert folder_of("three/lines", {"one": [tmp_path], "three": [run]}) == run


def test_numbers_come_in_the_unit_of_the_rows(tmp_path: Path):
    run = save_run(tmp_path / "stars", Lora(rank=4), Regress(mean=3.0, scale=1.5), kind="bert")
    with served({"stars": [run]}) as server:
        body = {"model": "stars", "input": list(QUESTIONS)}
        found = httpx2.post(f"{server.url}/predict", json=body).json()["data"]
        assert [one["number"] for one in found] == pytest.approx(load(run).predict(QUESTIONS), abs=1e-4)
        assert "is not a classifier" in httpx2.post(f"{server.url}/classify", json=body).text
        assert server.bugs == []


def test_a_model_without_numbers_says_so(server: Served):
    refused = httpx2.post(f"{server.url}/predict", json={"model": "mood", "input": "hi"})
    assert refused.status_code == 400
    assert "mood predicts no values; use another route, or a run tuned with regress" in refused.text


def test_with_a_token_every_route_asks_for_it(runs: Path):
    with served({"one": [runs / "one"]}, token="t0ken-t0ken-t0ken-t0ken") as server:
        routes = [("GET", "/v1/models"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/"), ("POST", "/classify")]
        routes += [("POST", "/v1/chat/completions"), ("POST", "/admin/load"), ("GET", "/nothing")]
        for method, path in routes:
            answer = httpx2.request(method, f"{server.url}{path}", json={} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "no_token"), path
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="t0ken-t0ken-t0ken-t0ken", max_retries=0)
        assert chat(client, "hi").choices
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            chat(wrong, "hi")


def test_an_answer_whose_client_goes_before_its_stream_begins_is_let_go(server: Served):
    left = asyncio.Event()

    class Request:
        async def receive(self) -> dict[str, str]:
            await left.wait()
            return {"type": "http.disconnect"}

    async def ask() -> None:
        pieces = CompletionStream(Request(), lambda piece: None)
        long = GenerationRequest("one", (Message("user", "hi"),), sampling=Sampling(max_new_tokens=400), in_pieces=True)
        pieces.ticket = server.engine.ask(long, pieces.on_chunk)
        left.set()
        for _ in range(3):  # nobody takes a piece
            await asyncio.sleep(0)
        assert pieces.ticket.cancelled

    await_here(ask())


def test_what_ends_the_server_waits_for_what_was_begun(runs: Path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        with served({"one": [runs / "one"]}) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            begun = pool.submit(chat, client, "hi", max_tokens=60)
            while not server.engine.at_work and not begun.done():
                pass
        assert begun.result(30).choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/srv/runs/mood/thumbs.db: not a vote store", "thumbs.db: not a vote store"),
        ("over '/srv/base'; give /srv/runs/one, or delete it", "over 'base'; give one, or delete it"),
        ("C:\\runs\\one: no finished model in it", "one: no finished model in it"),
        (
            "runs/mood: ends with 3/4 of it; see docs/reference/http-api.md",
            "runs/mood: ends with 3/4 of it; see docs/reference/http-api.md",
        ),
    ],
)
def test_what_is_told_names_no_folder_of_the_machine(said: str, told: str):
    assert FOLDERS.sub("", said) == told


@pytest.mark.parametrize(
    ("path", "more", "said"),
    [
        ("chat/completions", {"top_k": 5, "temperature": 1}, "top_k"),
        ("chat/completions", {"min_p": 0.1}, "min_p"),
        ("chat/completions", {"repetition_penalty": 1.5}, "repetition_penalty"),
        ("chat/completions", {"functions": [{"name": "f"}]}, "functions"),
        ("chat/completions", {"logit_bias": {"5": 1}}, "logit_bias"),
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"suffix": "end"}, "suffix"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content: only parts of type text are supported;",
        ),
        ("chat/completions", {"stop": ["x", ""]}, "stop.1: String should have at least 1 character;"),
        ("chat/completions", {"stop": ["x"] * 17}, "stop: List should have at most 16 items"),
        ("chat/completions", {"stop": ["x", 5]}, "stop.1: Input should be a valid string;"),
        ("embeddings", {"input": ["x", ""]}, "input.1: String should have at least 1 character;"),
        ("embeddings", {"input": []}, "input: expected 1 to 1024 texts, got 0; send at least one"),
    ],
)
def test_what_would_change_an_answer_and_is_not_done_here_is_refused(
    server: Served, path: str, more: dict[str, Any], said: str
):
    asked = {"model": "one", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    answer = httpx2.post(f"{server.url}/v1/{path}", json=asked | more)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True), answer.text


def test_what_is_null_or_says_what_holds_anyway_is_asked_for_by_nobody(server: Served):
    turns = [{"role": "user", "content": "hi"}]
    kept = {"top_k": 40, "repetition_penalty": 1.0, "min_p": 0.0, "logit_bias": {}, "functions": []}
    form = {"type": "json_schema", "json_schema": {"name": None, "schema": {"type": "object"}}}
    asked = {"model": "one", "messages": turns, "max_tokens": 2, "stream_options": {"include_usage": None}}
    sent = {"model": "one", "input": "hi", "encoding_format": None}
    for path, body in (
        ("chat/completions", asked | kept),
        ("chat/completions", asked | {"response_format": form}),
        ("embeddings", sent),
    ):
        answer = httpx2.post(f"{server.url}/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text


def test_a_call_without_arguments_is_one_of_a_tool_that_takes_nothing():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
    (turn,) = ChatCompletionRequest.model_validate(
        {"model": "one", "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    ).messages
    assert turn.message().calls == (Call("f", "{}"),)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("Let me see.\n<tool_call>\n", "Let me see."),
        ("[", ""),
        ("```json\n[", ""),
        ("[TOOL_CALLS] [", ""),
        ("<think>\nI look.\n</think>\n\n<tool_call>\n", "<think>\nI look.\n</think>"),
        ("In {x} notation this holds. <tool_call>", "In {x} notation this holds."),
    ],
)
def test_what_is_said_before_a_call_is_told_without_the_mark_that_opens_it(before: str, told: str):
    call = '{"name": "look", "arguments": {"word": "fox"}}'
    asked = [Message("user", "Look up fox.", tools=json.dumps([TOOL]))]
    assert split_calls(f"{before}{call}</tool_call>", asked, template("llama")) == (told, [json.loads(call)])


def test_parts_of_a_text_stand_on_lines_of_their_own_as_in_rows():
    parts = [{"type": "text", "text": text} for text in ("First.", "Second.")]
    assert ChatTurn.model_validate({"role": "user", "content": parts}).text == joined(parts) == "First.\nSecond."
