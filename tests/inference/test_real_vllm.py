"""Real vLLM, in an environment of its own that TUNESMITH_VLLM names, answers as Python does.

How that environment was made on a machine without a GPU is in bench/NOTES.md, "vLLM and SGLang over HTTP".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from tests.pipelines.conftest import tune
from tests.served import served, served_outside
from tunesmith.config import make_recipe
from tunesmith.data.tokenization.chat_template import Template, Tokens
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import ModelError
from tunesmith.inference.engine_program import command_of
from tunesmith.inference.engine_server import EngineServer
from tunesmith.inference.identify import ModelManifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import save_model
from tunesmith.inference.serving.backends.openai_server import EngineBackend
from tunesmith.inference.serving.protocol import Limits
from tunesmith.models.batch import pack
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.load import load_base
from tunesmith.objectives import Classify, Instruct
from tunesmith.techniques import Lora

BASE = "smollm2-135m"
OPTIONS = "--enforce-eager --max-model-len 512"
QUESTIONS = [
    f"{ask} {what}?"
    for ask in ("What is", "How would you describe", "Name two facts about")
    for what in ("water", "Paris", "the sun", "a dog", "music", "a computer", "bread", "the sea")
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


def program() -> str:
    try:
        return command_of("vllm")[1]
    except ModelError:
        return ""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not shutil.which(program() or "none"), reason="TUNESMITH_VLLM names no environment with vllm"),
]


def save(folder: Path, objective: Any, seed: int) -> Path:
    """A run over the real base whose adapter changes every layer, without being trained."""
    base = load_base(BASE, offline=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Lora(rank=8).adapt(base.network, family=base.family, keep_reference=False)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, value in policy.trainable():
            value.add_(torch.randn(value.shape, generator=chance), alpha=0.01)
    template = Template(base.tokenizer)
    manifest = ModelManifest(
        base=BASE,
        fingerprint=base.fingerprint,
        family=base.family,
        objective=objective,
        technique=Lora(rank=8),
        template_hash=template.hash,
        limit=256,
    )
    policy.train(False)
    save_model(folder / "model", LocalModel(policy, template, objective, 256), manifest)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    save(place / "writes", Instruct(max_new_tokens=24), seed=1)
    save(place / "labels", Classify(labels=("positive", "negative"), output="words"), seed=2)
    return place


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    """The address of vLLM, started as a command would; it serves every test of this file."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3000")  # a step with an adapter on a busy processor
    with EngineServer(f"vllm {OPTIONS}", offline=True) as engine:
        open_model(runs / "writes", engine=engine, offline=True)
        os.environ["TUNESMITH_API_KEY"] = engine.endpoint.key
        yield engine.endpoint.url
        del os.environ["TUNESMITH_API_KEY"]


@pytest.mark.parametrize("name", [BASE, "writes"])
def test_greedy_tokens_and_their_log_probabilities_are_those_of_python(
    name: str, url: str, runs: Path, record_property: Any
):
    place = name if name == BASE else str(runs / name)
    here = open_model(place, offline=True)
    with EngineServer(url, offline=True) as engine:
        there = open_model(place, engine=engine, offline=True)
        prompts = [here.prompt([Message("user", question)]) for question in QUESTIONS]
        assert prompts == [there.prompt([Message("user", question)]) for question in QUESTIONS]
        sampling = Sampling(max_new_tokens=24)
        wanted = here._generate(prompts, sampling)
        adapter = there.adapter  # type: ignore[attr-defined]
        found = engine.sample(adapter, prompts, sampling=sampling, template=there.template, scored=True)
    same = total = 0
    worst = 0.0
    for prompt, mine, (theirs,) in zip(prompts, wanted, found, strict=True):
        ids, others = [*mine.ids, *mine.end], [*theirs.ids, *theirs.end]
        same += sum(a == b for a, b in zip(ids, others, strict=False))
        total += max(len(ids), len(others))
        batch = pack([Tokens.of(prompt, others)])
        with torch.no_grad():
            logprobs = here.policy.words.logprobs(here.policy.learned(batch), batch.targets)
        worst = max(worst, float((logprobs - torch.tensor(theirs.logprobs)).abs().max()))
    record_property(name, f"{same} of {total} greedy tokens equal, log-probabilities within {worst:.2g} nats")
    assert total > 200
    assert same / total >= 0.95
    assert worst < 0.05


def test_labels_are_those_of_python(url: str, runs: Path):
    texts = [
        f"This {thing} is {how}." for thing in ("phone", "film", "soup") for how in ("good", "bad", "awful", "fun")
    ]
    wanted = open_model(runs / "labels", offline=True).classify(texts)
    with EngineServer(url, offline=True) as engine:
        found = open_model(runs / "labels", engine=engine, offline=True).classify(texts)
    for there, here in zip(found, wanted, strict=True):
        assert there.label == here.label
        assert there.probabilities == pytest.approx(here.probabilities, abs=0.01)


def test_the_server_over_vllm_answers_chats_streams_and_schemas_as_over_torch(
    url: str, runs: Path, record_property: Any
):
    program = EngineBackend({"writes": runs / "writes"}, EngineServer(url, offline=True), offline=True)
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    with (
        served_outside(program, limits=Limits(rows=4)) as over_vllm,
        served({"writes": [runs / "writes"]}) as over_torch,
    ):
        clients = [
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600, max_retries=0)
            for server in (over_vllm, over_torch)
        ]
        same = total = 0
        for question in QUESTIONS[:20]:
            turns: Any = [{"role": "user", "content": question}]
            there, here = (
                client.chat.completions.create(model="writes", messages=turns, max_tokens=40, response_format=form)
                for client in clients
            )
            text, wanted = there.choices[0].message.content or "", here.choices[0].message.content or ""
            assert json.loads(text).keys() == {"name", "count"} or there.choices[0].finish_reason == "length"
            same += text == wanted
            total += 1
        record_property("schema", f"{same} of {total} answers equal")
        assert same / total >= 0.95
        for question in QUESTIONS[:4]:
            turns = [{"role": "user", "content": question}]
            whole = clients[0].chat.completions.create(model="writes", messages=turns)
            parts = clients[0].chat.completions.create(model="writes", messages=turns, stream=True)
            assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
        assert over_vllm.bugs == []
    assert httpx2.get(f"{url}/health").status_code == 200  # a running engine goes on


def test_two_steps_of_grpo_with_rollouts_of_vllm(url: str, tmp_path: Path, record_property: Any):
    (tmp_path / "rules.py").write_text("def short(completion):\n    return max(0.0, 1 - len(completion.text) / 100)\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS[:12]))
    objective = {"kind": "rl", "reward": f"{tmp_path}/rules.py:short", "group": 4, "max_new_tokens": 16, "engine": url}
    raw = {
        "model": BASE,
        "data": {"train": str(rows), "validation": 2, "test": 2},
        "objective": objective,
        "technique": {"kind": "lora", "rank": 8},
        "schedule": {"epochs": 1, "batch_rows": 4},
        "machine": {"threads": 1},
    }
    tune(make_recipe(raw, place="recipe")[0], tmp_path / "run")
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    steps = [line for line in journal if "engine_ratio" in line]
    for line in steps:
        record_property(f"step {line['step']}", f"ratio {line['engine_ratio']:.4f}, capped {line['capped_share']:.4f}")
    assert len(steps) == 2
    for line in steps:
        assert line["engine_ratio"] == pytest.approx(1.0, abs=0.02)
        assert line["capped_share"] <= 0.01
