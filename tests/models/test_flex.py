"""The mask of intervals is that of the levels, and FlexAttention computes with it what the levels compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tests.bases import farthest, gradients, policy, scrambled, template
from tests.tiny import DECODERS, ENCODERS
from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.models.attention import flex, packed
from tunesmith.models.attention.flex import BLOCK, Segment, SegmentMask, intervals
from tunesmith.models.attention.packed import NAME, Layout, capped_attention, lay_out
from tunesmith.models.batch import pack
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.slot_kv_cache import fits
from tunesmith.techniques import Prefix, Prompt

START = list(range(50, 90))  # what rows share, beyond the sliding window of 16
VIRTUAL = {"prompt": Prompt(tokens=5), "prefix": Prefix(tokens=5)}
CAPPED = "gemma"  # the tiny Gemma 2 caps its attention scores


@st.composite
def forests(draw: st.DrawFn) -> list[Segment]:
    """Segments of random length, each at a root or behind any earlier one."""
    made: list[Segment] = []
    for i in range(draw(st.integers(1, 12))):
        parent = draw(st.integers(-1, i - 1))
        above = made[parent] if parent >= 0 else None
        made.append(Segment(draw(st.integers(1, 6)), parent, above.position + above.size if above else 0))
    return made


def seen_by_levels(layout: Layout, **kind: Any) -> Tensor:
    """[N, K] bool, from the masks that SDPA gets."""
    rows = []
    total = layout.virtual + sum(segment.size for segment in layout.segments)
    for level in layout.causal_levels if kind["causal"] else layout.levels:
        mask = level.mask(**kind)
        shape = (len(level.keys), 1, level.queries.shape[1], level.keys.shape[1])
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool)
            mask = mask.tril() if kind["causal"] else mask
        seen = torch.zeros(len(level.keys), shape[2], total, dtype=torch.int64)
        seen.scatter_add_(2, level.keys[:, None].expand(-1, shape[2], -1), mask[:, 0].long())
        rows.append(seen.flatten(0, 1)[level.flat_index].bool())
    return torch.cat(rows)


def seen_by_intervals(mask: SegmentMask, **kind: Any) -> Tensor:
    total = mask.keys.shape[1]
    queries, keys = torch.arange(total - mask.virtual), torch.arange(total)
    return mask.visible(**kind)(None, None, queries[:, None], keys[None])


@settings(max_examples=200, deadline=None)
@given(forests(), st.booleans(), st.one_of(st.none(), st.integers(1, 12)), st.integers(0, 5))
def test_the_mask_of_intervals_is_that_of_the_levels(
    segments: list[Segment], causal: bool, window: int | None, virtual: int
):
    layout = lay_out(segments)
    layout = layout.after_virtual(virtual) if virtual else layout
    found = seen_by_intervals(layout.mask, causal=causal, window=window)
    assert torch.equal(found, seen_by_levels(layout, causal=causal, window=window))


def test_what_lies_below_a_segment_is_one_interval():
    assert intervals([-1, 0, 0, 2, -1, 0]) == ([0, 1, 2, 3, 5, 4], [5, 2, 4, 4, 6, 5])


@pytest.mark.parametrize("virtual", [0, 7])
@pytest.mark.parametrize("kind", [(True, None), (True, 100), (False, None)], ids=["causal", "window", "encoder"])
def test_blocks_are_those_of_torchs_own_function(
    kind: tuple[bool, int | None], virtual: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flex, "MASKED_AT_ONCE", BLOCK)
    segments = [Segment(300, -1, 0), Segment(200, 0, 300), Segment(150, 0, 300), Segment(260, -1, 0)]
    layout = lay_out(segments).after_virtual(virtual)
    found = layout.mask.blocks(causal=kind[0], window=kind[1])
    assert layout.mask.blocks(causal=kind[0], window=kind[1]) is found  # made once per batch
    visible = layout.mask.visible(causal=kind[0], window=kind[1])
    wanted = create_block_mask(visible, None, None, 910, 910 + virtual, device="cpu")
    assert found.shape == wanted.shape
    assert found.kv_num_blocks.sum() > 0
    for one, other in zip(found.as_tuple()[:-1], wanted.as_tuple()[:-1], strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def dense(query: Tensor, key: Tensor, value: Tensor, *, score_mod: Any, block_mask: Any, **options: Any) -> Tensor:
    """What FlexAttention computes, with gradients on CPU."""
    key, value = (state.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for state in (key, value))
    scores = query @ key.mT * options["scale"]
    scores = scores if score_mod is None else score_mod(scores, None, None, None, None)
    seen = block_mask.mask_mod(None, None, torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None])
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ value


@pytest.fixture(params=[flex_attention, dense], ids=["flex", "dense"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes attention take CUDA's path on CPU, with FlexAttention uncompiled and a stand-in that has gradients."""

    def switch(on: bool = True) -> None:
        monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        monkeypatch.setattr(flex, "kernel", lambda: request.param)
        monkeypatch.setattr(packed, "FUSED", {"cpu"} if on else set())

    return switch


