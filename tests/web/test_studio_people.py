"""The studio's Playground, People and Ship: other servers, tools and thoughts; votes and rounds; code and uploads."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.tiny import tiny_decoder, tiny_encoder
from tests.web.conftest import Serve
from tunesmith import tune
from tunesmith.annotation.label_rows import Columns
from tunesmith.annotation.vote_state import VOTE
from tunesmith.annotation.vote_store import Entry, Who
from tunesmith.cli.main import main
from tunesmith.errors import TunesmithError
from tunesmith.pipelines.label import open_labelling
from tunesmith.pipelines.requests import LabelRequest
from tunesmith.report.run_data import read_run_data
from tunesmith.web.studio.jobs import Jobs
from tunesmith.web.studio.people import LabelledRows, People, votes_of
from tunesmith.web.studio.playground import Playground
from tunesmith.web.studio.screen import Studio
from tunesmith.web.studio.ship import Ship, clients_of

# Milliseconds for a command in a process of its own: it imports torch, and the machine may be busy.
COMMAND = 300_000
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


class FakeServer(ThreadingHTTPServer):
    """An OpenAI-compatible server that thinks, calls a tool, and answers once it has the result."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.ended = threading.Event()
        self.keys: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "oracle"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization", ""))
        if body["temperature"] > 1:
            self._send(400, b'{"error": {"message": "temperature: too high"}}', "application/json")
            return
        if body["seed"] == 99:  # it begins, and waits for ever
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"delta": {"content": "It never"}}]}\n\n')
            self.wfile.flush()
            self.server.ended.wait(60)
            return
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city"'}}
        deltas: list[dict[str, Any]] = [
            {"reasoning_content": "They ask "},
            {"reasoning_content": "about rain."},
            {"tool_calls": [call]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ': "Oslo"}'}}]},
        ]
        if body["messages"][-1]["role"] == "tool":
            deltas = [{"content": "It is "}, {"content": "<b>dry</b>."}]
        lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
        lines.append(f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': 7}})}\n\ndata: [DONE]\n\n")
        self._send(200, "".join(lines).encode(), "text/event-stream")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.mark.browser
def test_a_server_is_asked_with_its_thoughts_tool_calls_and_sampling_on_the_page(
    page: Page, serve: Serve, fake: FakeServer, tmp_path: Path
):
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    studio = serve("studio", str(tmp_path), "--offline")
    page.goto(f"{studio.url}playground")
    page.get_by_text("A server", exact=True).click()
    page.get_by_label("Address").fill(fake.url)
    page.get_by_label("Key").fill("secret")
    page.get_by_role("button", name="Load").click()
    page.get_by_label("Your text").fill("Will it rain?")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_text("More settings").click()
    for label, value in {"Top p": "0.9", "Top k": "40", "Seed": "7", "System prompt": "Be brief."}.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("Thinking").select_option("on")
    page.get_by_label("Tools, as JSON").fill(json.dumps(TOOLS))
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".call")).to_have_text('weather({"city": "Oslo"})')
    expect(page.get_by_text("They ask about rain.")).not_to_be_visible()  # folded
    page.get_by_text("Thoughts").click()
    expect(page.get_by_text("They ask about rain.")).to_be_visible()
    page.get_by_label("What weather returns").fill("no clouds")
    page.get_by_role("button", name="Send to the model").click()
    expect(page.get_by_text("It is <b>dry</b>.")).to_be_visible()  # as text
    assert "secret" not in page.content()
    first, second = fake.bodies
    wanted = {"model": "oracle", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 256}
    assert {key: first[key] for key in wanted} == wanted
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assert first["tools"] == TOOLS
    assert [turn["role"] for turn in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert second["messages"][3] == {"role": "tool", "tool_call_id": "c1", "content": "no clouds"}
    assert set(fake.keys) == {"Bearer secret"}
    page.get_by_label("Seed").fill("99")
    page.get_by_label("Your text").fill("When will it end?")
    page.keyboard.press("Enter")
    expect(page.get_by_text("It never")).to_be_visible()  # before the answer has ended
    page.get_by_role("button", name="Stop writing").click()
    expect(page.get_by_text("stopped; not part of the chat")).to_be_visible()
    page.get_by_label("Temperature").fill("1.5")
    page.get_by_label("Your text").fill("And tomorrow?")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.bad")).to_have_text("temperature: too high")
    assert {url.split("/")[2] for url in requested if url.startswith("http")} == {studio.url.split("/")[2]}


LOOP = """\
model: ./tiny
data: {train: talk.jsonl, validation: 0.1, test: 6}
objective: {kind: preference, max_new_tokens: 6}
schedule: {epochs: 1, batch_rows: 8, learning_rate: 0.01, probe: false}
machine: {device: cpu, dtype: float32, threads: 1}
retention: false
loop: {rounds: 1, prompts: 8, held_out: 4, final_judge: "rules:few"}
"""
RULES = "def few(attempt):\n    return -sum(map(ord, attempt.text))\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a run that writes, one that labels, and the recipe of a loop."""
    folder = tmp_path_factory.mktemp("people")
    tiny_decoder(folder / "tiny")
    tiny_encoder(folder / "bert")
    rows = [{"prompt": f"question {n}", "completion": f"answer {n % 3}"} for n in range(40)]
    labelled = [{"text": f"phone {n} is {'good' if n % 2 else 'bad'}", "label": f"{n % 2}"} for n in range(40)]
    for name, lines in (("talk", rows), ("moods", labelled)):
        folder.joinpath(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    folder.joinpath("loop.yaml").write_text(LOOP, "utf-8")
    folder.joinpath("rules.py").write_text(RULES, "utf-8")
    options = {"schedule": {"epochs": 1, "probe": False}, "retention": False}
    for name, model, objective in (("talk", "tiny", "instruct"), ("moods", "bert", "classify")):
        recipe = {"model": str(folder / model), "data": {"train": str(folder / f"{name}.jsonl")}, **options}
        path = tmp_path_factory.mktemp("recipe") / f"{name}.yaml"
        path.write_text(json.dumps({**recipe, "objective": objective}), "utf-8")
        tune(path, out=folder / "runs" / name, offline=True, progress=False)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert main(["export", "runs/talk", "--format", "adapter", "--offline"]) == 0
    yield folder
    for job in Jobs(folder / ".studio" / "jobs", folder).active():  # the page does not stop with the studio
        job.stop()


@pytest.mark.long
def test_the_code_of_clients_runs_against_our_server(folder: Path, serve: Serve):
    server = serve("serve", folder / "runs" / "talk", folder / "runs" / "moods", "--offline")
    for name, found in (("talk", '"content"'), ("moods", '"probabilities"')):
        code = clients_of(read_run_data(folder / "runs" / name), server.url)
        assert "your text" in code["curl"]
        if shutil.which("curl"):
            done = subprocess.run(code["curl"], shell=True, capture_output=True, text=True, check=True)
            assert found in done.stdout
        done = subprocess.run([sys.executable, "-c", code["Python"]], capture_output=True, text=True, check=True)
        assert done.stdout.strip()
        compile(code["Python"], name, "exec")
        assert server.url.removesuffix("/v1") in code["JavaScript"]


def test_an_upload_of_a_run_lists_the_files_of_push_and_that_of_an_export_its_own(folder: Path):
    ship = Ship.__new__(Ship)
    ship.studio = SimpleNamespace(render=lambda name, **values: values)
    ship.workspace = SimpleNamespace(path=lambda name: folder / name)
    shown = ship._upload("runs/talk", "me/talk")
    assert shown["line"] == "tunesmith push runs/talk me/talk --base OWNER/BASE"
    assert {"README.md", "adapter_model.safetensors", "tunesmith.json"} <= set(shown["files"])
    assert not {"predictions.jsonl", "recipe.yaml"} & set(shown["files"])
    assert {"predictions.jsonl", "recipe.yaml"} <= set(shown["left_out"])
    assert "tunesmith ask me/talk" in shown["card"]
    exported = ship._upload("runs/talk/export/adapter", "me/talk")
    assert exported["line"].startswith("hf upload me/talk runs/talk/export/")
    assert exported["push"] == "tunesmith push runs/talk me/talk"


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("", ""), ("runs/talk/export/adapter", ""), ("http://127.0.0.1:9/v1#a", ""), ("../x", "not in"),
        ("/etc", "not in"), ("owner/model", "no such file"), ("file:///etc", "no such file"),
    ],
)  # fmt: skip
def test_the_form_verifies_the_run_what_is_in_the_folder_and_servers(folder: Path, target: str, problem: str):
    studio = Studio(folder)
    ship, started = Ship(studio), []
    studio.start = lambda *words, subject: started.append((words, subject))  # type: ignore[assignment, func-returns-value]
    ship.follow = lambda job: job  # type: ignore[method-assign]
    if problem:
        with pytest.raises(TunesmithError, match=problem):
            ship._verify({"run": "talk", "target": target})
        assert not started
        return
    ship._verify({"run": "talk", "target": target})
    assert started == [(("verify", "runs/talk", *(["--at", target] if target else [])), "runs/talk")]


