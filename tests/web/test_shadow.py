"""A tuned model in the shadow of a paid one, over HTTP with a stand-in for the paid server."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from fastapi.testclient import TestClient

from tests.paid_stub import Paid, paid_stub
from tests.served import HEAD, WRITES, engine_over, listening, save_run
from tunesmith.cli.commands.serve import add, opened
from tunesmith.cli.options import UsageError
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, StorageError
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.backends.external import lines_of
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.shadow.decision import Comparison
from tunesmith.inference.serving.shadow.ledger import JOURNAL, ROWS, Ledger, read_state
from tunesmith.inference.serving.shadow.paid import PaidAnswer, _no_chat
from tunesmith.techniques import Lora
from tunesmith.web.openai.requests import ChatCompletionRequest
from tunesmith.web.openai.shadow import Shadow, ShadowRequest, TunedAnswer, _kept

KEY = "sk-of-the-paid-server-0123456789"
LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labeller and a run that writes."""
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "head", Lora(rank=4), HEAD, kind="bert")
    save_run(folder / "writes", Lora(rank=4), WRITES)
    return folder


@pytest.fixture(scope="module")
def labels(runs: Path) -> Callable[[str], str]:
    """What the labeller says, as a paid model would; texts beginning with `!` get the other label."""
    model = load(runs / "head")

    def label(text: str) -> str:
        said = model.classify(text).label
        return LABELS[said == LABELS[0]] if text.startswith("!") else f"{said.title()}."

    return label


@dataclass
class Place:
    """A server with a shadow."""

    url: str
    shadow: Shadow
    paid: Paid
    said: list[str]

    def chat(self, text: str, *, headers: Any = None, **more: Any) -> httpx2.Response:
        body = {"model": "gpt", "messages": [{"role": "user", "content": text}], **more}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    def by(self, text: str) -> str:
        """Who answers a text: paid-2026 or mine."""
        return str(self.chat(text).json()["model"])

    def settled(self) -> dict[str, Any]:
        """The state after everything in the background was done."""
        until = time.monotonic() + 60
        while self.shadow.background._tasks:
            assert time.monotonic() < until, "the background did not end"
            time.sleep(0.01)
        return self.shadow.summary()

    def until_allowed(self) -> int:
        """Ask until the tuned model has a share; the number of requests."""
        for i in range(1000):
            self.chat(f"text {i} of many")
            if i % 10 == 0 and self.settled()["threshold"] is not None:
                return i + 1
        raise AssertionError("never allowed")


@contextmanager
def shadowed(run: Path, paid: Paid, folder: Path, **options: Any) -> Iterator[Place]:
    """A server over a run in the shadow of a stand-in."""
    engine, bugs = engine_over({"mine": [run]})
    said: list[str] = []
    request = ShadowRequest("mine", run, f"{paid.url}#gpt", folder, **{"margin": 0.2, **options})
    rooms = {"mine": run, "gpt": run}
    with request.over(engine, said.append) as shadow, listening(engine, bugs, rooms, {}, "", shadow) as found:
        yield Place(found.url, shadow, paid, said)
    assert bugs == []


