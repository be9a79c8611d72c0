"""On CUDA: FlexAttention against the levels, forward and backward, and no math kernel. Not run on a GPU yet."""

from __future__ import annotations

import copy
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from tests.bases import LORA, OPENING, base, farthest, gradients, pairs, template
from tests.tiny import DECODERS, ENCODERS
from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.models.attention import packed
from tunesmith.models.attention.flex import Segment, flex_attend
from tunesmith.models.attention.packed import capped_attention, lay_out
from tunesmith.models.batch import Batch, collate, pack
from tunesmith.models.policy import Policy
from tunesmith.objectives import Preference
from tunesmith.techniques import Full, Prefix, Prompt
from tunesmith.techniques.base import Technique
from tunesmith.training.fit import accumulate_gradients, prepare_batches
from tunesmith.training.reference_logprobs import add_reference_logprobs

DEVICE = "cuda"
CAPPED = "gemma"  # the tiny Gemma 2 caps its attention scores
TECHNIQUES: dict[str, Technique] = {
    "full": Full(),
    "lora": LORA,
    "prompt": Prompt(tokens=5),
    "prefix": Prefix(tokens=5),
}


def policy_on_gpu(kind: str, technique: Technique) -> Policy:
    """A tiny model on the GPU, in float32, with noise on what is trained."""
    found = base(kind, technique.load_options())
    network = copy.deepcopy(found.network).to(DEVICE)
    torch.manual_seed(0)  # adapters start at random
    made = technique.adapt(network, family=found.family, keep_reference=False, start=OPENING)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in made.trainable():
            value.add_(torch.randn(value.shape, generator=chance).to(value.device), alpha=0.05)
    made.train(False)
    return made


def rows() -> list[Tokens]:
    """Rows in a tree of three levels, and one row apart; longer than the sliding window of 16 and than one block."""
    start, more = list(range(10, 170)), list(range(90, 130))
    ids = [[*start, *more, 7, 8], [*start, *more, 9, 5], [*start, 11, 12, 13], list(range(14, 60))]
    return [Tokens(row, [False] * (len(row) - 2) + [True] * 2) for row in ids]


