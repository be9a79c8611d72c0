"""The server asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.served import HEAD, LABELS, Served, save_run, served
from tunesmith.data.examples import Message
from tunesmith.inference.folder import load
from tunesmith.model.device import Machine
from tunesmith.techniques import Ia3, Lora

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
    with pytest.MonkeyPatch.context() as patch:
        known = Machine("cpu", "float32", 1, {}, "known")
        patch.setattr("tunesmith.inference.folder.choose_machine", lambda **_: known)
        sources = {name: [runs / name] for name in ("one", "two", "mood", "head")}
        with served(sources, splits={"both": {"one": 1.0, "two": 1.0}}) as found:
            yield found
            assert found.bugs == []


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Machine("cpu", "float32", 1, {}, "known")
    monkeypatch.setattr("tunesmith.inference.folder.choose_machine", lambda **_: known)


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


def test_labels_come_with_calibrated_scores(server: Served, runs: Path):
    for name in ("mood", "head"):
        answer = httpx.post(f"{server.url}/classify", json={"model": name, "input": list(QUESTIONS)}).json()
        for told, found in zip(answer["data"], load(runs / name).classify(QUESTIONS), strict=True):
            assert told["label"] == found.label
            assert told["probabilities"] == pytest.approx(found.probabilities, abs=1e-4)