def shared_rows() -> list[Tokens]:
    """Rows of which three begin alike and two of these go on alike, and one that does not."""
    more = list(range(90, 110))
    ids = [[*START, *more, 7, 8], [*START, *more, 9, 5], [*START, 11, 12, 13], [14, 15, 16, 17]]
    return [Tokens(row, [False] * (len(row) - 2) + [True] * 2) for row in ids]


@pytest.mark.parametrize("virtual", [None, *VIRTUAL])
@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != CAPPED])
def test_packed_decoders_have_the_states_of_the_levels(kind: str, virtual: str | None, fused: Callable[..., None]):
    made = policy(kind, VIRTUAL[virtual] if virtual else None, lively=0.05)
    scrambled(made.network, spread=0.3)
    assert made.packs
    with torch.no_grad():
        wanted = made.states(pack(shared_rows()))
        fused()
        found = made.states(pack(shared_rows()))
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert not torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ENCODERS)
def test_packed_encoders_have_the_states_of_the_levels(kind: str, fused: Callable[..., None]):
    made = policy(kind, lively=0.05)
    texts = ("hi", "The quick brown fox jumps over the lazy dog. " * 4, "I like it, they do not.")
    read = [template(kind).document(text) for text in texts]
    with torch.no_grad():
        wanted = made.states(pack(read, share=False))
        fused()
        found = made.states(pack(read, share=False))
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("virtual", [None, *VIRTUAL])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_gradients_through_the_mask_are_those_of_the_levels(kind: str, virtual: str | None, fused: Callable[..., None]):
    made = policy(kind, VIRTUAL[virtual] if virtual else None, lively=0.05)

    def loss_and_gradients() -> tuple[float, dict[str, Tensor]]:
        loss = made.sum_nll(pack(shared_rows()))
        loss.backward()
        return float(loss.detach()), gradients(made)

    wanted = loss_and_gradients()
    fused()
    if flex.kernel() is flex_attention:
        with pytest.raises(NotImplementedError, match="does not support backward on CPU"):
            loss_and_gradients()
        return
    found = loss_and_gradients()
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert farthest(found[1], wanted[1]) < 1e-4


def test_capped_scores_pack_where_attention_is_fused_and_nowhere_else(fused: Callable[..., None]):
    alone = policy(CAPPED)
    assert not alone.packs  # the levels have no caps, so its own attention computes padded rows
    with torch.no_grad():
        wanted = alone.states(pack(shared_rows()))
        fused()
        made = policy(CAPPED)
        assert made.packs
        assert made.network.config._attn_implementation == NAME
        found = made.states(pack(shared_rows()))
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
        # Without a layout, with slots, and several answers to one prompt: caps everywhere.
        own = made.network.base_model(input_ids=torch.tensor([START])).last_hidden_state
        theirs = alone.network.base_model(input_ids=torch.tensor([START])).last_hidden_state
        assert (own - theirs).norm() <= 1e-5 * theirs.norm()
        assert fits(made.network)


