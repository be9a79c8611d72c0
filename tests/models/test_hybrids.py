"""Networks that keep more than keys and values: the losses, gradients and answers of transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.bases import LORA, base, farthest, folder, gradients, policy, scrambled, template
from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.attention import network_cache
from tunesmith.models.attention.network_cache import (
    RowRules,
    cached_values,
    caches_keys_only,
    generates,
    new_cache,
    read_prefix,
    tensors_of,
)
from tunesmith.models.batch import pack
from tunesmith.models.certificate import Measured
from tunesmith.models.generation.generate import generate, groups, option_scores, sample, stream_pieces
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.generation.slot_kv_cache import fits
from tunesmith.models.generation.thoughts import ThoughtSplitter
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.measurements import difference
from tunesmith.models.policy import Policy
from tunesmith.models.profile import measure_size
from tunesmith.techniques import Full, Lora, Prefix, Prompt, PTuning

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

# Linear attention, state spaces beside and between attention, convolutions, chunks of attention, and no attention.
HYBRIDS = ("qwen3_next", "falcon_h1", "nemotron_h", "granitemoehybrid", "lfm2", "llama4_text", "mamba2", "mamba")
TEXT_PARTS = (*HYBRIDS, "qwen3_5")  # its adapters have the names of the whole checkpoint, images included
SHARED = list(range(50, 80))  # more than a chunk of attention or of a scan
GREEDY = Sampling(max_new_tokens=6)


def rows() -> list[Tokens]:
    """Four rows of unequal length, of which three begin alike."""
    ids = [[*SHARED, *range(90, 110), 7, 8, 9], [*SHARED, 9, 10], [*SHARED, 11, 12, 13], [14, 15, 16, 17]]
    return [Tokens(row, [False] * (len(row) - 2) + [True] * 2) for row in ids]


def prompts() -> list[list[int]]:
    """Prompts of unequal length, of which two begin alike."""
    return [[*SHARED, 7, 8, 9], [*SHARED[:20], 10], [11, 12, 13]]


def own_loss(network: Any, row: Tokens) -> Tensor:
    """The loss that transformers computes for one row alone."""
    ids = torch.tensor([row.ids])
    labels = torch.tensor([[token if learned else -100 for token, learned in zip(row.ids, row.learn, strict=True)]])
    return (
        network(input_ids=ids)
        .logits.float()[0, :-1]
        .log_softmax(dim=1)
        .gather(1, labels[0, 1:, None].clamp(min=0))[:, 0][labels[0, 1:] >= 0]
        .sum()
        .neg()
    )


@pytest.mark.long
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_losses_and_gradients_are_those_of_transformers_own_forward(kind: str, share: bool):
    made = policy(kind, Full())
    network = base(kind).network
    network.requires_grad_(True)
    wanted = sum(own_loss(network, row) for row in rows())
    wanted.backward()
    found = made.sum_nll(pack(rows(), share=share))
    found.backward()
    assert not made.packs
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    own = {
        name: value.grad if value.grad is not None else torch.zeros_like(value)
        for name, value in network.named_parameters()
    }
    moved = gradients(made)
    assert farthest(moved, own) < 1e-4
    assert sum(value.norm() > 0 for value in own.values()) > len(own) * 0.8


@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_answers_in_a_batch_are_those_alone_and_those_of_transformers(kind: str):
    made = policy(kind)
    scrambled(made.network)
    together = generate(made, prompts(), sampling=GREEDY, template=template(kind))
    ends = template(kind).stop_ids
    for prompt, answer in zip(prompts(), together, strict=True):
        (alone,) = generate(made, [prompt], sampling=GREEDY, template=template(kind))
        assert answer == alone
        ids = torch.tensor([prompt])
        own = made.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=sorted(ends),
            pad_token_id=0,
        )  # fmt: skip
        assert answer.ids == [token for token in own[0, len(prompt) :].tolist() if token not in ends]
    assert any(answer.ids for answer in together)


@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_several_answers_to_a_prompt_are_those_of_the_prompt_alone(kind: str):
    made = policy(kind)
    warm = Sampling(max_new_tokens=5, temperature=1.0, seed=3)
    found = sample(made, prompts(), count=3, sampling=warm, template=template(kind))
    for prompt, answers in zip(prompts(), found, strict=True):
        assert generate(made, [prompt], sampling=warm, template=template(kind)) == answers[:1]
        assert sample(made, [prompt], count=3, sampling=warm, template=template(kind)) == [answers]
        pieces = stream_pieces(made, prompt, sampling=warm, splitter=ThoughtSplitter(template(kind)))
        assert "".join(piece.text for piece in pieces) == template(kind).decode(answers[0].ids).strip()
    assert len({tuple(answer.ids) for answers in found for answer in answers}) > 5


@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_options_are_scored_as_rows_alone(kind: str):
    made = policy(kind)
    options = [[[10], [11, 12], [13, 14, 15, 16]]] * 3
    found = option_scores(made, prompts(), options)
    with torch.no_grad():
        for prompt, scores in zip(prompts(), found, strict=True):
            for option, score in zip(options[0], scores.tolist(), strict=True):
                row = Tokens([*prompt, *option], [False] * len(prompt) + [True] * len(option))
                assert score == pytest.approx(-own_loss(made.network, row).item(), rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kind", HYBRIDS)
def test_an_adapter_and_full_weights_come_back_the_same_and_peft_reads_the_adapter(kind: str, tmp_path: Path):
    for technique in (LORA, Full()):
        made = policy(kind, technique, lively=0.1)
        place = tmp_path / technique.kind
        place.mkdir()
        technique.save(made, place)
        back = technique.restore(base(kind).network, place, family="decoder")
        with torch.no_grad():
            states = made.states(pack(rows()))
            assert torch.allclose(back.states(pack(rows())), states, atol=1e-5)
            if technique.kind == "lora":
                assert not torch.allclose(policy(kind).states(pack(rows())), states, atol=1e-2)
                with quiet():
                    peft = PeftModel.from_pretrained(base(kind).network, place).eval()
                ids = torch.tensor([rows()[0].ids])
                wanted = made.words.logits(made.states(pack([rows()[0]])))
                assert torch.allclose(peft(input_ids=ids[:, :-1]).logits[0], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_every_update_of_lora_gets_a_gradient(kind: str):
    made = policy(kind, LORA, lively=0.1)
    made.sum_nll(pack(rows())).backward()
    moved = gradients(made)
    assert {name.split(".")[-4] for name in moved} >= {"q_proj", "v_proj"} or kind.startswith("mamba")
    # A router sends a row past some experts.
    assert all(value.norm() > 0 for name, value in moved.items() if "expert" not in name)


@pytest.mark.long
@pytest.mark.parametrize("technique", [Prompt(tokens=5), PTuning(tokens=5)], ids=lambda one: one.kind)
@pytest.mark.parametrize("kind", HYBRIDS)
def test_virtual_tokens_are_read_before_each_row_as_peft_puts_them_there(kind: str, technique: Any, tmp_path: Path):
    assert technique.refusal(base(kind).network, family="decoder") == ""
    made = policy(kind, technique, lively=0.05)
    one_by_one = sum(made.sum_nll(pack([row])) for row in rows())
    one_by_one.backward()
    alone = gradients(made)
    together = made.sum_nll(pack(rows()))
    together.backward()
    assert together.item() == pytest.approx(one_by_one.item(), rel=1e-5)
    assert farthest(gradients(made), alone) < 1e-4
    technique.save(made, tmp_path)
    peft = PeftModel.from_pretrained(base(kind).network, tmp_path).eval()
    with torch.no_grad():
        ids = torch.tensor([prompts()[0]])
        wanted = made.words.logits(made.states(pack([Tokens.of(prompts()[0])])))
        found = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
        assert torch.allclose(found, wanted, atol=1e-4)
    answers = generate(made, prompts(), sampling=GREEDY, template=template(kind))
    for prompt, answer in zip(prompts(), answers, strict=True):
        ids = list(prompt)
        for token in answer.ids:
            with torch.no_grad():
                last = made.states(pack([Tokens.of(ids)]))[-1]
            assert int(made.words.logits(last).argmax()) == token
            ids.append(token)


def test_what_cannot_take_virtual_tokens_says_what_works():
    states = Prefix().refusal(base("qwen3_next").network, family="decoder")
    assert states == "a qwen3_next has layers with other states than keys and values; nearest that works: prompt"
    network = base("falcon_h1").network
    network.base_model.embedding_multiplier = 3.0
    scaled = "a falcon_h1 changes the embeddings of words outside their layer"
    assert Prompt().refusal(network, family="decoder").startswith(scaled)
    assert Prompt().refusal(network, family="decoder").endswith("nearest that works: lora")
    assert Prefix().refusal(network, family="decoder").endswith("nearest that works: lora")
    with pytest.raises(RecipeError, match=r"incompatible with Mamba-based models"):
        policy("falcon_h1", Lora(targets="out_proj"))


@pytest.mark.parametrize("kind", TEXT_PARTS)
def test_what_rows_may_do_together_is_measured(kind: str):
    network = base(kind).network
    assert generates(network)
    assert not fits(network)
    keys_only = kind == "llama4_text"
    assert caches_keys_only(network) == keys_only
    # Llama 4 scales queries by their column, from a column on that no short row reaches. The first Mamba reads several
    # tokens at once only at the beginning of a row.
    wanted = RowRules(keys_only=keys_only, pads_left=not keys_only, pads_inside=False, continues=kind != "mamba")
    assert RowRules.of(network, packs=False) == wanted
    assert len(list(groups(policy(kind), prompts(), 64))) == (3 if keys_only else 1)


def test_small_weights_do_not_hide_that_a_state_goes_on_from_row_to_row():
    network = base("lfm2").network
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(0.01)
    made = Policy.over(network, family="decoder")
    assert not made.packs
    assert not made.rules.pads_inside


def test_four_bits_are_refused_where_a_weight_is_used_without_its_layer():
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ModelError, match="mamba cannot be used in 4 bits; leave `quantize` out"):
        load_base(str(folder("mamba")), options=LoadOptions(quantize="nf4"))
    assert policy("lfm2", Lora(rank=4, quantize="nf4")).states(pack(rows())).isfinite().all()


def test_rows_that_cannot_be_padded_run_alone():
    made = policy("lfm2")
    wanted = made.states(pack(rows()))
    made.rules = RowRules(keys_only=False, pads_right=False, pads_left=False, pads_inside=False)
    assert torch.allclose(made.states(pack(rows())), wanted, atol=1e-5)
    assert [len(group) for group in groups(made, [*prompts(), [1, 2, 3]], 64)] == [1, 1, 2]


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "lfm2", "mamba2"])
def test_the_values_of_a_cache_are_counted(kind: str):
    network = base(kind).network
    past, state = cached_values(network)
    for tokens in (5, 9):
        cache = read_prefix(network, new_cache(network), 0, input_ids=torch.arange(tokens)[None])
        assert sum(part.numel() for part in tensors_of(cache)) == past * tokens + state
    assert (past > 0, state > 0) == (kind != "mamba2", kind != "llama")


@pytest.mark.parametrize(("kind", "block"), [("qwen3_next", 64), ("falcon_h1", 16), ("lfm2", 1)])
def test_memory_is_measured_in_the_blocks_that_a_scan_computes(kind: str, block: int):
    size = measure_size(policy(kind))
    assert size.moving.block == block
    assert size.moving.stored(3 * 70, 3) == 3 * (70 if block == 1 else -(-70 // block) * block)
    assert size.state > 0


def test_rows_whose_states_are_not_numbers_may_not_run_together():
    one = torch.ones(2, 4)

    def measure(network: Any) -> list[tuple[Tensor, Tensor]]:
        return [(one, one), (one * torch.nan, one)]

    distance = network_cache._distance(measure, policy("mamba").network)
    assert not distance <= 1.0
    assert Measured(difference([one, one * torch.nan], [one, one]), bound=1.0).check("packed").outcome == "failed"


@pytest.mark.parametrize("measure", [RowRules.of, fits, caches_keys_only], ids=["rules", "slots", "keys"])
def test_running_out_of_memory_is_not_taken_for_what_a_network_can(measure: Any, monkeypatch: pytest.MonkeyPatch):
    network = base("lfm2" if measure is not fits else "llama").network
    options = {"packs": False} if measure == RowRules.of else {}

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(type(network.base_model), "forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            measure(network, **options)
    assert network not in network_cache._MEASURED
    measure(network, **options)


def test_a_network_that_ignores_its_cache_has_none():
    network = base("llama").network
    forward = network.base_model.forward
    network.base_model.forward = lambda cache=None, use_cache=None, **given: forward(use_cache=False, **given)
    with pytest.raises(ValueError, match="makes or fills no cache"):
        read_prefix(network, new_cache(network), 0, input_ids=torch.arange(4)[None])
    assert not generates(network)
