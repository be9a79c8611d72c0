"""A policy: the same numbers for a row, whatever stands beside it."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import MobileBertConfig, MobileBertModel

from tests.bases import LORA, base, encoded, farthest, folder, gradients, policy, tokens
from tests.tiny import DECODERS, ENCODERS, HIDDEN, LAYERS, WORDS
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.models.attention.packed import HALF_TOLERANCE, state_tolerance
from tunesmith.models.batch import Batch, collate
from tunesmith.models.loading.load import load_base
from tunesmith.models.policy import Policy
from tunesmith.techniques import Full, Lora


def one(ids: list[int], learn: str) -> Batch:
    return collate([Encoded((tokens(ids, learn),), "rows:1")])


@pytest.mark.parametrize("kind", DECODERS)
def test_each_learned_id_is_predicted_from_the_token_before_it(kind: str):
    made = policy(kind)
    ids = [7, 8, 9, 10, 11]
    with torch.no_grad():
        logs = made.network(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=1)
        states, targets = made.learned(one(ids, ".x..x")), one(ids, ".x..x").targets
        loss = made.sum_nll(one(ids, ".x..x"))
    assert states.shape == (2, HIDDEN)
    assert targets.tolist() == [8, 11]
    assert loss.item() == pytest.approx(-float(logs[0, 8] + logs[3, 11]), rel=1e-4)


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_batch_has_the_gradients_of_its_rows_one_by_one(kind: str, technique: Full | Lora):
    made, rows = policy(kind, technique, lively=0.05), encoded(kind)
    total = made.sum_nll(collate(rows))
    total.backward()
    together = gradients(made)
    alone = [made.sum_nll(collate([row])) for row in rows]
    for loss in alone:
        loss.backward()
    assert total.item() == pytest.approx(sum(loss.item() for loss in alone), rel=1e-5)
    assert farthest(together, gradients(made)) < 1e-4


def test_a_decoder_is_pooled_at_its_last_real_token():
    made = policy("llama")
    rows = [Encoded((tokens([7, 8, 9, 10], "...."),), "rows:1"), Encoded((tokens([7, 8], ".."),), "rows:2")]
    with torch.no_grad():
        batch = collate(rows)
        states, pooled = made.states(batch), made.pooled(batch)
    assert torch.equal(pooled, torch.stack([states[batch.row_index[0, 3]], states[batch.row_index[1, 1]]]))


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_pooled_as_the_mean_of_its_real_tokens(kind: str):
    made = policy(kind)
    rows = [Encoded((tokens([2, 8, 9, 3], "...."),), "rows:1"), Encoded((tokens([2, 3], ".."),), "rows:2")]
    with torch.no_grad():
        pooled = made.pooled(collate(rows, share=False))
        alone = made.network(input_ids=torch.tensor([[2, 3]])).last_hidden_state[0].mean(dim=0)
    assert torch.allclose(pooled[1], alone, atol=1e-5)


def test_a_network_whose_tokens_see_their_neighbours_sees_no_padding(tmp_path: Path):
    sizes = {"hidden_size": 32, "embedding_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MobileBertConfig(
            vocab_size=320, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2, **sizes
        )
        network = MobileBertModel(config).eval()
        network.embeddings.word_embeddings.weight.data[config.pad_token_id] = torch.randn(16)  # as in real ones
    place = shutil.copytree(folder("bert"), tmp_path / "mobile", ignore=shutil.ignore_patterns("*.safetensors"))
    network.save_pretrained(place)
    made = Policy.over(load_base(str(place), offline=True).network.eval(), family="encoder", reference=nullcontext)
    assert not made.packs
    ids = [2, 3]
    rows = [Encoded((tokens(ids, "." * len(ids)),), f"rows:{i}") for i, ids in enumerate(([2, 8, 9, 7, 6, 3], ids))]
    with torch.no_grad():
        alone = network(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)  # without any padding
        beside = made.pooled(collate(rows, share=False))[1]
    assert torch.allclose(beside, alone, rtol=1e-4, atol=1e-3 * float(alone.abs().max()))


def test_multiplying_in_bfloat16_gives_nearly_the_same_states_and_leaves_the_numbers_alone():
    made = policy("llama")
    batch = one([7, 8, 9], "..x")
    with torch.no_grad():
        exact = made.states(batch)
        made.autocast_dtype = torch.bfloat16
        near = made.states(batch)
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).abs().max()) < 0.1
    assert {value.dtype for _, value in made.trainable()} == {torch.float32}


def test_the_objectives_head_is_trained_after_the_networks_own_numbers():
    made = policy("bert", LORA)
    made.head = nn.Linear(made.hidden, 2)
    names = [name for name, _ in made.trainable()]
    assert names[-2:] == ["head.weight", "head.bias"]
    assert all("lora_" in name for name in names[:-2])
    made.train()
    assert made.head.training
    made.train(False)
    assert not made.head.training
    assert not made.network.training


@pytest.mark.parametrize(("kind", "head"), [("llama", True), ("bert", False)])
def test_only_a_decoder_has_a_language_head(kind: str, head: bool):
    found = base(kind)
    made = Policy.over(found.network, family=found.family, reference=nullcontext)
    assert (made.language_head is not None) == head
    assert (made.hidden, made.device.type) == (HIDDEN, "cpu")


def test_a_prefill_hands_every_row_the_same_keys():
    made = policy("llama")
    with torch.no_grad():
        cache = made.prefill(torch.arange(6, 16), rows=3)
    assert cache.get_seq_length() == 10
    assert len(cache.layers) == LAYERS
    keys = cache.layers[0].keys
    assert keys.shape == (3, 2, 10, 8)
    assert torch.equal(keys[0], keys[2])


def test_a_tied_embedding_is_one_number_to_the_optimizer():
    shapes = [tuple(value.shape) for _, value in policy("llama").trainable()]
    assert shapes.count((WORDS, HIDDEN)) == 1


def test_products_are_made_as_before_after_full_precision_was_asked_for_and_something_failed():
    made = policy("llama")
    made.autocast_dtype = torch.bfloat16

    def fail() -> None:
        with made.full_precision():
            assert made.autocast_dtype is None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert made.autocast_dtype is torch.bfloat16


def test_layers_that_round_their_inputs_are_compared_as_half_precision_is():
    network = base("llama").network
    exact = state_tolerance(network)
    layer = network.model.layers[0].mlp.down_proj
    layer.quantization_scheme = SimpleNamespace(input_activations=None)  # weights in 8 bits alone are exact
    assert state_tolerance(network) == exact
    layer.quantization_scheme = SimpleNamespace(input_activations=SimpleNamespace(num_bits=8))
    assert exact < state_tolerance(network) == HALF_TOLERANCE
    del layer.quantization_scheme
