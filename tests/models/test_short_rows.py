"""Attention of short rows by products: the outputs and gradients of torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models.attention import packed, short_rows
from tunesmith.models.attention.flex import Segment
from tunesmith.models.attention.packed import lay_out
from tunesmith.models.attention.short_rows import short_attention

# Segments, query heads, key heads, queries and keys of a segment.
SHAPES = [(5, 9, 3, 7, 12), (3, 4, 4, 6, 6), (1, 2, 1, 1, 5), (9, 6, 2, 40, 80)]


def states_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value as the packed layout gathers them, and a gradient of the output."""
    torch.manual_seed(0)
    segments, heads, key_heads, queries, keys = shape
    sizes = ((heads, queries), (key_heads, keys), (key_heads, keys), (heads, queries))
    return [torch.randn(segments, size, n, 8).to(dtype).transpose(1, 2).requires_grad_() for n, size in sizes]


def with_gradients(out: Tensor, states: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of query, key and value."""
    return [out, *torch.autograd.grad(out, states[:3], states[3].detach())]


@pytest.mark.parametrize("masked", ["no", "one for all", "each"])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], masked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_rows, "SCORES_AT_ONCE", 2 * shape[1] * shape[3] * shape[4])  # several parts
    states = states_of(shape)
    visible = torch.rand(shape[0] if masked == "each" else 1, shape[3], shape[4]) > (0.4 if masked != "no" else -1)
    visible[..., 0] = True
    bias = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    found = with_gradients(short_attention(states[:3], None if masked == "no" else bias, scale=0.3), states)
    out = F.scaled_dot_product_attention(*states[:3], attn_mask=visible[:, None], scale=0.3, enable_gqa=True)
    for ours, theirs in zip(found, with_gradients(out, states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(9, 7, 4, 4, 1), (2, 9, 3), (5, 5, 5)])
def test_padding_is_not_computed_and_changes_nothing(
    sizes: tuple[int, ...], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of the rows is as long as its longest row, or one after it."""
    monkeypatch.setattr(short_rows, "SCORES_AT_ONCE", 1)
    torch.manual_seed(0)
    states = [torch.randn(1, heads, sum(sizes), 8, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(1, sum(sizes), 4, 8)
    shapes: list[torch.Size] = []
    softmax = Tensor.softmax
    monkeypatch.setattr(Tensor, "softmax", lambda scores, dim: shapes.append(scores.shape) or softmax(scores, dim))
    layout = lay_out([Segment(size, -1, 0) for size in sizes])
    out, _ = packed.attend(torch.nn.Module(), *states, None, layout=layout, is_causal=causal)
    found = [out, *torch.autograd.grad(out, states, upstream)]
    assert [shape[2] for shape in shapes[: len(sizes)]] == [max(sizes[i:]) for i in range(len(sizes))]
    alone = [
        F.scaled_dot_product_attention(*part, is_causal=causal, enable_gqa=True).transpose(1, 2)
        for part in zip(*(state.split(sizes, dim=2) for state in states), strict=True)
    ]
    expected = torch.cat(alone, dim=1)
    for ours, right in zip(found, [expected, *torch.autograd.grad(expected, states, upstream)], strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_rounded_once(autocast: bool) -> None:
    """Scores and weights are float32, so that the result is at least as near to the exact one as torch's."""
    states = states_of(SHAPES[0], torch.bfloat16)
    exact = [state.detach().double().requires_grad_() for state in states]
    expected = with_gradients(F.scaled_dot_product_attention(*exact[:3], enable_gqa=True), exact)
    torchs = with_gradients(F.scaled_dot_product_attention(*states[:3], enable_gqa=True), states)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = with_gradients(short_attention(states[:3], None, scale=None), states)
    for ours, right, other in zip(found, expected, torchs, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - right).norm() <= 1.05 * (other - right).norm()


def test_under_autocast_it_returns_the_dtype_of_autocast() -> None:
    query, key, value, _ = states_of(SHAPES[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = short_attention((query, key, value.bfloat16()), None, scale=None)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), query)[0].dtype == torch.float32


def test_what_a_query_must_not_attend_to_is_found_once_for_all_layers() -> None:
    """Two rows after a common prefix of three tokens: their tokens see the prefix and their own past."""
    root, branches = lay_out([Segment(3, -1, 0), Segment(2, 0, 3), Segment(1, 0, 3)]).levels
    assert root.bias(causal=True, window=None).shape == (1, 3, 3)
    bias = branches.bias(causal=True, window=None)
    assert (bias[0] == 0).tolist() == [[True, True, True, True, False], [True] * 5]
    assert (bias[1, 0] == 0).tolist() == [True, True, True, True, False]
    assert branches.bias(causal=True, window=None) is bias
    assert branches.bias(causal=True, window=2) is not bias
    assert lay_out([Segment(3, -1, 0), Segment(3, -1, 0)]).levels[0].bias(causal=False, window=None) is None


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("prefix", [0, 3])
def test_long_rows_behind_a_prefix_have_the_outputs_and_gradients_of_a_mask(
    prefix: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are padded to a multiple, and whole rows run causally; without both, a mask hides what comes later."""
    sizes = [260, 270, 251]
    segments = [Segment(prefix, -1, 0)] * bool(prefix)
    segments += [Segment(size, len(segments) - 1, prefix) for size in sizes]
    tokens = prefix + sum(sizes)
    torch.manual_seed(0)
    states = [torch.randn(1, heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(1, tokens, 4, 8)

    def outputs(multiple: int, whole_from: float) -> list[Tensor]:
        monkeypatch.setattr(packed, "MULTIPLE", multiple)
        monkeypatch.setattr(packed, "WHOLE_FROM", whole_from)
        layout = lay_out(segments)
        level = layout.causal_levels[-1]
        assert (level.key_index is not None) == (bool(prefix) and whole_from < max(sizes))
        assert level.queries.shape[1] == (272 if multiple == 16 else 270)
        options = {"is_causal": True, "sliding_window": window}
        out, _ = packed.attend(torch.nn.Module(), *states, None, layout=layout, **options)
        return [out, *torch.autograd.grad(out, states, upstream)]

    expected = outputs(1, math.inf)
    for multiple, whole_from in ((16, math.inf), (16, 100), (1, 100)):
        for ours, right in zip(outputs(multiple, whole_from), expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def test_rows_of_an_encoder_are_not_padded_to_a_multiple() -> None:
    """A mask over the padding would take longer than odd lengths do, and rows of equal length have none."""
    layout = lay_out([Segment(300, -1, 0)] * 2)
    assert layout.levels[0].mask(causal=False, window=None) is None
    assert layout.levels[0].queries.shape == (2, 300)
    assert layout.causal_levels[0].queries.shape == (2, 304)
