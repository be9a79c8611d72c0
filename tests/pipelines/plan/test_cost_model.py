"""The plan's formulas: counts against real adapters, memory against what autograd keeps, time by hand."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import AlbertConfig, AlbertModel

from tests.bases import base, policy
from tunesmith.models.policy import Policy
from tunesmith.models.profile import ActivationMemory, NetworkSize, measure_size
from tunesmith.pipelines.plan.cost_model import (
    MOMENTS_8BIT,
    MachinePace,
    Placement,
    TrainingWork,
    Written,
    estimate,
    moving,
    peak_bytes,
    reading_seconds,
    step_seconds,
    trainable,
    writing_seconds,
    written_bytes,
)
from tunesmith.pipelines.plan.rough_costs import ROUGH_SIZES, RoughRun, rough_seconds
from tunesmith.techniques import Full, Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique

WORK = TrainingWork(
    steps=10, passes=10, rows=160, computed=3000, padded=6000, learned=320, widest=400, widest_rows=16,
    widest_padded=800,
)  # fmt: skip
# A network that one can work out by hand: two layers of 10 x 20 and 20 x 10, 100 words of width 10.
SIZE = NetworkSize(
    kind="llama", causal=True, layers=2, hidden=10, embedded=10, words=100, parameters=2000,
    linear=(("a.up", 10, 20), ("a.down", 20, 10)), named=(("embed", 100, 10), ("head", 10, 100)),
    matmul_parameters=400, past=40,
    moving=ActivationMemory(1000.0, 50.0), frozen=ActivationMemory(600.0, 50.0),
)  # fmt: skip
PACE = MachinePace(products=1e9, products32=1e9, moved=1e9, mixed=False)
ALL = [
    Full(), Lora(rank=4), Lora(rank=4, dora=True), Lora(rank=3, targets=r".*(q_proj|k_lin|query|c_attn|Wqkv)"), Ia3(),
    Prompt(tokens=5), Prefix(tokens=5), PTuning(tokens=5), PTuning(tokens=5, width=7), PTuning(encoder="lstm"),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "gemma3", "gpt2", "bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("technique", ALL, ids=lambda one: "-".join((one.kind, *sorted(one.model_fields_set))))
def test_numbers_that_move_are_those_of_the_real_adapter(kind: str, technique: Technique):
    found = base(kind)
    if technique.refusal(found.network, family=found.family):
        pytest.skip("refused for this family")
    size = measure_size(policy(kind))
    real = sum(value.numel() for _, value in policy(kind, technique).trainable())
    assert moving(technique, size) == real


def test_virtual_tokens_are_as_wide_as_the_words_and_a_layer_counts_as_often_as_a_pass_meets_it():
    options = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    network = AlbertModel(AlbertConfig(vocab_size=128, embedding_size=16, **options)).eval()
    size = measure_size(Policy.over(network, family="encoder", reference=nullcontext), modes=())
    assert (size.embedded, moving(Prompt(tokens=5), size)) == (16, 5 * 16)
    once = 4 * 32 * 32 + 2 * 32 * 64
    assert (size.matrices, size.matmul_parameters) == (once + 16 * 32, 3 * once + 16 * 32)


@pytest.mark.parametrize("targets", [("q_proj", "lm_head"), ("embed_tokens",), r".*(embed_tokens|lm_head|o_proj)"])
def test_embeddings_and_the_output_layer_count_where_they_are_named(targets: str | tuple[str, ...]):
    made, technique = policy("llama"), Lora(rank=3, targets=targets)
    network = made.network
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    assert technique.refusal(network, family="decoder") == ""
    size = measure_size(made)
    real = technique.adapt(network, family="decoder", keep_reference=False)
    assert moving(technique, size) == sum(value.numel() for _, value in real.trainable())


def test_full_tuning_keeps_a_copy_of_the_start_where_steps_ask_it():
    asking = replace(WORK, copies=1)
    for technique, copied in ((Full(), 4 * 2000), (Lora(rank=2), 0)):
        more = peak_bytes(technique, SIZE, asking, PACE, held=0) - peak_bytes(technique, SIZE, WORK, PACE, held=0)
        assert more == copied


def test_the_objectives_head_is_counted_too():
    assert trainable(Lora(rank=2), SIZE, replace(WORK, head=33)) == 2 * 30 * 2 + 33


@pytest.mark.parametrize(("technique", "weights"), [(Full(), True), (Prompt(tokens=4), False)], ids=["full", "prompt"])
@pytest.mark.parametrize(("kind", "attention"), [("llama", ""), ("bert", ""), ("bert", "eager")])
def test_what_a_pass_keeps_grows_by_tokens_and_kept_scores_as_counted_on_short_rows(
    kind: str, attention: str, technique: Technique, weights: bool
):
    from tunesmith.models.profile import _kept_bytes

    made = policy(kind)
    if attention:
        made.network.set_attn_implementation(attention)
        made.packs = False
    for module in made.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    size = measure_size(made)
    kept = size.moving if weights else size.frozen
    assert (kept.pair > 1) == (attention == "eager")  # only that keeps its scores, dropout or not
    for length in (80, 150):  # for a decoder's rows from 160 tokens, the flash kernel also keeps what it returned
        long = _kept_bytes(made, length, weights=weights)
        assert long == pytest.approx(kept.once + length * kept.token + length**2 * kept.pair, rel=0.05)


def test_measuring_leaves_the_network_as_it_was():
    made = policy("llama")
    made.network.get_input_embeddings().requires_grad_(False)
    made.autocast_dtype = torch.bfloat16
    before = {name: value.requires_grad for name, value in made.network.named_parameters()}
    random = torch.get_rng_state()
    measure_size(made)
    assert torch.equal(torch.get_rng_state(), random)
    assert not made.network.training
    assert {name: value.requires_grad for name, value in made.network.named_parameters()} == before
    assert all(value.grad is None for value in made.network.parameters())


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_measuring_lets_go_of_what_its_passes_kept(kind: str):
    made = policy(kind)
    made.autocast_dtype = torch.bfloat16
    before = _tensors()
    measure_size(made)
    assert _tensors() == before


def _tensors() -> int:
    """How many are alive, those that only a cycle holds too."""
    return sum(type(one) is torch.Tensor for one in gc.get_objects())


def test_memory_is_what_stays_and_the_largest_pass():
    copied = 4 * 40 * (800 - 400)  # keys and values, once for each row
    by_hand = 1e6 + 200e6 + 12 * 2000 + 50 + 1.3 * (1000 * 400 + copied) + 3 * 4 * 256 * 100
    assert peak_bytes(Full(), SIZE, WORK, PACE, held=1e6) == pytest.approx(by_hand)
    lora = 16 * 120 + 50 + 1.3 * ((1000 + 4 * 2 * 2) * 400 + copied)
    assert peak_bytes(Lora(rank=2), SIZE, WORK, PACE, held=0) == pytest.approx(200e6 + lora + 3 * 4 * 256 * 100)


def test_what_came_before_training_counts_where_it_is_more():
    assert peak_bytes(Lora(rank=2), SIZE, replace(WORK, baseline_bytes=9e9), PACE, held=1e9) == 10e9


def test_answers_remember_their_prompts_and_count_where_that_is_more_than_training():
    group = Written(rows=64, prompt=250, fed=30, answer=10)
    remembered = 64 * (260 * 40 * 4 * (1 + 1 / 2) + 4 * 100)
    assert written_bytes(group, SIZE) == pytest.approx(remembered)
    read = replace(group, fed=250, answer=0)  # a layer's states of all prompts, three of 20 and two of 10 numbers
    assert written_bytes(read, SIZE) == pytest.approx(64 * (250 * (40 * 4 + 4 * (3 * 20 + 2 * 10)) + 4 * 100))
    many = replace(WORK, written=(group, replace(group, rows=64_000)))
    assert peak_bytes(Full(), SIZE, many, PACE, held=1e6) == pytest.approx(1e6 + 1000 * remembered)
    assert peak_bytes(Full(), SIZE, replace(WORK, written=(group,)), PACE, held=0) == peak_bytes(
        Full(), SIZE, WORK, PACE, held=0
    )


def test_the_vocabulary_counts_wherever_a_learned_state_meets_it_beside_a_head_too():
    fast = replace(PACE, moved=1e30)
    headed = replace(WORK, head=33, headed=5000)
    more = step_seconds(Full(), SIZE, headed, fast) - step_seconds(Full(), SIZE, WORK, fast)
    assert more * 1e9 == pytest.approx(6 * 5000)
    only = replace(headed, learned=0)  # a head alone: no word is told
    fewer = step_seconds(Full(), SIZE, headed, fast) - step_seconds(Full(), SIZE, only, fast)
    assert fewer * 1e9 == pytest.approx(320 * 6 * 100 * 10)
    logits = peak_bytes(Full(), SIZE, headed, PACE, held=0) - peak_bytes(Full(), SIZE, only, PACE, held=0)
    assert logits == 3 * 4 * 256 * 100


def test_attention_and_what_is_only_read_cost_time():
    more = replace(WORK, attended=7000, read=500, read_learned=20)
    seconds = step_seconds(Full(), SIZE, more, PACE) - step_seconds(Full(), SIZE, WORK, PACE)
    arithmetic = 7000 * 12 * 10 * 2 + 500 * 2 * 400 + 20 * 2 * 100 * 10
    assert seconds * 1e9 == pytest.approx(arithmetic + 500 * 3 * 1000)


def test_four_bits_take_an_eighth_of_the_weights_memory():
    saved = peak_bytes(Lora(), SIZE, WORK, PACE, held=0) - peak_bytes(Lora(quantize="nf4"), SIZE, WORK, PACE, held=0)
    assert saved == pytest.approx(400 * (4 - 0.52))
    cheap = replace(WORK, baseline_bytes=9e9, controls=1)  # reached before a control has a base of its own
    assert peak_bytes(Lora(quantize="nf4"), SIZE, cheap, PACE, held=1e9) == pytest.approx(10e9 - saved)
    controlled = [peak_bytes(Lora(quantize="nf4"), SIZE, replace(WORK, controls=n), PACE, held=0) for n in (0, 1)]
    assert controlled[1] - controlled[0] == pytest.approx(4 * 2000 - saved)


def test_weights_in_four_bits_are_multiplied_in_the_type_of_all_others():
    apart = step_seconds(Lora(quantize="nf4"), SIZE, WORK, PACE) - step_seconds(Lora(), SIZE, WORK, PACE)
    assert apart * 1e9 == pytest.approx(10 * 400 * 20)  # a pass unpacks 400 weights
    slow = replace(PACE, products32=PACE.products32 / 2)
    apart_slowly = step_seconds(Lora(quantize="nf4"), SIZE, WORK, slow) - step_seconds(Lora(), SIZE, WORK, slow)
    assert apart_slowly == pytest.approx(apart)


def test_no_copies_in_two_bytes_are_kept_of_weights_in_four_bits():
    mixed, size = replace(PACE, mixed=True), replace(SIZE, moving=ActivationMemory(1000.0, 2 * 400 + 50))
    plain, packed = (peak_bytes(one, size, WORK, mixed, held=0) for one in (Lora(), Lora(quantize="nf4")))
    assert plain - packed == pytest.approx(400 * (4 - 0.52) + 2 * 400)


def test_scores_that_attention_keeps_count_in_memory_and_time():
    kept, work = (
        replace(SIZE, moving=ActivationMemory(1000.0, 50.0, 3.0)),
        replace(WORK, attended=7000, widest_attended=900),
    )
    more = peak_bytes(Full(), kept, work, PACE, held=0) - peak_bytes(Full(), SIZE, work, PACE, held=0)
    assert more == pytest.approx(1.8 * 3 * 900)
    slower = step_seconds(Full(), kept, work, PACE) - step_seconds(Full(), SIZE, work, PACE)
    assert slower * 1e9 == pytest.approx(7000 * 8 * 3)


def test_the_first_pass_finds_no_holes_of_others():
    later, first = (peak_bytes(Full(), SIZE, replace(WORK, widest_first=one), PACE, held=0) for one in (False, True))
    assert later - first == pytest.approx(0.3 * (1000 * 400 + 4 * 40 * 400))


def test_an_encoders_padded_queries_keys_and_values_are_there_in_float32():
    encoder, padded = replace(SIZE, causal=False, past=64), replace(WORK, widest_padded=WORK.widest + 10)
    level = peak_bytes(Full(), encoder, replace(WORK, widest_padded=WORK.widest), PACE, held=0)
    assert peak_bytes(Full(), encoder, padded, PACE, held=0) - level == pytest.approx(1.3 * 4 * 1.5 * 64 * 10)


def test_time_is_arithmetic_and_moved_memory():
    # 400 weights: 6 operations each and token; the words 6 x 10 x 100 for each learned place.
    arithmetic = (3000 * 6 * 400 + 320 * 6 * 1000) / 1e9
    moved = (3000 * 1000 * 8 + 10 * 40 * 2000 + 10 * 50 * 3) / 1e9
    assert step_seconds(Full(), SIZE, WORK, PACE) == pytest.approx(arithmetic + moved + 10 * 2 * 2e-3)


def test_virtual_tokens_run_once_a_pass_in_a_decoder_and_in_every_row_of_an_encoder():
    fast = replace(PACE, moved=1e30, products32=1e30)
    apart = [step_seconds(Prompt(tokens=5), replace(SIZE, causal=causal), WORK, fast) for causal in (True, False)]
    plain = 10 * 2 * 2e-3
    assert (apart[0] - plain) * 1e9 == pytest.approx((3000 + 10 * 5) * 4 * 400)
    assert (apart[1] - plain) * 1e9 == pytest.approx((6000 + 160 * 5) * 4 * 400)


def test_bounds_are_factors_of_the_expected_value():
    found = estimate(Lora(), SIZE, WORK, PACE, held=0)
    assert found.memory.high == pytest.approx(1.15 * found.memory.expected)
    assert found.memory.low == pytest.approx(0.87 * found.memory.expected)


def test_reading_costs_the_way_forward_and_writing_the_weights_once_a_step():
    assert reading_seconds(100, SIZE, PACE) == pytest.approx(100 * (2 * 400 + 600 * 3) / 1e9)
    quick = replace(PACE, products=1e30)
    assert reading_seconds(100, SIZE, quick, tokens32=10) * 1e9 == pytest.approx(10 * 2 * 400 + 110 * 600 * 3)
    each = (4 * 1400 + 32 * 2 * 1400) / 1e9 + 2 * 2e-3 / 4
    assert writing_seconds(10, 32, SIZE, PACE) == pytest.approx(10 * each)


def test_before_the_model_is_there_only_labels_are_priced_in_the_dtype_of_training():
    for objective, slower in (("classify", False), ("preference", True), ("domain", True)):
        run = RoughRun(size=ROUGH_SIZES["minilm-l6"], objective=objective, train=99, test=50, characters=200)
        usual, slow = (rough_seconds(run, pace)["test scoring"] for pace in ({}, {"products32": 1e9}))
        assert (slow > usual) == slower


def test_moments_in_eight_bits_take_two_bytes_instead_of_eight_in_memory_and_in_traffic():
    bits = Placement(moments=MOMENTS_8BIT)
    saved = (8 - 2 * (1 + 4 / 256)) * 2000
    memory = [peak_bytes(Full(), SIZE, WORK, PACE, held=0, placement=one) for one in (Placement(), bits)]
    assert memory[0] - memory[1] == pytest.approx(saved)
    seconds = [step_seconds(Full(), SIZE, WORK, PACE, placement=one) for one in (Placement(), bits)]
    assert (seconds[0] - seconds[1]) * 1e9 == pytest.approx(WORK.steps * 2 * saved)


def test_processes_add_up_gradients_and_shards_divide_what_is_trained():
    pace = replace(PACE, link=1e6, net=1e3)
    alone = step_seconds(Full(), SIZE, WORK, pace)
    ring = WORK.steps * 2 * 4 * 2000 * 3 / 4
    for local, speed in ((4, 1e6), (2, 1e3)):  # on one machine, and on two
        four = Placement(processes=4, local=local)
        assert step_seconds(Full(), SIZE, WORK, pace, placement=four) - alone == pytest.approx(ring / speed)
    sharded = Placement(processes=4, local=4, shards=4)
    gathered = WORK.passes * 8 * 2000 * 3 / 4 / 1e6
    assert step_seconds(Full(), SIZE, WORK, pace, placement=sharded) == pytest.approx(max(alone, gathered))
    # Each updates a part of the parameters; adapters are not divided.
    saved = [
        step_seconds(technique, SIZE, WORK, replace(PACE, link=1e15))
        - step_seconds(technique, SIZE, WORK, replace(PACE, link=1e15), placement=sharded)
        for technique in (Full(), Lora())
    ]
    assert saved == pytest.approx([WORK.steps * (24 + 2 * 8) * 2000 * 3 / 4 / 1e9, 0], abs=1e-9)
    empty = replace(WORK, widest=0, widest_rows=0, widest_padded=0, learned=0)
    needed = [
        peak_bytes(Full(), replace(SIZE, moving=ActivationMemory(0, 0)), empty, PACE, held=8000, placement=one)
        for one in (Placement(), Placement(processes=4), sharded)
    ]
    assert needed[0] == pytest.approx(8000 + 200e6 + 12 * 2000)
    assert needed[1] - needed[0] == 4 * 2000  # the tensor in which gradients are added up
    whole = 2 * 2 * (2 * SIZE.matrices / 2 + 2000 - SIZE.matrices)
    assert needed[2] == pytest.approx(200e6 + 16 * 2000 / 4 + whole)