@pytest.mark.parametrize("copies", [1, 3])
def test_capped_scores_give_the_same_greedy_answers_as_the_networks_own_attention(
    copies: int, fused: Callable[..., None]
):
    def answers() -> list[list[int]]:
        made = policy(CAPPED)
        made.network.config.attn_logit_softcapping = 0.5  # a cap that changes every score
        for layer in made.network.base_model.layers:
            layer.self_attn.attn_logit_softcapping = 0.5
        scrambled(made.network)
        asked = [[*START[:20], 7, 8, 9], [*START[:12], 10], [11, 12, 13]]
        sampling = Sampling(max_new_tokens=5)
        return [one.ids for one in generate(made, asked * copies, sampling=sampling, template=template(CAPPED))]

    wanted = answers()
    fused()
    assert answers() == wanted
    assert any(wanted)


def test_a_cap_limits_scores_like_the_formula():
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=chance) * 3 for heads in (4, 2, 2))
    mask = torch.rand(2, 1, 5, 5, generator=chance) > 0.3
    mask |= torch.eye(5, dtype=torch.bool)
    found = capped_attention((query, key, value), mask, scale=None, cap=2.0)
    scores = 2 * torch.tanh(query @ key.repeat_interleave(2, dim=1).mT * 8**-0.5 / 2)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    assert torch.allclose(found, (weights @ value.repeat_interleave(2, dim=1)).transpose(1, 2), atol=1e-6)
    causal = capped_attention((query, key, value), None, scale=0.3, cap=1e6, causal=True)
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(causal, plain.transpose(1, 2), atol=1e-4)
    floats = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert torch.allclose(capped_attention((query, key, value), floats, scale=None, cap=2.0), found, atol=1e-6)


def test_autocast_reaches_the_fused_kernel(fused: Callable[..., None]):
    made, batch = policy("llama"), pack(shared_rows())
    with torch.no_grad():
        exact = made.states(batch)
        fused()
        made.autocast_dtype = torch.bfloat16
        assert 0 < float((made.states(batch) - exact).norm() / exact.norm()) < 0.02


def test_dropout_of_attention_takes_the_levels_because_the_fused_kernel_has_none(fused: Callable[..., None]):
    made = policy("bert")
    batch = pack([template("bert").document("The quick brown fox")], share=False)

    def states() -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return made.states(batch)

    fused()
    made.train(True)
    without = states()
    for module in made.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = states()
    assert not torch.allclose(found, without, atol=1e-2)
    fused(False)
    assert torch.equal(states(), found)


def test_a_layout_on_the_cpu_makes_no_mask_of_blocks():
    batch = pack(shared_rows()).to("cpu")
    policy("llama").states(batch)
    assert "mask" not in vars(batch.layout)
    assert "causal_levels" in vars(batch.layout)


def test_a_layout_for_a_fused_device_carries_its_mask_and_no_levels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "FUSED", {"meta"})
    layout = pack(shared_rows()).to("meta").layout
    assert layout.mask.keys.device.type == "meta"
    assert not {"levels", "causal_levels"} & {*vars(layout)}


def test_one_compiled_kernel_serves_any_number_of_tokens_and_any_window():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=counter)
    counts = []
    for size, virtual, window in ((300, 0, None), (700, 0, 100), (701, 6, 100), (1300, 6, None), (900, 0, 3)):
        layout = lay_out([Segment(size // 2, -1, 0), Segment(size - size // 2, 0, size // 2)]).after_virtual(virtual)
        mask = layout.mask.blocks(causal=True, window=window)
        with torch.no_grad():
            query, key = torch.randn(1, 6, size, 16), torch.randn(1, 2, size + virtual, 16)
            compiled(query, key, key, block_mask=mask, scale=0.25, enable_gqa=True)
        counts.append(counter.frame_count)
    assert counts == [1, 1, 2, 2, 2]  # virtual tokens: there are more keys than queries
