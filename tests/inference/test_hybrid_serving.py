"""Serving networks whose states do not fit into slots: each row has a cache and the answers that it has alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.bases import base
from tests.inference.test_engine import GREEDY, QUESTIONS, Answer, asked
from tests.served import engine_over, save_run
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving import registry
from tunesmith.inference.serving.prefix_cache import PrefixCache
from tunesmith.models.attention.network_cache import RowState, new_cache, read_prefix
from tunesmith.models.generation.row_caches import RowCaches
from tunesmith.techniques import Lora, Prompt

TECHNIQUES = {"lora": Lora(rank=4, targets=("in_proj",)), "prompt": Prompt(tokens=5)}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("kind", ["lfm2", "falcon_h1", "mamba", "llama4_text"])
def test_rows_of_several_runs_are_answered_as_if_each_were_alone(kind: str, tmp_path: Path):
    # Adapters of a mixture of experts do not share a base.
    techniques = {"one": Prompt(tokens=4), "prompt": Prompt(tokens=5)} if kind == "llama4_text" else TECHNIQUES
    for number, (name, technique) in enumerate(techniques.items()):
        save_run(tmp_path / name, technique, kind=kind, seed=number)
    engine, bugs = engine_over({name: [tmp_path / name] for name in techniques})
    try:
        answers = {
            (name, question): Answer(engine, asked(name, question, in_pieces=name != "prompt"))
            for question in QUESTIONS
            for name in [*techniques, kind]
        }
        said = {key: answer.text() for key, answer in answers.items()}
        longer = QUESTIONS[-1] + "And of the cat?"
        later = Answer(engine, asked("prompt", longer)).text()
        alone = {name: load(tmp_path / name) for name in techniques} | {kind: engine.registry.get(kind).model}
        for (name, question), text in said.items():
            assert text == alone[name].reply([Message("user", question)], sampling=GREEDY).text, name
        assert later == alone["prompt"].reply([Message("user", longer)], sampling=GREEDY).text
        assert len(set(said.values())) > 2
    finally:
        engine.close(10)
    assert bugs == []


@pytest.fixture
def states() -> Iterator[list[RowState]]:
    """The states of a network after 10 and after 20 tokens."""
    network = base("lfm2").network
    with torch.no_grad():
        yield [
            RowState.of(read_prefix(network, new_cache(network), 0, input_ids=torch.arange(tokens)[None]))
            for tokens in (10, 20)
        ]


def test_a_state_serves_prompts_that_begin_with_all_of_its_tokens(states: list[RowState]):
    kept = PrefixCache(1_000_000)
    kept.keep(1, range(10), states[0])
    kept.keep(1, range(20), states[1])
    assert kept.find(1, range(30)) == (20, states[1])
    assert kept.find(1, [*range(15), 99, 98]) == (10, states[0])  # the longer one cannot be shortened
    assert kept.find(1, [*range(9), 99, 98, 97]) == (0, ())
    kept.keep(1, range(20), states[1])
    assert kept.bytes == states[0].bytes + states[1].bytes > 0


@torch.no_grad()
def test_a_state_that_is_taken_does_not_change_with_the_row(states: list[RowState]):
    network = base("lfm2").network
    rows = RowCaches(continues=True)
    rows.put(3, states[0])
    whole = network.base_model(input_ids=torch.arange(14)[None], use_cache=False).last_hidden_state[0]
    for _ in range(2):  # the second time from the same state, which the first has not changed
        rows.put(3, states[0])
        (found,) = rows.feed(network, [[10, 11]], slots=[3], starts=[10])
        assert torch.allclose(found, whole[10:12], atol=1e-5)
    rows.move(3, 0, 12)
    again = RowCaches(continues=False)
    again.put(1, rows.take(0, 12))
    rows.feed(network, [[1]], slots=[0], starts=[12])
    (found,) = again.feed(network, [[12, 13]], slots=[1], starts=[12])
    assert torch.allclose(found, whole[12:], atol=1e-5)
    rows.clear()


def test_a_base_is_measured_once_and_a_later_load_changes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number, name in enumerate(("one", "two")):
        save_run(tmp_path / name, Lora(rank=2), kind="llama", seed=number)
    models = registry.ModelRegistry({name: [tmp_path / name] for name in ("one", "two")}, device="cpu")
    shared = models.load("one").shared_base
    assert (shared.slots, shared.continues) == (True, True)
    monkeypatch.setattr(registry, "fits", lambda network: False)  # as while a batch holds the memory
    assert models.load("two").shared_base is shared
    assert models.load("one").shared_base is shared
    assert shared.slots