def test_the_form_is_there_for_runs_with_a_challenge(folder: Path):
    ship, challenge = Ship(Studio(folder)), folder / "runs" / "talk" / "challenge.json"
    assert not challenge.exists()  # the tiny model is certain of nothing
    form = 'hx-post="/ship/verify"'
    assert form not in ship._screen("talk").body.decode()
    challenge.write_text("{}")
    assert form in ship._screen("talk").body.decode()
    challenge.unlink()


def test_labels_of_several_people_are_counted_with_their_agreement(tmp_path: Path):
    data = tmp_path / "moods.csv"
    data.write_text("text\nlovely\nso so\n")
    work = open_labelling(LabelRequest(str(data)), log=print)
    votes = (("ann", "good", "bad"), ("ben", "good", "good"))
    work.store.append(
        *(
            Entry(name, VOTE, item.key, {"label": label})
            for name, *labels in votes
            for item, label in zip(work.rows.items, labels, strict=True)
        )
    )
    work.store.close()
    found = votes_of(work.store.path, LabelledRows(data, 1))
    assert found["judged"] == 2
    assert [(rater["rater"], rater["votes"]) for rater in found["raters"]] == [("ann", 2), ("ben", 2)]
    assert (found["agreement"]["items"], found["agreement"]["same"]) == (2, 0.5)
    data.write_text("text\nso so\n")
    found = votes_of(work.store.path, LabelledRows(data, 2))
    assert (found["judged"], [rater["votes"] for rater in found["raters"]]) == (1, [1, 1])


