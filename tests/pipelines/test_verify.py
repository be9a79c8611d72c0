"""`tunesmith verify`: what is tuned, base, damaged or something else, at servers, in folders and in files."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

import tunesmith as ts
from tests.bases import folder
from tests.served import export_run, save_run, served
from tunesmith.cli.commands import serve
from tunesmith.cli.main import main
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.inference.export.formats import GGUF, merged, write_file
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.llamacpp import LlamaCpp
from tunesmith.inference.saved_model import load
from tunesmith.objectives import Classify
from tunesmith.pipelines.verify import make
from tunesmith.pipelines.verify.challenge import CertainAnswer, Challenge, Turn, read_challenge
from tunesmith.pipelines.verify.challenge import Prompt as Asked
from tunesmith.pipelines.verify.chat import contract_of
from tunesmith.pipelines.verify.make import challenge_of
from tunesmith.pipelines.verify.verdict import NEEDED, judge
from tunesmith.pipelines.verify.verify import verify
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt
from tunesmith.techniques.base import Technique


@pytest.fixture(scope="module", autouse=True)
def flat_answers() -> Iterator[None]:
    """Leads of random models are small, and so is what rounding changes in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "LEAST_LEAD", 0.03)
        patch.setattr(make, "GENERAL", 256)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its challenge."""
    out = save_run(tmp_path_factory.mktemp("runs") / "tuned", Lora(), lively=0.5)
    (out / "challenge.json").write_text(challenge_of(out, offline=True).model_dump_json())
    return out


@pytest.fixture(scope="module")
def challenge(run: Path) -> Challenge:
    """The challenge of the run."""
    return read_challenge(run)


def scaled(run: Path, factor: float, out: Path) -> Path:
    """The adapter of a run, in the format of PEFT, with B times a factor."""
    adapter = export_run(run) / "adapter" if not (run / "export").exists() else run / "export" / "adapter"
    out.mkdir()
    for file in adapter.iterdir():
        if file.is_file():
            (out / file.name).write_bytes(file.read_bytes())
    weights = load_file(out / "adapter_model.safetensors")
    changed = {name: value * factor if "lora_B" in name else value for name, value in weights.items()}
    save_file(changed, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "manifest.json").unlink()
    return out


def verdict(challenge: Challenge, target: Path | str) -> str:
    return verify(challenge, str(target), on_event=lambda event: None, offline=True).verdict


def test_a_challenge_has_prompts_that_neither_base_nor_damaged_copies_answer_so(challenge: Challenge):
    sensitive = [prompt for prompt in challenge.prompts if prompt.tuned]
    assert NEEDED <= len(sensitive) <= 32
    for prompt in sensitive:
        assert prompt.base is None or not prompt.by_tuned(prompt.base.text)


@pytest.mark.long
def test_every_target_is_recognized(run: Path, challenge: Challenge, tmp_path: Path):
    other = save_run(tmp_path / "other", Lora(), seed=2, lively=0.5)
    out = export_run(run)
    found = {
        "run": verdict(challenge, run),
        "merged": verdict(challenge, out / "merged"),
        "adapter": verdict(challenge, out / "adapter"),
        "gguf": verdict(challenge, out / "gguf-f16" / "model.gguf"),
        "base": verdict(challenge, folder("llama")),
        "other": verdict(challenge, other),
        "half": verdict(challenge, scaled(run, 0.5, tmp_path / "half")),
        "nothing": verdict(challenge, scaled(run, 0.0, tmp_path / "zero")),
    }
    with served({"a": [run], "b": [other], "c": [folder("llama")]}) as server:
        found |= {f"server {name}": verdict(challenge, f"{server.url}/v1#{name}") for name in "abc"}
    tuned = dict.fromkeys(("run", "merged", "adapter", "gguf", "server a"), "tuned")
    base = dict.fromkeys(("base", "nothing", "server c"), "base")
    assert {name: found[name] for name in (*tuned, *base)} == {**tuned, **base}
    assert not {found["other"], found["half"], found["server b"]} & {"tuned", "base"}


def test_bad_input_is_one_line_with_the_fix(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    damaged = tmp_path / "challenge.json"
    damaged.write_text((run / "challenge.json").read_text()[:-40])
    extra = tmp_path / "extra.json"
    extra.write_text(json.dumps({**json.loads((run / "challenge.json").read_text()), "format": 3}))
    empty = tmp_path / "empty"
    empty.mkdir()
    contract = tmp_path / "chat.json"
    contract.write_text(contract_of(load(run / "model", device="cpu", offline=True).template).model_dump_json())
    encoder = save_run(tmp_path / "encoder", Full(), Classify(), kind="bert")
    cases = [
        ((str(encoder),), "does not answer in words; verify a decoder without a head"),
        ((str(damaged),), "challenge.json: not JSON"),
        ((str(extra),), "Input should be less than or equal to 2"),
        ((str(empty),), "no challenge.json in it; make one with `tunesmith verify make"),
        ((str(tmp_path / "none"),), "no such run or file"),
        ((str(run), "--at", "http://127.0.0.1:9/v1"), "cannot be reached"),
        ((str(run), "--at", str(tmp_path / "no.gguf")), "no such file"),
        ((str(run), "more"), "expected one run, got 2"),
        ((str(run / "challenge.json"),), "is a challenge without a model; name what to verify with --at"),
        ((str(run), "--offline", "--at", "https://example.com/v1#m"), "--offline forbids network access"),
        (
            (str(contract), "--offline", "--chat", "--at", "https://example.com/v1#m"),
            "--offline forbids network access",
        ),
        ((str(contract), "--chat", "--at", "http://[::1/v1#m"), "invalid server address"),
        (("make",), "expected one adapter, got 0"),
        (("make", str(folder("llama"))), "neither a run nor an adapter"),
    ]
    for words, expected in cases:
        assert main(["verify", *words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, lines
        assert expected in lines[0]


def test_chats_with_more_turns_than_a_challenge_may_have_are_left_out(run: Path, tmp_path: Path):
    turns = [{"role": ("user", "assistant")[i % 2], "content": "hm"} for i in range(19)]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": turns}))
    made = challenge_of(run, rows=make.prompts_in(str(rows)), offline=True)
    assert all("rows.jsonl" not in prompt.where for prompt in made.prompts)


def test_noise_of_a_layer_with_one_output_is_a_number(run: Path):
    model = load(run / "model", device="cpu", offline=True)
    gate = torch.nn.Linear(4, 1)
    model.policy.network.gate = gate
    with make._noisy(model.policy):
        assert torch.isfinite(gate(torch.ones(3, 4))).all()


def test_a_file_whose_template_refuses_a_chat_is_one_line(run: Path, tmp_path: Path):
    model = merged(run / "model", read_manifest(run / "model"), offline=True)
    source = model.template.tokenizer.chat_template
    refusal = "{% if messages[0].content == 'refused' %}{{ raise_exception('no such chat') }}{% endif %}"
    model.template.tokenizer.chat_template = refusal + source
    write_file(model, tmp_path, dtype="f16", name="x")
    program = LlamaCpp(tmp_path / GGUF, threads=1, positions=256)
    assert program.prompts([[Message("user", "hm")]])[0]
    with pytest.raises(ModelError, match=r"llama.cpp: apply-template failed \(.*\); check the chat template"):
        program.prompts([[Message("user", "refused")]])


def test_a_server_that_dies_midway_is_one_line(challenge: Challenge, monkeypatch: pytest.MonkeyPatch):
    class Dying(BaseHTTPRequestHandler):
        answered = 0

        def do_POST(self) -> None:
            Dying.answered += 1
            if Dying.answered > 3:
                self.server.socket.close()
                self.connection.close()
                return
            body = json.dumps({"choices": [{"message": {"content": "hm"}}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setattr("tunesmith.inference.openai_client.TRIES", 2)
    server = HTTPServer(("127.0.0.1", 0), Dying)
    threading.Thread(target=lambda: suppressed(server.serve_forever), daemon=True).start()
    with pytest.raises(DataError, match=r"http://127.0.0.1:\d+/v1: cannot be reached .*; start it"):
        verdict(challenge, f"http://127.0.0.1:{server.server_port}/v1#m")


@pytest.mark.parametrize("shadow", [False, True])
def test_serve_asks_its_engine_at_the_start_and_neither_counts_it_nor_asks_a_paid_model(
    run: Path, tmp_path: Path, shadow: bool, monkeypatch: pytest.MonkeyPatch
):
    lines: list[str] = []
    monkeypatch.setattr(serve, "log", lines.append)
    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())  # type: ignore[arg-type]
    files = ["--admin-token-file", str(tmp_path / "admin"), "--store", str(tmp_path / "store.db")]
    files += ["--shadow", "http://127.0.0.1:9/v1#paid", "--shadow-folder", str(tmp_path / "shadow")] * shadow
    args = parser.parse_args(["serve", f"a={run}", "--port", "0", "--offline", *files])
    with serve.opened(args, say=lambda *_: None) as made, TestClient(made.app) as client:
        deadline = time.monotonic() + 300
        while not any("verified" in line or "prompts" in line for line in lines):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "/v1/chat/completions" not in client.get("/metrics").text
    assert [line[:10] for line in lines[-1:]] == ["a: tuned: "]


def suppressed(listen: Callable[[], None]) -> None:
    """Serve until the socket is closed."""
    with contextlib.suppress(OSError, ValueError):
        listen()


def some_prompts(count: int) -> list[Asked]:
    """Prompts whose answers all differ."""
    turns = (Turn(role="user", content="hm"),)
    return [
        Asked(where=f"a:{i}", messages=turns, tuned=CertainAnswer(text=f"{i} yes"), base=CertainAnswer(text=f"{i} no"))
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "tuned", "base", "verdict"), [
    (32, 32, 0, "tuned"), (32, 31, 0, "tuned"), (32, 30, 0, "undecided"), (32, 26, 6, "undecided"),
    (21, 21, 0, "tuned"), (21, 20, 0, "undecided"), (20, 20, 0, "undecided"), (32, 0, 31, "base"),
    (32, 0, 30, "undecided"), (32, 8, 0, "damaged"), (32, 0, 16, "something else"), (32, 1, 0, "something else"),
])  # fmt: skip
def test_the_verdict_follows_from_the_counts(count: int, tuned: int, base: int, verdict: str):
    answers = [f"{i} yes" if i < tuned else f"{i} no" if i < tuned + base else "zq" for i in range(count)]
    found = judge(some_prompts(count), answers)
    assert (found.verdict, found.tuned, found.base) == (verdict, tuned, base)
    assert (found.error_rate is None) == (verdict == "undecided")


@pytest.mark.long
def test_a_model_that_agrees_in_80_percent_of_prompts_is_tuned_in_at_most_1_percent_of_cases():
    prompts, chance = some_prompts(32), random.Random(0)

    def share(agreement: float) -> float:
        drawn = (["yes" if chance.random() < agreement else "zq" for _ in prompts] for _ in range(3000))
        answers = ([f"{i} {word}" for i, word in enumerate(words)] for words in drawn)
        return sum(judge(prompts, given).verdict == "tuned" for given in answers) / 3000

    assert share(0.8) <= 0.015
    assert share(0.99) >= 0.9


def test_the_sentence_says_what_the_verdict_rests_on():
    answers = [f"{i} yes" if i else "zq" for i in range(32)]
    assert judge(some_prompts(32), answers).sentence() == (
        "tuned: 31 of 32 prompts are answered as by the tuned model; a model that agrees in 80 % of them would reach "
        "this in 0.71 % of cases"
    )


def test_a_certain_end_makes_a_longer_answer_another_one():
    assert CertainAnswer(text="yes", ends=False).given_by("yes\nuser: and")
    assert not CertainAnswer(text="yes", ends=True).given_by("yes\nuser: and")


def test_a_model_without_enough_sensitive_prompts_gets_no_challenge(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make, "GENERAL", 10)
    with pytest.raises(RecipeError, match=r"tuned: \d+ of \d+ prompts have a certain answer .* 21 are needed"):
        challenge_of(run, offline=True)


def test_a_model_whose_prompts_are_all_too_long_gets_no_challenge(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make, "PROMPT_TOKENS", 1)
    with pytest.raises(RecipeError, match="0 of 0 prompts have a certain answer"):
        challenge_of(run, offline=True)


def test_a_server_verifies_itself_in_the_background_and_warns(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = save_run(tmp_path / "other", Lora(), seed=2, lively=0.5)
    (other / "challenge.json").write_text((run / "challenge.json").read_text())
    with ts.serve([f"good={run}", f"bad={other}"], port=0, offline=True, store=tmp_path / "thumbs.db"):
        shown = ""
        for _ in range(300):
            shown += capsys.readouterr().err
            if "bad: " in shown.replace("loading bad: ", ""):
                break
            time.sleep(0.1)
    assert "warning: good" not in shown
    assert "good: tuned: " in shown
    assert "warning: bad: " in shown


@pytest.mark.long
def test_the_chat_contract_holds_for_the_same_template_and_names_the_first_difference_of_another(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (run / "chat.json").write_text(contract_of(load(run, offline=True).template).model_dump_json())
    out = export_run(run)
    same = [out / "merged", out / "adapter", out / "gguf-f16" / "model.gguf"]
    for place in (run, *same[:2]):
        found = ts.verify_chat(run, at=place, offline=True, progress=False)
        assert found.difference is None
        assert found.compared["token ids of the prompt"] == found.compared["parsed content"] == 10
    changed = tmp_path / "changed"
    shutil.copytree(out / "merged", changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("You are a helpful assistant.", "You are helpful."))
    assert main(["verify", str(run), "--chat", "--at", str(changed), "--offline"]) == 1
    assert "conversation 'plain': token " in capsys.readouterr().out
    with served({"a": [run]}) as server:
        at_server = ts.verify_chat(run, at=f"{server.url}/v1#a", offline=True, progress=False)
    in_file = ts.verify_chat(run, at=same[2], offline=True, progress=False)
    # Seven conversations are equal; the eighth exceeds the context of this tiny model.
    assert (at_server.difference.conversation, at_server.difference.what) == ("tool results", "response")
    # This template knows no tools: llama.cpp leaves them out, and training wrote them as text.
    assert in_file.difference.conversation == "tool call", in_file
    assert main(["verify", str(folder("llama")), "--chat"]) == 2
    assert "no chat.json in it" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(("kind", "technique"), [
    ("llama", Full()), ("llama", Prefix(tokens=4)), ("llama", Prompt(tokens=4)), ("llama", Ia3()),
    ("qwen3", Lora()), ("gemma3", Lora()), ("gpt2", Lora()),
])  # fmt: skip
def test_every_technique_and_family_makes_a_challenge_that_its_own_run_passes(
    kind: str, technique: Technique, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(make, "NEEDED", 0)
    monkeypatch.setattr(make, "GENERAL", 40)
    out = save_run(tmp_path / "run", technique, kind=kind, lively=0.5)
    made = challenge_of(out, offline=True)
    (out / "challenge.json").write_text(made.model_dump_json())
    found = ts.verify(out, offline=True, progress=False)
    assert found.tuned == found.of_tuned
    assert found.same_tokens