@pytest.mark.long
def test_the_share_grows_only_when_the_test_allows_a_planted_drop_sends_the_traffic_back_and_both_survive_a_restart(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    folder = tmp_path / "shadow"
    with paid_stub(labels) as paid:
        with shadowed(runs / "head", paid, folder, control=0.3, price=(1.0, 10.0)) as place:
            needed = place.until_allowed()
            found = place.settled()
            (event,) = found["events"]
            assert event["kind"] == "allowed"
            # With nothing but agreement, the capital of the bets exceeds what is needed after two dozen rows.
            assert 20 <= event["rows"] <= needed <= 60
            assert found["requests"]["paid"] + found["requests"].get("tuned", 0) == needed
        with shadowed(runs / "head", paid, folder, control=0.3, price=(1.0, 10.0)) as place:
            assert place.settled()["threshold"] == event["from"]  # after the restart
            # Three tenths are control requests, by a secret of the folder; 20 of them are needed for an estimate.
            answered = [place.by(f"more {i}") for i in range(160)]
            assert 80 <= answered.count("mine") <= 140
            cost = place.settled()
            assert cost["cost_spent"] == pytest.approx(sum(cost["tokens"]) / 110 * 2e-4)
            assert cost["cost_saved"][0] == pytest.approx(answered.count("mine") * 2e-4, rel=0.2)
            planted = 0
            while place.settled()["threshold"] is not None:  # the paid model now disagrees always
                place.chat(f"!fallen {planted}")
                planted += 1
                assert planted < 200
            found = place.settled()
            assert [event["kind"] for event in found["events"]] == ["allowed", "fell"]
            assert found["attempt"] == 2
            assert {place.by(f"after {i}") for i in range(5)} == {"paid-2026"}
        with shadowed(runs / "head", paid, folder, margin=0.1) as place:
            assert place.settled()["attempt"] == 3  # another margin is another question


@pytest.mark.long
def test_a_model_that_disagrees_never_answers_and_the_same_text_again_shows_nothing(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow") as place:
        for i in range(60):
            assert place.by(f"{'!' if i % 3 == 0 else ''}text {i}") == "paid-2026"
        assert max(row["evidence"] for row in place.settled()["shadow"]) < 3
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "again") as place:
        for _ in range(60):
            place.chat("the same")
        assert place.settled()["shadow"][0]["rows"] == 1


def test_what_reaches_the_paid_server_and_what_is_stored(
    runs: Path, labels: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_SHADOW_KEY", KEY)
    text = "mail me at jane.doe@gmail.com, key sk-ant-abcdefghijklmnopqrstuvwx1234"
    for keep, header, rows in (
        ("none", "yes", 0), ("asked", "", 0), ("asked", "yes", 1), ("all", "no", 0), ("all", "", 1),
    ):  # fmt: skip
        folder = tmp_path / f"{keep}{header}"
        with paid_stub(labels) as paid, shadowed(runs / "head", paid, folder, keep=keep) as place:
            mine = {
                "Authorization": "Bearer of-the-client",
                "X-Tunesmith-Keep": header,
                "X-Other": "1",
                "Cookie": "a=b",
            }
            assert place.chat(text, headers=mine, user="jane", seed=7).status_code == 200
            place.settled()
            (sent,), (body,) = paid.headers, paid.bodies
            assert sent["authorization"] == f"Bearer {KEY}"
            assert not {"x-other", "cookie", "x-tunesmith-keep"} & set(sent)
            assert body["seed"] == 7
            paid.status = 429
            refused = place.chat("x")
            assert (refused.status_code, KEY in refused.text, "\n" in refused.json()["error"]["message"]) == (
                429,
                False,
                False,
            )
            place.settled()
        stored = (folder / ROWS).read_text().splitlines() if (folder / ROWS).exists() else []
        assert len(stored) == rows
        everything = "".join(path.read_text() for path in folder.iterdir())
        assert not [word for word in ("jane", "sk-ant", KEY, "of-the-client") if word in everything]
        assert (folder / JOURNAL).stat().st_mode & 0o077 == 0
        if stored:
            row = json.loads(stored[0])
            assert row["messages"][0]["content"] == "mail me at <email>, key <secret>"
            assert row["messages"][-1]["role"] == "assistant"
            assert (row["agreement"], row["tuned"] in LABELS) == (1.0, True)


def test_a_stream_passes_through_and_a_stream_of_the_tuned_model_has_the_same_shape(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow", control=0.01) as place:
        client = openai.OpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0, timeout=30)

        def stream(text: str, **more: Any) -> tuple[str, str, Any]:
            messages: Any = [{"role": "user", "content": text}]
            chunks = list(client.chat.completions.create(model="gpt", messages=messages, stream=True, **more))
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            return chunks[0].model, said, chunks[-1].usage

        assert stream("one") == ("paid-2026", labels("one"), None)
        assert stream("two", stream_options={"include_usage": True})[2].completion_tokens == 10
        found = place.settled()
        assert (found["shadow"][0]["rows"], found["tokens"]) == (2, [200, 20])
        place.until_allowed()
        answers = {stream("three")[:2] for _ in range(4)}
        assert ("mine", load(runs / "head").classify("three").label) in answers


def test_a_paid_server_that_fails_is_one_line_and_the_tuned_model_answers_only_where_it_may(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow", control=0.5) as place:
        broken: list[tuple[str, Any, int]] = [
            ("status", 500, 502), ("status", 401, 502), ("status", 429, 429), ("status", 400, 400), ("dies", True, 502),
            ("answer", lambda _: b"[]", 502), ("answer", lambda _: b'{"choices": [{"message": 3}]}', 502),
            ("answer", lambda _: b'{"choices": [1e999, NaN]}', 502), ("answer", lambda _: b"[" * 100_000, 502),
            ("answer", lambda _: b"x" * (9 * 2**20), 502),
        ]  # fmt: skip
        for name, value, status in broken:
            before = getattr(paid, name)
            setattr(paid, name, value)
            for stream in (False, True):
                answer = place.chat("text", stream=stream)
                said = answer.text
                assert answer.status_code == status or (stream and name == "dies" and '{"error"' in said)
                assert "[DONE]" not in said
                assert "Traceback" not in said
            setattr(paid, name, before)
        images = [{"type": "image_url", "image_url": {"url": "x"}}]
        body = {"model": "gpt", "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": images}]}
        paid.answer = lambda _: "positive"
        assert httpx2.post(f"{place.url}/v1/chat/completions", json=body).status_code == 200  # nothing to compare
        assert place.settled()["shadow"][0]["rows"] == 0
        paid.answer = labels
        place.until_allowed()
        paid.status = 500
        answers = [place.chat(f"down {i}") for i in range(20)]
        assert {(answer.status_code, answer.json()["model"]) for answer in answers} == {(200, "mine")}
        assert place.said == []


def test_a_stream_without_an_end_or_without_events_is_an_error_and_nothing_of_it_stays_in_memory(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    chunk = 'data: {"choices": [{"delta": {"content": "posi"}, "finish_reason": null}]}\n\n'
    whole = chunk.replace("null", '"stop"').strip()
    cases = [
        ("<html>", 502, "has no end"), ('{"error": 1}', 502, "has no end"), ("data: [DONE]\n\n", 502, "has no end"),
        (chunk, 200, "has no end"), (f"{chunk}data: [DONE]\n\n", 200, "has no end"),
        (f"{chunk}data: [1]\n", 200, "not a chat"),
        (whole, 200, "[DONE]"), (f"{whole}\n\ndata: [DONE]\n\ndata: nonsense\n", 200, "[DONE]"),
    ]  # fmt: skip
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow") as place:
        for content, status, end in cases:
            paid.answer = lambda _, content=content: content.encode()
            answer = place.chat("text", stream=True)
            assert (answer.status_code, end in answer.text) == (status, True), content
            assert ("[DONE]" in answer.text) == (end == "[DONE]")
        assert place.settled()["requests"] == {"failed": 6, "paid": 2}
        paid.answer = lambda _: b'{"choices": []}'
        assert place.chat("text").status_code == 502
    first, second = _no_chat(), _no_chat()
    assert first is not second


def test_a_stream_that_the_client_leaves_is_counted_and_the_paid_server_is_left_too(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow", price=(1.0, 10.0)) as place:
        body = {"model": "gpt", "messages": [{"role": "user", "content": "text"}], "stream": True}
        for _ in range(5):
            with httpx2.stream("POST", f"{place.url}/v1/chat/completions", json=body, timeout=30) as response:
                for line in response.iter_lines():
                    if "[DONE]" in line:
                        break
        found = place.settled()
        assert (found["requests"], found["priced"], found["tokens"]) == ({"paid": 5}, 5, [500, 50])


def test_long_answers_without_a_line_break_are_read_in_linear_time():
    async def read() -> int:
        async def parts() -> AsyncIterator[str]:
            for _ in range(8 * 2**10):
                yield "x" * 2**10

        return sum([len(line) async for line in lines_of(parts())])

    started = time.perf_counter()
    # In a thread: after the tests with a browser, its driver keeps a loop of its own in this one.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, read()).result() == 8 * 2**20
    assert time.perf_counter() - started < 2


def test_a_reload_takes_the_share_away_even_if_the_disk_is_full_and_an_unloaded_model_leaves_the_paid_one(
    runs: Path, labels: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise StorageError("shadow: cannot be written (full); free some space")

    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow") as place:
        place.until_allowed()
        registry = place.shadow._engine.registry
        registry.load("mine")
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "restart", full)
            assert {place.by(f"reloaded {i}") for i in range(8)} == {"paid-2026"}
            assert "free some space" in place.said[0]
        assert place.by("stored") == "paid-2026"
        found = place.settled()
        assert (found["attempt"], found["threshold"], found["shadow"][0]["rows"]) == (2, None, 1)
        registry.unload("mine")
        assert place.chat("unloaded").json()["model"] == "paid-2026"


def test_two_requests_that_notice_one_reload_begin_again_once(runs: Path, labels: Callable[[str], str], tmp_path: Path):
    async def noticed(shadow: Shadow) -> list[bool]:
        return await asyncio.gather(shadow._notice_reload(), shadow._notice_reload())

    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow") as place:
        place.until_allowed()
        place.shadow._engine.registry.load("mine")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(asyncio.run, noticed(place.shadow)).result() == [True, True]
        assert place.settled()["attempt"] == 2
        place.until_allowed()  # the shadow goes on


def test_half_of_a_surrogate_pair_reaches_the_paid_model_as_it_came(runs: Path, tmp_path: Path):
    texts: list[str] = []

    def label(text: str) -> str:
        texts.append(text)
        return LABELS[0]

    with paid_stub(label) as paid, shadowed(runs / "head", paid, tmp_path / "shadow") as place:
        body = b'{"model": "gpt", "messages": [{"role": "user", "content": "half \\ud83d"}]}'
        headers = {"content-type": "application/json"}
        sent = httpx2.post(f"{place.url}/v1/chat/completions", content=body, headers=headers, timeout=30)
        assert sent.status_code == 200
        assert texts == ["half \ud83d"]
        assert place.settled()["requests"] == {"paid": 1}


def test_what_changes_the_answers_of_the_tuned_model_begins_again(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    run = tmp_path / "run"
    shutil.copytree(runs / "head", run)
    attempts = []
    with paid_stub(labels) as paid:
        for options in ({}, {}, {"engine": "other"}, {"engine": "other", "weights": True}):
            if options.pop("weights", None):
                other = save_run(tmp_path / "other", Lora(rank=4), HEAD, kind="bert", seed=2)
                for file in (other / "model").glob("*.safetensors"):
                    shutil.copy(file, run / "model" / file.name)
            request = ShadowRequest("mine", run, f"{paid.url}#gpt", tmp_path / "shadow", **options)
            engine, _ = engine_over({"mine": [runs / "head"]})
            with request.over(engine, print) as shadow:
                attempts.append(shadow.ledger.state.attempt)
            engine.close(5)
    assert attempts == [1, 1, 2, 3]


def test_what_the_tuned_model_cannot_do_is_left_to_the_paid_one(
    runs: Path, labels: Callable[[str], str], tmp_path: Path
):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow") as place:
        place.until_allowed()
        for more in ({"logprobs": True}, {"tools": [tool]}, {"response_format": {"type": "json_object"}}):
            assert {place.chat(f"text {i}", **more).json()["model"] for i in range(6)} == {"paid-2026"}


def test_rows_that_are_kept_have_the_tools_and_calls_of_the_chat_masked(tmp_path: Path):
    body = {
        "model": "gpt",
        "tools": [{"type": "function", "function": {"name": "mail", "parameters": {"type": "object"}}}],
        "messages": [{"role": "user", "content": "mail jane.doe@gmail.com"}],
    }
    answer = PaidAnswer(calls={0: {"name": "mail", "arguments": '{"to": "jane.doe@gmail.com"}'}})
    tuned = TunedAnswer("", 0.5, 0.1, CompletionChunk(end="stop"))
    asked = ChatCompletionRequest.model_validate(body)
    ledger = Ledger(tmp_path, "a", 0.2)
    ledger.keep(_kept(asked, answer, tuned, Comparison(0.5, 1.0, 1)))
    ledger.close()
    row = json.loads((tmp_path / ROWS).read_text())
    assert row["messages"][0]["content"] == "mail <email>"
    assert row["messages"][1]["tool_calls"] == [{"name": "mail", "arguments": {"to": "<email>"}}]
    assert row["tools"] == body["tools"]


def test_many_threads_and_a_slow_shadow_neither_lose_rows_nor_delay_replies(
    runs: Path, labels: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def slow(self: Shadow, body: Any) -> None:
        import asyncio

        await asyncio.sleep(1)

    with paid_stub(lambda _: "neither") as paid:
        with shadowed(runs / "head", paid, tmp_path / "all") as place, ThreadPoolExecutor(8) as threads:
            list(threads.map(place.chat, [f"text {i}" for i in range(80)]))
            assert place.settled()["requests"] == {"paid": 80}
        assert read_state(tmp_path / "all").sums["reply paid"][0] == 80
        monkeypatch.setattr(Shadow, "_tuned", slow)
        monkeypatch.setattr("tunesmith.inference.serving.shadow.comparisons.MOST_WAITING", 4)
        with shadowed(runs / "head", paid, tmp_path / "slow") as place:
            started = time.perf_counter()
            assert [place.chat(f"text {i}").status_code for i in range(20)] == [200] * 20
            assert time.perf_counter() - started < 10  # the shadow alone would take 20 s
            assert place.settled()["left_out"] >= 8
            assert place.settled()["requests"] == {"paid": 20}


def test_a_folder_that_cannot_be_written_fails_no_reply(
    runs: Path, labels: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with paid_stub(labels) as paid, shadowed(runs / "head", paid, tmp_path / "shadow", keep="all") as place:
        monkeypatch.setattr("tunesmith.inference.serving.shadow.ledger.JOURNAL", "x")
        (tmp_path / "shadow" / JOURNAL).unlink()
        (tmp_path / "shadow" / JOURNAL).mkdir()
        assert [place.chat(f"text {i}").status_code for i in range(3)] == [200] * 3
        assert place.settled()["failures"] == 3
        assert "no reply is affected" in place.said[0]
        assert "\n" not in place.said[0]
        (tmp_path / "shadow" / JOURNAL).rmdir()


def test_written_answers_are_compared_by_the_metric_of_the_run(runs: Path, tmp_path: Path):
    model = load(runs / "writes")

    def same(text: str) -> str:
        return model.reply([Message("user", text)]).text

    with paid_stub(same) as paid, shadowed(runs / "writes", paid, tmp_path / "shadow") as place:
        for i in range(6):
            place.chat(f"hello {i}")
        found = place.settled()
        assert (found["metric"], found["shadow"][0]["rows"], found["shadow"][0]["agreement"]) == ("rouge_l", 6, 1.0)
        paid.answer = lambda _: "quite another answer of ten words"
        place.chat("another")
        assert place.settled()["shadow"][0]["agreement"] < 0.95


@pytest.mark.parametrize(
    ("address", "options", "problem"),
    [
        ("http://example.com/v1#gpt", {}, "--shadow-http"),
        ("https://me:pw@example.com/v1#gpt", {}, "password; set the key in TUNESMITH_SHADOW_KEY"),
        ("https://example.com/v1", {}, "no model is named"),
        ("https://example.com/v1#gpt", {"offline": True}, "--offline"),
        ("file:///etc/passwd#gpt", {}, "invalid server address"),
    ],
)
def test_an_address_that_is_refused(address: str, options: Any, problem: str, tmp_path: Path):
    with pytest.raises(DataError, match=problem):
        ShadowRequest("mine", tmp_path, address, tmp_path, **options)


def test_the_command_serves_a_shadow_and_prints_its_figures_at_the_end(
    runs: Path,
    labels: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    lines: list[str] = []
    monkeypatch.setattr("tunesmith.cli.commands.serve.log", lines.append)

    def serve(*options: str) -> Any:
        parser = argparse.ArgumentParser()
        add(parser.add_subparsers())  # type: ignore[arg-type]
        tokens = ["--admin-token-file", str(tmp_path / "admin"), "--shadow-folder", str(tmp_path / "shadow")]
        return parser.parse_args(["serve", f"mine={runs / 'head'}", "--port", "0", "--offline", *tokens, *options])

    with paid_stub(labels) as paid:
        asked = serve("--shadow", f"{paid.url}#gpt", "--shadow-price", "0.4", "1.6", "--shadow-margin", "0.1")
        with opened(asked, say=lambda engine, place, token: None) as made:
            client = TestClient(made.app)
            with client:
                body = {"model": "mine", "messages": [{"role": "user", "content": "text"}]}
                for _ in range(3):
                    assert client.post("/v1/chat/completions", json=body).json()["model"] == "paid-2026"
            assert client.get("/admin/shadow").json()["requests"] == {"paid": 3}
        assert len(paid.bodies) == 3  # a challenge does not reach it
        assert "mine: not verified (its run has no challenge.json)" in lines
        said = capsys.readouterr().out
        assert "chats by who answered: paid 3 (100%" in said
        assert "mine answers where the evidence for 90%" in said
        for options, problem in (
            (("--shadow-margin", "0"), "--shadow-margin 0.0"),
            (("--shadow-price", "-1", "2"), "--shadow-price -1.0"),
            ((), "expected one RUN"),
        ):
            args = serve("--shadow", f"{paid.url}#gpt", *options)
            args.runs += [] if options else [f"other={runs / 'head'}"]
            with pytest.raises(UsageError, match=problem), opened(args, say=lambda engine, place, token: None):
                pass