def test_spans_of_several_people_are_counted_with_their_agreement_by_span(tmp_path: Path):
    data = tmp_path / "notes.csv"
    data.write_text("text\nbash 5.2 and 5.1\n")
    work = open_labelling(LabelRequest(str(data), spans=("A", "B")), log=print)
    (item,), ends = work.rows.items, (("ann", 4), ("ben", 5))
    work.store.append(*(Entry(name, VOTE, item.key, {"label": f'[[0,{end},"A"],[9,12,"B"]]'}) for name, end in ends))
    work.store.close()
    found = votes_of(work.store.path, LabelledRows(data, 1))
    assert found["agreement"] == {"items": 1, "exact_f1": 0.5, "overlap_f1": 1.0}
    page = Studio(tmp_path).render(
        "votes", job=SimpleNamespace(name="job", is_active=False), votes={**found, "items": 1}
    )
    assert "on texts marked by several people (1): F1" in page.body.decode()


def test_a_damaged_store_is_reported_in_its_panel_and_the_page_shows_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "moods.jsonl").write_text('{"text": "lovely"}\n')
    (tmp_path / "moods.labels.db").write_bytes(b"no store of votes")
    people, opened = People(Studio(tmp_path)), {"store": "moods.labels.db", "items": 2}
    command = SimpleNamespace(words=["label", "moods.jsonl"], subject="moods.jsonl")
    job = SimpleNamespace(name="job", command=command, is_active=False, output=lambda: opened)
    monkeypatch.setattr(people.jobs, "get", lambda name: job)
    assert "moods.labels.db: not a vote store; give one written by" in people._votes("job").body.decode()


def test_a_session_of_spans_needs_their_labels_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "notes.jsonl").write_text('{"text": "bash 5.2"}\n')
    people, started = People(Studio(tmp_path)), list[str]()
    monkeypatch.setattr(people, "_start", lambda words, fields, subject: started.extend(words))
    with pytest.raises(TunesmithError, match="write the labels of the spans first"):
        people._label({"path": "notes.jsonl", "spans": "on"})
    people._label({"path": "notes.jsonl", "spans": "on", "labels": "PACKAGE, VERSION"})
    assert started == ["label", "notes.jsonl", "--spans=PACKAGE,VERSION"]


