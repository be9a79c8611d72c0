"""Dropout with masks of 16 random bits: shares, scales, gradients, and the same masks for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tunesmith.models.attention.short_rows import short_attention
from tunesmith.models.kernels import dropout
from tunesmith.models.kernels.dropout import FastDropout, Masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_share_of_the_values_is_dropped_and_the_mean_stays(probability: float, dtype: torch.dtype) -> None:
    masks, ones = Masks(probability, 0), torch.ones(300, 999, dtype=dtype)
    mask = masks.next(ones)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.double().mean() == pytest.approx(1 - probability, abs=0.004)  # 4 standard deviations
    kept = masks.apply(ones, mask)
    assert kept.double().mean() == pytest.approx(1, rel=0.04 if probability == 0.9 else 0.005)
    assert not torch.equal(masks.next(ones), mask)


def test_masks_depend_on_the_seed_of_torch_alone() -> None:
    layer, x = FastDropout(0.3), torch.ones(7, 5)

    def outputs(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [layer(x) for _ in range(2)]

    first, again, other = outputs(0), outputs(0), outputs(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_the_gradient_passes_where_the_value_was_kept() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    out = FastDropout(0.4)(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad * x, out)
    assert 0 < (grad == 0).sum() < x.numel()


def test_only_training_on_a_cpu_drops_and_the_ends_are_exact() -> None:
    x = torch.randn(30, 4)
    assert FastDropout(0.5).eval()(x) is x
    assert torch.equal(FastDropout(0.0)(x), x)
    assert torch.equal(FastDropout(1.0)(x), torch.zeros_like(x))
    assert FastDropout(0.999999)(x).isfinite().all()


def test_the_dropout_of_a_network_is_replaced_but_for_other_kinds() -> None:
    network = nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.2, inplace=True), nn.Dropout1d(0.2))
    dropout.install(network)
    assert [type(layer) for layer in network] == [FastDropout, nn.Dropout, nn.Dropout1d]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_attention_with_dropout_is_that_of_its_masks(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes draw the same masks, whatever is computed at a time; the outputs are those of a plain softmax."""
    segments, heads, queries, keys = 5, 4, 6, 9
    monkeypatch.setattr(
        "tunesmith.models.attention.short_rows.SCORES_AT_ONCE", segments // parts * heads * queries * keys
    )
    torch.manual_seed(1)
    states = [torch.randn(segments, heads, n, 8, requires_grad=True) for n in (queries, keys, keys)]
    upstream = torch.randn(segments, heads, queries, 8)
    torch.manual_seed(2)
    out = short_attention(states, None, scale=None, dropout=0.3)
    torch.manual_seed(2)
    masks = Masks(0.3, dropout.draw_seed())
    weights = (states[0] @ states[1].mT / 8**0.5).softmax(-1)
    drawn = [masks.next(part) for part in weights.split(segments // parts)]
    expected = masks.apply(weights, torch.cat(drawn)) @ states[2]
    torch.testing.assert_close(out, expected)
    for ours, right in zip(
        torch.autograd.grad(out, states, upstream), torch.autograd.grad(expected, states, upstream), strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)