def loss_and_gradients(made: Policy, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    loss = made.sum_nll(batch) if made.family == "decoder" else made.pooled(batch).pow(3).sum()
    loss.backward()
    return float(loss.detach()), gradients(made)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("kind", DECODERS)
def test_one_kernel_computes_the_loss_and_gradients_of_the_levels(
    kind: str, technique: str, exact_products: None, monkeypatch: pytest.MonkeyPatch
):
    found = loss_and_gradients(policy_on_gpu(kind, TECHNIQUES[technique]), pack(rows()).to(DEVICE))
    monkeypatch.setattr(packed, "FUSED", set())
    without = policy_on_gpu(kind, TECHNIQUES[technique])
    assert without.packs == (
        kind != CAPPED
    )  # without the kernel, capped rows run padded in the network's own attention
    wanted = loss_and_gradients(without, pack(rows()).to(DEVICE))
    assert found[0] == pytest.approx(wanted[0], rel=1e-4)
    assert farthest(found[1], wanted[1]) < 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
def test_one_kernel_computes_the_states_of_an_encoder(kind: str, exact_products: None, monkeypatch: pytest.MonkeyPatch):
    read = [template(kind).document(text) for text in ("hi", "The quick brown fox jumps. " * 12, "I like it.")]
    found = loss_and_gradients(policy_on_gpu(kind, LORA), pack(read, share=False).to(DEVICE))
    monkeypatch.setattr(packed, "FUSED", set())
    wanted = loss_and_gradients(policy_on_gpu(kind, LORA), pack(read, share=False).to(DEVICE))
    assert found[0] == pytest.approx(wanted[0], rel=1e-4)
    assert farthest(found[1], wanted[1]) < 1e-3


# Query heads, key heads, head width: SmolLM2, Qwen3, Gemma 2 and 3.
HEADS = [(9, 3, 64), (16, 8, 128), (8, 4, 256)]


@pytest.mark.parametrize("cap", [None, 50.0])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "groups", "width"), HEADS)
def test_the_kernel_has_the_values_and_gradients_of_plain_products_at_real_sizes(
    heads: int, groups: int, width: int, dtype: torch.dtype, window: int | None, cap: float | None, exact_products: None
):
    sizes = [Segment(700, -1, 0), *(Segment(90 + 10 * i, 0, 700) for i in range(4)), Segment(333, -1, 0)]
    mask = lay_out(sizes).after_virtual(6).to(DEVICE).mask
    keys = mask.keys.shape[1]
    queries = keys - 6
    chance = torch.Generator(DEVICE).manual_seed(0)
    states = [
        torch.randn(1, count, length, width, generator=chance, device=DEVICE).to(dtype).requires_grad_()
        for count, length in ((heads, queries), (groups, keys), (groups, keys))
    ]
    push = torch.randn(1, queries, heads, width, generator=chance, device=DEVICE)
    found = flex_attend(states, mask.blocks(causal=True, window=window), scale=None, cap=cap)
    found_gradients = torch.autograd.grad((found.float() * push).sum(), states)
    seen = mask.visible(causal=True, window=window)(
        None, None, torch.arange(queries, device=DEVICE)[:, None], torch.arange(keys, device=DEVICE)[None]
    )
    exact = [state.detach().float().requires_grad_() for state in states]
    if cap is None:
        repeated = [each.repeat_interleave(heads // groups, dim=1) for each in exact[1:]]
        wanted = F.scaled_dot_product_attention(exact[0], *repeated, attn_mask=seen).transpose(1, 2)
    else:
        wanted = capped_attention(exact, seen, scale=None, cap=cap)
    wanted_gradients = torch.autograd.grad((wanted * push).sum(), exact)
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    assert (found.float() - wanted).norm() <= limit * wanted.norm()
    for one, other in zip(found_gradients, wanted_gradients, strict=True):
        assert (one.float() - other).norm() <= limit * other.norm()


def test_a_preference_step_uses_no_math_kernel():
    made = policy_on_gpu("llama", LORA)
    made.autocast_dtype = torch.bfloat16
    objective = Preference().bind(pairs(4), "decoder")
    examples = [objective.encode(pair, template("llama"), limit=512) for pair in pairs(4)]
    fast = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found, sdpa_kernel(fast):
        batch = collate(add_reference_logprobs(examples, made))
        learner = objective.make_learner()
        accumulate_gradients(made, learner, prepare_batches(made, learner, [batch]))
    assert all(float(value.norm()) > 0 for value in gradients(made).values())
    names = [event.key for event in found.key_averages()]
    assert any("flex_attention" in name for name in names)
    assert not [name for name in names if "_scaled_dot_product_attention_math" in name]


@pytest.mark.parametrize("device", ["cuda:0", pytest.param("cuda:1", marks=pytest.mark.gpus(2))])
def test_every_tensor_of_a_batch_is_on_the_gpu_that_was_asked_for(device: str):
    objective = Preference().bind(pairs(4), "decoder")
    examples = [objective.encode(pair, template("llama"), limit=512) for pair in pairs(4)]
    batch = collate(examples).to(device)
    tensors = {part.name: value for part in fields(batch) if isinstance(value := getattr(batch, part.name), Tensor)}
    assert {"ids", "positions", "row_index", "prev_index", "targets", "row_ids", "labels"} <= tensors.keys()
    assert {str(value.device) for value in tensors.values()} == {device}
    assert str(batch.layout.mask.keys.device) == device
    blocks = batch.layout.mask.blocks(causal=True, window=None)
    assert {str(part.device) for part in blocks.as_tuple() if isinstance(part, Tensor)} == {device}
