"""Rows that come and go in one block, and rows under different adapters in one pass: the states of each alone."""

from __future__ import annotations

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from tests.bases import base, policy
from tests.tiny import DECODERS
from tunesmith.models.attention.packed import NAME
from tunesmith.models.generation.slot_kv_cache import SlotKVCache, fits
from tunesmith.models.kernels.multi_lora import MultiLora, share_parameters
from tunesmith.techniques import Ia3, Lora

IN_LINE = SlotKVCache._in_line
ROWS = torch.arange(1, 61).view(3, 20)


@pytest.mark.parametrize("more", [8, 3, 12])
@pytest.mark.parametrize("in_line", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_row_has_the_same_states_wherever_it_lies_and_whoever_leaves(
    kind: str, in_line: bool, more: int, monkeypatch: pytest.MonkeyPatch
):
    network = policy(kind).network if in_line else base(kind).network
    lines: list[int] = []
    monkeypatch.setattr(SlotKVCache, "_in_line", lambda *given, **how: lines.append(1) or IN_LINE(*given, **how))
    slab = SlotKVCache(network.config)
    rows = ROWS.tolist()
    slab.feed(network, [rows[0][:6], rows[1][:6]], slots=range(2), starts=(0, 0))
    slab.feed(network, [rows[2][:9]], slots=range(2, 3), starts=(0,))  # joins later, and is longer
    slab.feed(network, [rows[0][6:7], rows[1][6:7], rows[2][9:10]], slots=range(3), starts=(6, 6, 9))
    slab.move(2, 0, 10)  # row 0 leaves, row 2 takes its slot
    found = slab.feed(network, [rows[2][10:18], rows[1][7 : 7 + more]], slots=range(2), starts=(10, 7))
    for states, row, begin, size in ((found[0], 2, 10, 8), (found[1], 1, 7, more)):
        alone = network.base_model(input_ids=ROWS[row : row + 1], use_cache=False).last_hidden_state[0]
        assert torch.allclose(states, alone[begin : begin + size], atol=1e-4)
    assert bool(lines) == (more != 8 and network.config._attn_implementation == NAME)
    assert in_line or not lines


@torch.no_grad()
def test_a_beginning_that_is_put_into_a_slot_stands_for_its_ids():
    network = base("llama").network
    slab = SlotKVCache(network.config)
    slab.feed(network, ROWS[:1, :12].tolist(), slots=range(1), starts=(0,))
    kept = slab.take(0, 10)
    other = SlotKVCache(network.config)
    other.put(4, kept)
    found = other.feed(network, ROWS[:1, 10:].tolist(), slots=range(4, 5), starts=(10,))[0]
    alone = network.base_model(input_ids=ROWS[:1], use_cache=False).last_hidden_state[0, 10:]
    assert torch.allclose(found, alone, atol=1e-5)


def test_a_network_that_keeps_something_else_does_not_fit():
    network = base("llama").network
    assert fits(network)
    network.config.layer_types = ["linear_attention", "full_attention"]
    assert not fits(network)
    config = GPTNeoConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
    )
    assert not fits(GPTNeoForCausalLM(config).eval())  # a row's window would begin where the longest row's does


@torch.no_grad()
def test_each_row_of_a_mixed_pass_goes_by_its_own_adapter_and_the_base_by_none():
    plain = base("llama").network
    adapted = {}
    for number, technique in ((1, Lora(rank=4)), (2, Ia3()), (3, Lora(rank=2, dora=True))):
        network = share_parameters(plain)
        made = technique.adapt(network, family="decoder", keep_reference=False)
        for _, value in made.trainable():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)), alpha=0.3)
        made.train(False)
        adapted[number] = network
    rows = ROWS[[0, 1, 2, 0, 1]]
    by = [(1, torch.tensor([0, 3])), (2, torch.tensor([2])), (3, torch.tensor([4]))]
    mixed = MultiLora(plain, adapted).by(by)
    found = mixed.base_model(input_ids=rows, use_cache=False).last_hidden_state
    who = [1, None, 2, 1, 3]
    for i, number in enumerate(who):
        network = plain if number is None else adapted[number]
        alone = network.base_model(input_ids=rows[i : i + 1], use_cache=False).last_hidden_state[0]
        assert torch.allclose(found[i], alone, atol=1e-4)
    assert not torch.allclose(found[0], plain.base_model(input_ids=rows[:1], use_cache=False).last_hidden_state[0])


def test_a_second_tree_takes_no_memory_for_numbers():
    plain = policy("llama").network
    other = share_parameters(plain)
    pairs = list(zip(plain.parameters(), other.parameters(), strict=True))
    assert pairs
    assert all(one is two for one, two in pairs)
    assert other is not plain
    assert other.model.layers[0] is not plain.model.layers[0]
