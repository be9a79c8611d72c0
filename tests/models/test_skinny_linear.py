"""Products of few rows: torch's own numbers, each thread making its part."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.bases import base
from tunesmith.models.kernels import skinny_linear as thin
from tunesmith.models.kernels.float32_products import short_pass
from tunesmith.models.kernels.fused_lora import FusedLora
from tunesmith.models.kernels.skinny_linear import SkinnyLinear
from tunesmith.techniques import Lora


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Two threads for the test, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with short_pass(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of the weight in each product that was made in parts."""
    parts: list[int] = []
    whole = torch.bmm

    def bmm(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parts.append(len(weights))
        return whole(rows, weights)

    monkeypatch.setattr(torch, "bmm", bmm)
    return parts


@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 1, 24), (thin.MAX_ROWS, 1, 24)])
def test_few_rows_are_multiplied_in_parts_and_come_out_as_torchs(shape: tuple[int, ...], parted: list[int]):
    layer, x = nn.Linear(24, 12), torch.randn(*shape)
    with torch.no_grad():
        found, expected = thin.linear(x, layer.weight, layer.bias), layer(x)
        torch.testing.assert_close(thin.linear(x, layer.weight, None) + layer.bias, expected)
    torch.testing.assert_close(found, expected)
    assert parted == [2, 2]


def test_many_rows_other_types_odd_widths_and_gradients_are_left_to_torch(parted: list[int]):
    layer, x = nn.Linear(24, 12), torch.randn(3, 24)
    learned = thin.linear(x, layer.weight, layer.bias)
    assert learned.requires_grad
    with torch.no_grad():
        for rows, weight in (
            (torch.randn(thin.MAX_ROWS + 1, 24), layer.weight),
            (x.bfloat16(), layer.weight.bfloat16()),
            (x, layer.weight[:11]),
            (x, layer.weight.T.contiguous().T),
            (x[:0], layer.weight),
        ):
            assert torch.equal(thin.linear(rows, weight, None), F.linear(rows, weight))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert thin.linear(x, layer.weight, None).dtype == torch.bfloat16
        torch.set_num_threads(1)
        thin.linear(x, layer.weight, None)
    assert parted == []


def test_a_policys_layers_and_those_under_lora_take_this_way(parted: list[int]):
    network = base("llama").network
    policy = Lora(rank=4).adapt(network, family="decoder", keep_reference=False)
    assert {SkinnyLinear, FusedLora} <= {type(module) for module in network.modules()}
    parted.clear()
    with torch.no_grad():
        policy.network(input_ids=torch.tensor([[5, 6, 7]]))
    assert len(parted) == 7 * network.config.num_hidden_layers + 1
