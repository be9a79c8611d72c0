"""Prompt, prefix and p-tuning: PEFT's numbers and files, started from text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, FalconConfig, FalconForCausalLM

from tests.bases import OPENING, base, documents, encoded, farthest, folder, gradients, policy
from tests.tiny import DECODERS, HIDDEN, LAYERS
from tunesmith.config import Recipe, check_technique, make_recipe
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.models.batch import collate, pack
from tunesmith.models.policy import Policy
from tunesmith.techniques import Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique

SOFT: dict[str, Technique] = {
    "prompt": Prompt(tokens=6),
    "prefix": Prefix(tokens=6),
    "p-tuning": PTuning(tokens=6),
    "p-tuning by lstm": PTuning(tokens=6, encoder="lstm", width=16),
}
# What PEFT can put before an encoder's rows.
ENCODER_PAIRS = [(word, kind) for word in SOFT for kind in ("bert", "distilbert", "modernbert")]
ENCODER_PAIRS = [(word, kind) for word, kind in ENCODER_PAIRS if not word.startswith("prefix") or kind == "bert"]


@contextmanager
def their_own_warnings() -> Iterator[None]:
    """PEFT calls transformers by names that are about to go."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", ".*past_key_values", FutureWarning)
        yield


def opened(network: torch.nn.Module, adapter: Path) -> PeftModel:
    """The adapter over a plain network, as anybody opens it."""
    with their_own_warnings():
        return PeftModel.from_pretrained(network, adapter)


def states(made: Policy, rows: list) -> list[torch.Tensor]:
    """The states of each row's own tokens."""
    batch = collate(rows, share=made.family == "decoder")
    with torch.no_grad():
        found = made.states(batch)
    return [found[path[path >= 0]] for path in batch.row_index]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("word", SOFT)
def test_losses_and_gradients_are_those_of_peft(word: str, kind: str):
    made = policy(kind, SOFT[word], lively=0.05)
    (row,) = encoded(kind, 1)
    (one,) = row.sequences
    labels = torch.tensor([[i if learn else -100 for i, learn in zip(one.ids, one.learn, strict=True)]])
    with their_own_warnings():
        loss = made.adapter(input_ids=torch.tensor([one.ids]), labels=labels).loss * one.learned
    loss.backward()
    wanted = gradients(made)
    found = made.sum_nll(pack([one]))
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert farthest(gradients(made), wanted) < 1e-4


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("word", SOFT)
def test_a_saved_adapter_opens_in_peft_and_here_with_the_same_logits(word: str, kind: str, tmp_path: Path):
    made, rows = policy(kind, SOFT[word], lively=0.05), encoded(kind, 2)
    SOFT[word].save(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder(kind))
    restored = SOFT[word].restore(base(kind).network, tmp_path, family="decoder")
    theirs = opened(AutoModelForCausalLM.from_pretrained(folder(kind)), tmp_path)
    for row, ours, again in zip(rows, states(made, rows), states(restored, rows), strict=True):
        assert torch.equal(ours, again)
        with torch.no_grad(), their_own_warnings():
            logits = theirs(input_ids=torch.tensor([row.sequences[0].ids])).logits[0]
        assert torch.allclose(made.words.logits(ours), logits[-len(row.sequences[0].ids) :][: len(ours)], atol=1e-5)


@pytest.mark.parametrize(("word", "kind"), ENCODER_PAIRS)
def test_an_encoders_adapter_opens_in_peft_and_here_with_the_same_states(word: str, kind: str, tmp_path: Path):
    made, rows = policy(kind, SOFT[word], lively=0.05), documents(kind, "hi", "The quick brown fox.")
    SOFT[word].save(made, tmp_path)
    restored = SOFT[word].restore(base(kind).network, tmp_path, family="encoder")
    theirs = opened(AutoModel.from_pretrained(folder(kind)), tmp_path)
    for row, ours, again in zip(rows, states(made, rows), states(restored, rows), strict=True):
        assert torch.equal(ours, again)
        with torch.no_grad(), their_own_warnings():
            found = theirs(input_ids=torch.tensor([row.sequences[0].ids])).last_hidden_state[0, -len(ours) :]
        assert torch.allclose(ours, found, atol=1e-5)


@pytest.mark.parametrize(("word", "kind"), ENCODER_PAIRS)
def test_an_encoders_batch_has_the_gradients_of_its_rows_one_by_one(word: str, kind: str):
    made, rows = policy(kind, SOFT[word], lively=0.05), documents(kind, "hi", "The quick brown fox.")
    found = []
    for batches in ([rows], [[row] for row in rows]):
        for batch in batches:
            made.pooled(collate(batch, share=False)).pow(3).sum().backward()
        found.append(gradients(made))
    assert all(value.norm() > 0 for value in found[0].values())
    assert farthest(found[1], found[0]) < 1e-4