def test_the_rows_of_a_labelling_session_are_written_with_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.csv").write_text("id,body,text,mood\n1,I love this,a,\n2,I hate this,b,\n")
    studio, started = Studio(tmp_path), list[tuple[str, ...]]()
    people = People(studio)
    words = ["label", "rows.csv", "--text=body", "--label=mood", "--labels=good,bad", "--port", "0"]
    job = SimpleNamespace(command=SimpleNamespace(words=words))
    monkeypatch.setattr(people.jobs, "get", lambda name: job)
    monkeypatch.setattr(studio, "start", lambda *words, **options: started.append(words))
    monkeypatch.setattr(people, "follow", lambda job: job)
    people._rows("job")
    with contextlib.chdir(tmp_path):
        session = open_labelling(LabelRequest("rows.csv", Columns("body", "mood"), ("good", "bad")), log=print)
        for row in session.rows.items:
            session.vote(Who("ann", "tab"), row.key, "good")
        session.store.close()
        assert main([*started[0], "--json"]) == 0
        written = Path("rows-labelled.jsonl").read_text().splitlines()
        assert [json.loads(line)["mood"] for line in written] == ["good", "good"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "playground: no model is chosen"),
        ({"server": "http://192.0.2.1/v1"}, "not on this machine, but --offline forbids"),
        ({"server": "file:///etc/passwd"}, "invalid server address"),
        ({"server": "http://127.0.0.1:9/v1"}, "lists 0 models; name one"),
        ({"gone": "on"}, "gone: no such run"),
        ({"comparison:../x": "on"}, "use letters, digits"),
    ],
)
def test_models_that_cannot_be_asked_are_refused_in_one_line(tmp_path: Path, fields: dict[str, str], problem: str):
    with pytest.raises(TunesmithError, match=problem) as raised:
        Playground(Studio(tmp_path, offline=True))._start(fields)
    assert "\n" not in str(raised.value)


def test_the_key_of_a_server_is_required_elsewhere_and_never_sent_in_the_clear(tmp_path: Path):
    playground = Playground(Studio(tmp_path))
    with pytest.raises(TunesmithError, match="not on this machine; give its key"):
        playground._start({"server": "https://192.0.2.1/v1"})
    with pytest.raises(TunesmithError, match="unencrypted"):
        playground._start({"server": "http://192.0.2.1/v1", "key": "k"})


@pytest.mark.long
@pytest.mark.browser
def test_people_judge_the_pairs_of_a_loop_which_then_learns(page: Page, browser: Browser, serve: Serve, folder: Path):
    studio = serve("studio", str(folder), "--offline")
    page.goto(f"{studio.url}people")
    page.get_by_role("button", name="Start the loop").click()
    expect(page.get_by_role("heading", name="loop", exact=True)).to_be_visible()
    page.goto(f"{studio.url}ship?run=talk")  # while the model answers
    expect(page.get_by_role("row", name="adapter")).to_contain_text(re.compile(r"kB.*answers on .* of .* rows.*yes"))
    expect(page.get_by_text("curl http://127.0.0.1:8378/v1/chat/completions")).to_be_visible()
    page.get_by_label("Repository").fill("me/talk")
    page.get_by_role("button", name="Show the upload").click()
    expect(page.get_by_text("tunesmith push runs/talk me/talk --base OWNER/BASE")).to_be_visible()
    page.goto(f"{studio.url}people")
    expect(page.get_by_text("judging", exact=True)).to_be_visible(timeout=COMMAND)
    page.get_by_role("button", name="Judge the pairs of round 1").click(timeout=COMMAND)
    link = page.get_by_role("link", name="Open the page")
    expect(link).to_be_visible(timeout=COMMAND)
    pairs = int(page.locator(".votes progress").get_attribute("max", timeout=COMMAND) or 0)
    other = browser.new_context().new_page()
    other.goto(str(link.get_attribute("href")))
    other.get_by_label("Your name").fill("ann")
    other.keyboard.press("Enter")
    expect(other.locator("#turns")).not_to_be_empty()
    for number in range(1, pairs + 1):
        other.keyboard.press("1")
        expect(other.locator("#done")).to_contain_text(str(number))
    other.context.close()
    expect(page.locator(".votes b").first).to_have_text(f"{pairs} of {pairs}")
    expect(page.locator(".votes").get_by_role("row", name="ann")).to_contain_text(str(pairs))
    page.get_by_role("button", name="Write the votes as rows").click()
    expect(page.get_by_role("link", name="Open the rows")).to_be_visible(timeout=COMMAND)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator(".session .state.stopped")).to_be_visible(timeout=COMMAND)
    expect(page.get_by_role("button", name="Add round 2")).to_be_visible(timeout=COMMAND)
    expect(page.locator(".timeline")).to_contain_text("held-out prompts")
