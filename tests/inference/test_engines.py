"""vLLM and SGLang over HTTP: the protocol on a stub, starting on a program that answers, and real vLLM in `slow`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from tests.bases import folder
from tests.engine_stub import Stub, engine_stub, write_program
from tests.served import HEAD, LABELS, save_run, served_outside
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError
from tunesmith.inference.engine_program import check_engine, command_of
from tunesmith.inference.engine_server import EngineServer
from tunesmith.inference.identify import MANIFEST_FILE, find_model
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.backends.openai_server import EngineBackend
from tunesmith.inference.serving.protocol import Limits
from tunesmith.models.generation.sampling import Sampling
from tunesmith.techniques import Full, Ia3, Lora, Prompt
from tunesmith.techniques.base import Technique

QUESTIONS = ("hi", "What is the capital of France?", "Summarise: the quick brown fox jumps over the lazy dog.")
FEW = Sampling(max_new_tokens=12)
# A program that answers as far as starting goes, and writes down how it was called.
PROGRAM = """#!{python}
import http.server, json, os, sys
kept = {{name: os.environ.get(name) for name in ("VLLM_API_KEY", "PYTHONPATH", "RANK", "VLLM_NO_USAGE_STATS")}}
with open({calls!r}, "a") as file:
    file.write(json.dumps([sys.argv[1:], kept]) + "\\n")
if "--fail" in sys.argv:
    sys.exit("ValueError: no such option")
base = sys.argv[2]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        card = {{"id": "base", "owned_by": "vllm", "root": base, "parent": None, "max_model_len": 99}}
        self.answer(json.dumps({{"data": [card]}}))
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer("Success")
    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *args):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs over one base: two adapters, a classifier by label words, and one with weights of its own."""
    place = tmp_path_factory.mktemp("runs")
    save_run(place / "lora", Lora(rank=12))
    save_run(place / "rslora", Lora(rank=4, rslora=True), seed=2)
    save_run(place / "labels", Lora(rank=4), LABELS, seed=3)
    save_run(place / "full", Full(), lively=0.05)
    return place


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with engine_stub(folder("llama")) as found:
        yield found


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The folder of an environment with a program called vllm; `calls` next to it lists how it was called."""
    place = tmp_path / "environment" / "bin"
    place.mkdir(parents=True)
    text = PROGRAM.format(python=sys.executable, calls=str(tmp_path / "calls"))
    (place / "vllm").write_text(text)
    (place / "vllm").chmod(0o755)
    return place.parent


def test_adapters_and_the_base_answer_as_in_python(runs: Path, stub: Stub):
    with EngineServer(stub.url, offline=True) as engine:
        for name in (str(runs / "lora"), str(runs / "rslora"), str(folder("llama"))):
            here, there = (open_model(name, offline=True, engine=one) for one in (None, engine))
            chats = [[Message("user", question)] for question in QUESTIONS]
            assert there.replies(chats, sampling=FEW) == here.replies(chats, sampling=FEW), name
            assert there.complete(["The quick"], sampling=FEW) == here.complete(["The quick"], sampling=FEW)
    assert len(set(stub.adapters)) == len(stub.adapters)  # a name of its own for every adapter


