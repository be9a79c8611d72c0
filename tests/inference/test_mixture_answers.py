"""Adapters of mixtures of experts: the same answers alone, in a server beside others, merged, and in plain PEFT."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from tests.bases import folder
from tests.served import engine_over, save_run
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.export.formats import merged, write_adapter, write_merged
from tunesmith.inference.export.transformers_runner import Plain
from tunesmith.inference.identify import read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.live_answer import CompletionChunk
from tunesmith.inference.serving.request import GenerationRequest
from tunesmith.models.generation.sampling import Sampling
from tunesmith.objectives import Instruct
from tunesmith.techniques import Lora

LONGEST = 8
GREEDY = Sampling(max_new_tokens=LONGEST)
TECHNIQUES = {"experts": Lora(rank=4), "router": Lora(rank=4, router=True), "attention": Lora(rank=4, experts=False)}
QUESTIONS = ("hi", "What is the capital of France?", "Tell me of the fox and the dog and the phone. " * 2)
CHATS = [[Message("user", question)] for question in QUESTIONS]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss", "llama4"])
def test_adapters_over_one_mixture_answer_in_one_batch_as_if_alone(kind: str, tmp_path: Path):
    for seed, (name, technique) in enumerate(TECHNIQUES.items()):
        save_run(tmp_path / name, technique, Instruct(max_new_tokens=LONGEST), kind=kind, seed=seed, lively=0.2)
    engine, bugs = engine_over({name: [tmp_path / name] for name in TECHNIQUES})
    answers: dict[tuple[str, int], queue.SimpleQueue[CompletionChunk]] = {}
    for index, chat in enumerate(CHATS):
        for name in (*TECHNIQUES, kind):
            pieces = answers[name, index] = queue.SimpleQueue()
            engine.ask(GenerationRequest(name, tuple(chat), sampling=GREEDY), pieces.put)
    said = {key: pieces.get(timeout=60).text for key, pieces in answers.items()}
    base = engine.registry.get(kind).model
    engine.close(10)
    assert bugs == []
    for name in (*TECHNIQUES, kind):
        model = base if name == kind else load(tmp_path / name)
        assert [said[name, i] for i in range(len(CHATS))] == [
            reply.text for reply in model.replies(CHATS, sampling=GREEDY)
        ]
    assert len(set(said.values())) > len(TECHNIQUES)


@pytest.mark.long
@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_the_merged_model_and_the_adapter_answer_in_plain_transformers_and_peft(kind: str, name: str, tmp_path: Path):
    run = (
        save_run(tmp_path / "run", TECHNIQUES[name], Instruct(max_new_tokens=LONGEST), kind=kind, lively=0.2) / "model"
    )
    model = load(run)
    wanted = [reply.text for reply in model.replies(CHATS)]
    for out in ("merged", "adapter"):
        (tmp_path / out).mkdir()
    write_adapter(model, run, tmp_path / "adapter")
    write_merged(merged(run, read_manifest(run), offline=True), run, tmp_path / "merged")
    for plain in (Plain(tmp_path / "merged"), Plain(folder(kind), adapter=tmp_path / "adapter")):
        assert plain.answers(plain.prompts(CHATS), longest=LONGEST) == wanted