@pytest.mark.parametrize("word", SOFT)
def test_only_the_virtual_tokens_move(word: str):
    names = [name for name, _ in policy("llama", SOFT[word]).trainable()]
    assert names
    assert all(name.startswith("virtual.") for name in names)


@pytest.mark.parametrize("word", ["p-tuning", "p-tuning by lstm"])
def test_of_p_tuning_only_what_comes_out_of_the_encoder_is_kept(word: str, tmp_path: Path):
    made = policy("llama", SOFT[word], lively=0.05)
    assert len(dict(made.trainable())) > 4
    SOFT[word].save(made, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {name: value.shape for name, value in saved.items()} == {"prompt_embeddings": (6, HIDDEN)}


def test_a_prompt_begins_as_the_embeddings_of_the_text_said_again_until_it_is_long_enough():
    made = policy("gemma3", Prompt(tokens=7))  # a family that scales its embeddings
    ((_, value),) = made.trainable()
    ids = torch.tensor([*OPENING, *OPENING[:2]])
    assert torch.equal(value, made.network.get_input_embeddings()(ids))


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_what_comes_out_of_a_fresh_encoder_is_the_embeddings_of_the_text(encoder: Literal["mlp", "lstm"]):
    made = policy("llama", PTuning(tokens=7, encoder=encoder))
    wanted = made.network.get_input_embeddings()(torch.tensor([*OPENING, *OPENING[:2]]))
    assert made.virtual is not None
    assert torch.allclose(made.virtual.wrapped.get_prompt(1)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("technique", [Prompt(init="random"), Prefix(init="random"), PTuning(init="random")])
def test_random_numbers_follow_from_the_seed_and_need_no_text(technique: Technique):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found = technique.adapt(base("llama").network, family="decoder", keep_reference=False)
        made.append(next(value for _, value in found.trainable()))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_prefix_has_keys_and_values_for_every_layer():
    ((_, value),) = policy("llama", Prefix(tokens=7)).trainable()
    assert value.shape == (7, LAYERS * 2 * 2 * 8)  # two key heads of width 8


@pytest.mark.parametrize("init", ["text", "random"])
def test_one_key_head_for_all_queries_is_found_where_the_configuration_names_it_otherwise(
    init: Literal["text", "random"],
):
    config = FalconConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False)
    network, technique = FalconForCausalLM(config).eval(), Prefix(tokens=5, init=init)
    made = technique.adapt(network, family="decoder", keep_reference=False, start=OPENING)
    (numbers,) = [value for _, value in made.trainable()]
    assert numbers.shape == (5, 2 * 2 * 8)
    assert made.virtual is not None
    assert [keys.shape for keys, _ in made.virtual.past(network)] == [(1, 1, 5, 8)] * 2


@pytest.mark.parametrize("technique", [Prompt(), Prefix(), PTuning()])
def test_a_text_to_begin_with_is_asked_for_where_there_is_none(technique: Technique):
    with pytest.raises(RecipeError, match=r"^technique\.init: there is no text to start from; use init: random$"):
        technique.adapt(base("llama").network, family="decoder", keep_reference=False)


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_a_prefix_on_an_encoder_that_takes_no_keys_is_refused_with_the_nearest_pair(kind: str):
    recipe = recipe_of({"kind": "prefix"})
    with pytest.raises(RecipeError, match=f"^technique prefix: a {kind} takes no keys .*; nearest that works: prompt$"):
        check_technique(recipe, base(kind).network, "encoder")
    check_technique(recipe_of("prompt"), base(kind).network, "encoder")
    check_technique(recipe, base("bert").network, "encoder")


def recipe_of(technique: Any) -> Recipe:
    return make_recipe({"data": "rows.jsonl", "objective": "classify", "technique": technique}, place="test")[0]


@pytest.mark.parametrize("technique", [Prompt(), Prefix(), PTuning()])
def test_a_folder_without_an_adapter_is_refused(technique: Technique, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors in it; the run was not finished"):
        technique.restore(base("llama").network, tmp_path, family="decoder")


def test_other_tools_words_are_understood():
    raw = {"data": "rows.jsonl", "objective": "classify", "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 30}
    recipe, notes = make_recipe({**raw, "prompt_tuning_init": "RANDOM"}, place="test")
    assert recipe.technique == Prompt(tokens=30, init="random")
    assert "peft_type -> technique.kind: prompt" in notes
    theirs = {"peft_type": "P_TUNING", "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 64}
    assert recipe_of(theirs).technique == PTuning(encoder="lstm", width=64)
    assert recipe_of("ptuning").technique == PTuning()