def test_an_adapter_of_another_program_and_damaged_runs(runs: Path, tmp_path: Path, stub: Stub):
    foreign, broken = tmp_path / "foreign", tmp_path / "broken"
    shutil.copytree(runs / "lora" / "model", foreign, ignore=shutil.ignore_patterns("*.json"))
    for name in ("adapter_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(runs / "lora" / "model" / name, foreign / name)
    shutil.copytree(runs / "lora", broken)
    weights = broken / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    chats = [[Message("user", question)] for question in QUESTIONS]
    with EngineServer(stub.url, offline=True) as engine:
        base = str(folder("llama"))
        here, there = (open_model(foreign, base=base, offline=True, engine=one) for one in (None, engine))
        assert there.replies(chats, sampling=FEW) == here.replies(chats, sampling=FEW)
        loaded = len(stub.folders)
        with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
            open_model(broken, offline=True, engine=engine)
    assert len(stub.folders) == loaded


def test_labels_are_chosen_with_the_probabilities_of_python(runs: Path, stub: Stub):
    texts = ["This phone is good", "This phone is bad", "hm"]
    with EngineServer(stub.url, offline=True) as engine:
        there = open_model(runs / "labels", offline=True, engine=engine).classify(texts)
    for found, wanted in zip(there, load(runs / "labels").classify(texts), strict=True):
        assert found.labels == wanted.labels
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_thoughts_are_apart_in_every_mode_as_in_python(tmp_path: Path):
    save_run(tmp_path / "thinks", Lora(rank=4), kind="qwen3", lively=0.1)
    chats = [[Message("user", question)] for question in QUESTIONS]
    with engine_stub(folder("qwen3")) as other, EngineServer(other.url, offline=True) as engine:
        there, here = (open_model(tmp_path / "thinks", offline=True, engine=one) for one in (engine, None))
        for thinking in (True, False, None):
            found, wanted = (one.replies(chats, sampling=FEW, thinking=thinking) for one in (there, here))
            assert found == wanted
        # The mode is a part of the prompt.
        assert len({tuple(asked["prompt"]) for asked in other.asked}) == 2 * len(chats)


def test_an_engine_that_ends_is_told_at_once(runs: Path):
    with engine_stub(folder("llama")) as other:
        engine = EngineServer(other.url, offline=True)
        model = open_model(runs / "lora", offline=True, engine=engine)
    chats = [[Message("user", f"question {i}")] for i in range(200)]
    with pytest.raises(DataError, match="cannot be reached .*start it"):
        model.replies(chats)
    with pytest.raises(DataError, match="the engine does not answer"):
        open_model(runs / "rslora", offline=True, engine=engine)


def test_a_run_of_its_own_weights_is_a_base(runs: Path, stub: Stub):
    with (
        engine_stub(find_model(runs / "full")) as own,
        EngineServer(own.url, offline=True) as engine,
    ):
        chats = [[Message("user", question)] for question in QUESTIONS]
        model = open_model(runs / "full", offline=True, engine=engine)
        assert model.replies(chats) == load(runs / "full").replies(chats)
        assert list(EngineBackend({"full": runs / "full"}, engine, offline=True).models) == ["full"]
    with (
        EngineServer(stub.url, offline=True) as engine,
        pytest.raises(ModelError, match=r"vLLM: its base is .*llama, and one engine has one base"),
    ):
        open_model(runs / "full", offline=True, engine=engine)


@pytest.mark.parametrize(
    ("technique", "objective", "kind", "said"),
    [
        (Ia3(), None, "llama", "vLLM takes plain LoRA and whole models, not this adapter; leave --engine out"),
        (Prompt(tokens=5), None, "llama", "vLLM takes plain LoRA and whole models"),
        (Lora(rank=4, dora=True), None, "llama", "vLLM takes plain LoRA and whole models"),
        (Lora(rank=4), HEAD, "bert", "an encoder generates no text in vLLM"),
        (Lora(rank=4), HEAD, "llama", "answers through a head, which vLLM would not load"),
    ],
)
def test_what_an_engine_cannot_answer_with_is_refused_in_one_line(
    technique: Technique, objective: Any, kind: str, said: str, tmp_path: Path, stub: Stub
):
    more = {} if objective is None else {"objective": objective}
    save_run(tmp_path / "one", technique, kind=kind, **more)
    with EngineServer(stub.url, offline=True) as engine, pytest.raises(ModelError, match=f"one: {said}"):
        open_model(tmp_path / "one", offline=True, engine=engine)


def test_a_run_over_a_run_is_refused(runs: Path, tmp_path: Path, stub: Stub):
    save_run(tmp_path / "two", Lora(rank=4))
    page = find_model(tmp_path / "two") / MANIFEST_FILE
    page.write_text(json.dumps(json.loads(page.read_text()) | {"base": str(runs / "lora")}))
    with EngineServer(stub.url, offline=True) as engine, pytest.raises(ModelError, match="its base is a run.*merged"):
        open_model(tmp_path / "two", offline=True, engine=engine)


def test_the_server_before_an_engine_answers_whole_and_in_pieces_as_python_does(runs: Path, stub: Stub):
    paths = {name: runs / name for name in ("lora", "rslora")}
    program = EngineBackend(paths, EngineServer(stub.url, offline=True), offline=True)
    with served_outside(program, limits=Limits(rows=4)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        assert {model.id for model in client.models.list()} == {*paths, "llama"}
        for name in paths:
            for question in QUESTIONS:
                wanted = load(runs / name).reply([Message("user", question)])
                turns: Any = [{"role": "user", "content": question}]
                whole = client.chat.completions.create(model=name, messages=turns)
                assert whole.choices[0].message.content == wanted.text
                assert whole.choices[0].finish_reason == ("stop" if wanted.finished else "length")
                assert whole.usage is not None
                counts = (whole.usage.prompt_tokens, whole.usage.completion_tokens)
                assert counts == (wanted.prompt_tokens, wanted.new_tokens)
                parts = client.chat.completions.create(model=name, messages=turns, stream=True)
                assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted.text
        assert server.bugs == []


def test_settings_log_probabilities_and_schemas_reach_the_engine(runs: Path, stub: Stub):
    program = EngineBackend({"one": runs / "lora"}, EngineServer(stub.url, offline=True), offline=True)
    with served_outside(program, limits=Limits(rows=2)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        turns: Any = [{"role": "user", "content": "hi"}]
        settings: Any = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"]}
        client.chat.completions.create(model="one", messages=turns, **settings)
        asked = stub.asked[-1]
        assert asked["prompt"] == load(runs / "lora").prompt([Message("user", "hi")])
        assert asked["model"].startswith("adapter-")
        assert settings.items() <= asked.items()
        neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}
        assert neutral.items() <= asked.items()
        answer = client.chat.completions.create(
            model="one", messages=turns, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
        )
        scored = answer.choices[0].logprobs
        assert scored is not None
        assert scored.content is not None
        assert [len(token.top_logprobs) for token in scored.content] == [2, 2, 2]
        assert all(token.logprob == token.top_logprobs[0].logprob for token in scored.content)  # greedy
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        client.chat.completions.create(model="one", messages=turns, max_tokens=3, response_format=form)
        assert stub.asked[-1]["response_format"]["json_schema"]["schema"] == schema
        form["json_schema"]["schema"] = {"type": "nonsense"}
        with pytest.raises(openai.BadRequestError, match=r"response_format: rejected by vLLM \(Grammar error"):
            client.chat.completions.create(model="one", messages=turns, response_format=form)
        with pytest.raises(openai.BadRequestError, match="served by vLLM, which gives no embeddings here"):
            client.embeddings.create(model="one", input="x")
        assert server.bugs == []


def test_sglang_names_adapters_in_a_field_of_its_own_and_scores_no_labels(runs: Path):
    with engine_stub(folder("llama"), owner="sglang") as other, EngineServer(other.url, offline=True) as engine:
        chats = [[Message("user", question)] for question in QUESTIONS]
        model = open_model(runs / "lora", engine=engine)
        assert model.replies(chats) == load(runs / "lora").replies(chats)
        assert other.asked[-1]["model"] == "base"
        assert other.asked[-1]["lora_path"].startswith("adapter-")
        prompts = [model.prompt(chat) for chat in chats]
        adapter = model.adapter  # type: ignore[attr-defined]
        more: Any = {"sampling": FEW, "template": model.template, "scored": True}
        (first, second), *_ = engine.sample(adapter, prompts, count=2, **more)  # as rollouts are
        assert first.logprobs == second.logprobs
        assert len(first.logprobs) == len(first.ids) + len(first.end)
        with pytest.raises(ModelError, match="SGLang: labels are scored by vLLM or torch"):
            open_model(runs / "labels", engine=engine).classify("x")
        with pytest.raises(
            ModelError, match=r"SGLang: cannot load the adapter .*No adapter found.* --enable-lora, wher"
        ):
            engine.open(folder("llama"), runs, rank=4)


def test_the_server_before_sglang_answers_in_pieces_with_the_end_apart_and_reports_its_errors(runs: Path):
    with engine_stub(folder("llama"), owner="sglang") as other:
        program = EngineBackend({"one": runs / "lora"}, EngineServer(other.url, offline=True), offline=True)
        with served_outside(program, limits=Limits(rows=2)) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
            turns: Any = [{"role": "user", "content": QUESTIONS[1]}]
            parts = list(client.chat.completions.create(model="one", messages=turns, stream=True, logprobs=True))
            wanted = load(runs / "lora").reply([Message("user", QUESTIONS[1])])
            assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted.text
            assert parts[-1].choices[0].finish_reason == ("stop" if wanted.finished else "length")
            form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
            with pytest.raises(openai.BadRequestError, match=r"response_format: rejected by SGLang \(Grammar error"):
                client.chat.completions.create(model="one", messages=turns, response_format=form)
            with pytest.raises(openai.BadRequestError, match="top_logprobs: this engine does not report ids of tokens"):
                client.chat.completions.create(model="one", messages=turns, logprobs=True, top_logprobs=2)
            assert server.bugs == []


@pytest.mark.long
def test_sglang_that_is_started_here_reads_its_key_from_a_file_that_is_gone_once_it_answers(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_SGLANG", str(write_program(tmp_path / "environment", "sglang")))
    with EngineServer("sglang", offline=True) as engine:
        chat = [Message("user", QUESTIONS[1])]
        assert open_model(runs / "lora", engine=engine).reply(chat) == load(runs / "lora").reply(chat)
        assert engine.title == "SGLang"
        process = engine._process
        assert process is not None
        words = Path(f"/proc/{process._process.pid}/cmdline").read_text().split("\0")
        assert not any(engine.endpoint.key in word for word in words)
        assert "--enable-lora" in words
        assert not Path(words[words.index("--config") + 1]).exists()
        with EngineServer(engine.endpoint.url) as stranger, pytest.raises(DataError, match="401"):
            open_model(folder("llama"), engine=stranger).reply(chat)


def test_an_encoder_is_refused_before_the_program_is_looked_for(runs: Path, tmp_path: Path):
    save_run(tmp_path / "one", Lora(rank=4), HEAD, kind="bert")
    missing = str(tmp_path / "vllm")
    with pytest.raises(ModelError, match="one: an encoder generates no text in vLLM; leave --engine out"):
        check_engine(missing, tmp_path / "one", offline=True)
    with pytest.raises(ModelError, match="engine: no program"):
        check_engine(missing, runs / "lora", offline=True)
    check_engine("", runs / "lora", offline=True)


def test_an_engine_that_loads_no_adapters_says_how_to_start_it(runs: Path):
    with (
        engine_stub(folder("llama"), loads=False) as other,
        EngineServer(other.url, offline=True) as engine,
        pytest.raises(ModelError, match=r"cannot load the adapter .*404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ):
        open_model(runs / "lora", engine=engine)


def test_a_running_engine_gets_the_key_and_other_servers_are_told_apart(runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNESMITH_API_KEY", "secret")
    with engine_stub(folder("llama"), key="secret") as other, EngineServer(f"{other.url}/v1", offline=True) as engine:
        assert open_model(folder("llama"), engine=engine).reply([Message("user", "hi")]).new_tokens
    with (
        engine_stub(folder("llama"), owner="llamacpp") as other,
        EngineServer(other.url, offline=True) as engine,
        pytest.raises(DataError, match="neither vLLM nor SGLang"),
    ):
        open_model(folder("llama"), engine=engine)
    with pytest.raises(DataError, match="--offline forbids network access"):
        EngineServer("http://203.0.113.1:8000", offline=True)


def test_a_program_is_found_by_name_path_and_variable(program: Path, monkeypatch: pytest.MonkeyPatch):
    path = str(program / "bin" / "vllm")
    monkeypatch.delenv("TUNESMITH_VLLM", raising=False)
    with pytest.raises(ModelError, match="no program 'vllm'; install it in a separate environment.*TUNESMITH_VLLM="):
        command_of("vllm")
    assert command_of(f"{path} --dtype auto") == ["vllm", path, "--dtype", "auto"]
    for value in (path, str(program)):
        monkeypatch.setenv("TUNESMITH_VLLM", value)
        assert command_of("vllm --swap-space 1") == ["vllm", path, "--swap-space", "1"]
    assert command_of("http://127.0.0.1:8000") == []
    with pytest.raises(RecipeError, match="expected vllm, sglang, .* got 'vlm'"):
        command_of("vlm")


def test_a_started_engine_knows_base_and_ranks_hides_its_key_and_ends_with_us(
    program: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TUNESMITH_VLLM", str(program))
    engine = EngineServer("vllm --max-model-len 99", offline=True, rows=5, adapters=3)
    open_model(folder("llama"), engine=engine)
    open_model(runs / "lora", engine=engine)  # starts again, with room for adapters
    process = engine._process
    assert process is not None
    (first, _), (second, environment) = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert first[:2] == ["serve", str(folder("llama"))]
    assert "--enable-lora" not in first
    given = dict(zip(second, second[1:], strict=False))
    wanted = {"--host": "127.0.0.1", "--max-num-seqs": "5", "--max-loras": "3", "--max-lora-rank": "64"}
    assert wanted.items() <= given.items()
    assert given["--dtype"] == ("bfloat16" if torch.cuda.is_available() else "float32")
    assert second[-2:] == ["--max-model-len", "99"]  # last, so that the user's options win
    assert environment["VLLM_API_KEY"] == engine.endpoint.key
    assert engine.endpoint.key not in second
    assert (environment["PYTHONPATH"], environment["RANK"], environment["VLLM_NO_USAGE_STATS"]) == (None, None, "1")
    assert engine.positions == 99
    engine.close()
    assert process._process.poll() is not None
    assert not process._folder.exists()
    open_model(folder("llama"), engine=engine)  # with room for the adapter, which is loaded again
    engine.close()
    assert "--enable-lora" in json.loads((tmp_path / "calls").read_text().splitlines()[-1])[0]


def test_an_engine_that_does_not_start_says_why(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # its log is kept
    monkeypatch.setenv("TUNESMITH_VLLM", str(program))
    with (
        EngineServer("vllm --fail", offline=True) as engine,
        pytest.raises(ModelError, match=r"vLLM: did not start \(ValueError: no such option\); see .*log.txt"),
    ):
        open_model(folder("llama"), engine=engine)
