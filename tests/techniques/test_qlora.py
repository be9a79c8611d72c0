"""QLoRA: a base that really lies in four bits, the same arithmetic in training and in use."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoModel, BertConfig, BertForMaskedLM

from tests.bases import OPENING, base, encoded, gradients, policy
from tests.pipelines.conftest import recipe
from tests.tiny import DECODERS, ENCODERS
from tunesmith.config import make_recipe
from tunesmith.models.batch import collate
from tunesmith.models.loading.load import in_memory
from tunesmith.models.loading.locate import AS_THEY_ARE
from tunesmith.models.loading.quantization import count_parameters, normalize_quantized, resident_bytes
from tunesmith.models.mlm_head import own_head
from tunesmith.techniques import Lora
from tunesmith.training.prepare import prepare
from tunesmith.training.train import adapted_policy

pytest.importorskip("bitsandbytes")
QLORA = Lora(rank=4, quantize="nf4")
IDS = torch.arange(6, 26)[None]


@pytest.mark.parametrize("kind", DECODERS)
def test_every_linear_layer_but_the_head_lies_in_nf4_with_its_scales_quantized_again(kind: str):
    layers = [module for module in policy(kind, QLORA).network.modules() if type(module).__name__ == "Linear4bit"]
    packed = [module.base_layer if hasattr(module, "base_layer") else module for module in layers]
    states = [module.weight.quant_state for module in packed]
    assert len(states) >= 8
    assert {(state.quant_type, state.nested) for state in states} == {("nf4", True)}


def test_resident_bytes_are_half_a_byte_a_number_and_the_scales():
    layer = base("llama", QLORA.load_options()).network.model.layers[0].mlp.up_proj  # 64 x 32 numbers
    # 32 blocks of 64 numbers: a byte each, the sixteen values of NF4, the mean, one scale of scales, 256 values of it.
    assert resident_bytes(layer) == 64 * 32 // 2 + 32 + 16 * 4 + 4 + 4 + 256 * 4
    assert count_parameters(layer.parameters()) == 64 * 32


def test_the_whole_base_takes_less_room_and_counts_the_same_numbers():
    four, full = base("llama", QLORA.load_options()).network, base("llama").network
    assert resident_bytes(four) < 0.6 * resident_bytes(full)
    assert count_parameters(four.parameters()) == count_parameters(full.parameters())
    assert resident_bytes(full) == sum(p.nbytes for p in full.parameters()) + sum(b.nbytes for b in full.buffers())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answering_first_changes_neither_the_loss_nor_a_gradient(kind: str):
    made, batch = policy(kind, QLORA, lively=0.05), collate(encoded(kind))
    made.train()
    found = []
    for _ in range(2):
        loss = made.sum_nll(batch)
        loss.backward()
        found.append((loss.detach(), gradients(made)))
        made.train(False)
        with torch.inference_mode():
            assert torch.allclose(made.sum_nll(batch), loss.detach(), rtol=1e-6)
        made.train()
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())
    assert all(value.norm() > 0 for value in found[0][1].values())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_layers_that_the_checkpoint_puts_below_another_name_begin_from_their_error():
    made = policy("nemotron_h", QLORA)  # `backbone.layers` in the files, `model.layers` in the network
    made.train()
    made.sum_nll(collate(encoded("nemotron_h"))).backward()
    moved = gradients(made)
    # The experts are not in four bits: they have no error to begin from.
    assert {name for name, value in moved.items() if not value.norm() > 0} == {
        name for name in moved if ".experts." in name and "lora_A" in name
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_saved_adapter_opens_in_peft_and_here_with_the_same_logits(kind: str, tmp_path: Path):
    made = policy(kind, QLORA, lively=0.05)
    QLORA.save(made, tmp_path)
    restored = QLORA.restore(base(kind, QLORA.load_options()).network, tmp_path, family="decoder")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        opened = PeftModel.from_pretrained(base(kind, QLORA.load_options()).network, tmp_path)
    with torch.no_grad():
        ours = made.network(input_ids=IDS).logits
        assert torch.equal(restored.network(input_ids=IDS).logits, ours)
        assert torch.allclose(opened(input_ids=IDS).logits, ours, atol=1e-5)
        with made.reference():
            untuned = base(kind, QLORA.load_options()).network(input_ids=IDS).logits
            assert torch.equal(made.network(input_ids=IDS).logits, untuned)
    assert not torch.allclose(ours, untuned, atol=1e-2)


def test_qlora_is_a_word_for_lora_over_four_bits():
    made, _ = make_recipe({"data": "rows.jsonl", "objective": "classify", "technique": "qlora"}, place="test")
    assert made.technique == Lora(quantize="nf4")
    assert made.technique.load_options().quantize == "nf4"


def test_an_encoder_without_a_pooler_lies_in_four_bits_with_its_own_head_for_hidden_words(tmp_path: Path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        initializer_range=0.2,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path)
    options = in_memory(QLORA.load_options(), "encoder")
    network = AutoModel.from_pretrained(tmp_path, **options).eval()
    normalize_quantized(network)
    made = QLORA.adapt(network, family="encoder", keep_reference=False)
    assert made.packs
    assert own_head(network, tmp_path) is not None


def said(network: torch.nn.Module) -> torch.Tensor:
    """What the network's body makes of IDS, [1, T, D]."""
    with torch.no_grad():
        return network.base_model(input_ids=IDS)[0]


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_updates_wide_enough_give_back_all_that_four_bits_lost(kind: str):
    whole, packed = said(base(kind).network), said(base(kind, QLORA.load_options()).network)
    found = said(policy(kind, Lora(rank=64, quantize="nf4")).network)
    assert (packed - whole).norm() > 0.01 * whole.norm()
    assert torch.allclose(found, whole, atol=1e-4)


def test_a_narrow_update_gives_back_the_largest_part_of_what_its_layer_would_say_wrong():
    whole, packed = (base("llama", options).network for options in (AS_THEY_ARE, QLORA.load_options()))
    name = "model.layers.0.mlp.up_proj"
    heard: list[torch.Tensor] = []
    packed.get_submodule(name).register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0][0]))
    packed(input_ids=torch.tensor([OPENING]))
    loud = heard[0].square().mean(dim=0).sqrt()
    lost = whole.get_submodule(name).weight - dequantize_module_weight(packed.get_submodule(name))
    given = policy("llama", QLORA).network.get_submodule(name).get_delta_weight("default")
    sizes = torch.linalg.svdvals(lost * loud)
    assert torch.allclose(((lost - given) * loud).norm(), sizes[2:].norm(), rtol=1e-3)  # half of rank 4
    assert sizes[2:].norm() < 0.95 * sizes.norm()


def test_a_is_as_long_as_lora_draws_it_so_that_its_rate_fits():
    torch.manual_seed(0)
    drawn = Lora(rank=4).adapt(base("llama").network, family="decoder", keep_reference=False).trainable()
    torch.manual_seed(0)
    begun = policy("llama", QLORA).trainable()
    lengths = [{name: value.norm(dim=1) for name, value in numbers if "lora_A" in name} for numbers in (drawn, begun)]
    assert all(torch.allclose(value, lengths[1][name], rtol=1e-4) for name, value in lengths[0].items())


@pytest.mark.parametrize(
    ("technique", "keep_reference", "start"),
    [(QLORA, True, OPENING), (QLORA, False, ()), (Lora(rank=4, dora=True, quantize="nf4"), False, OPENING)],
)
def test_what_is_compared_with_its_start_dora_and_updates_without_a_text_begin_as_the_packed_base(
    technique: Lora, keep_reference: bool, start: tuple[int, ...]
):
    network = base("llama", QLORA.load_options()).network
    before = said(network)
    made = technique.adapt(network, family="decoder", keep_reference=keep_reference, start=start)
    assert torch.allclose(said(made.network), before, atol=1e-5)


def test_a_file_that_holds_other_weights_gives_nothing_back(tmp_path: Path):
    network = base("llama", QLORA.load_options()).network
    before, other = said(network), base("llama").network
    with torch.no_grad():
        for value in other.parameters():
            value.normal_()
    other.save_pretrained(tmp_path)
    network.name_or_path = str(tmp_path)
    made = QLORA.adapt(network, family="decoder", keep_reference=False, start=OPENING)
    assert torch.equal(said(made.network), before)


def test_a_text_longer_than_the_model_hears_is_cut():
    made = QLORA.adapt(
        base("bert", QLORA.load_options()).network, family="encoder", keep_reference=False, start=[7] * 5000
    )
    assert all(value.norm() > 0 for name, value in made.trainable() if "lora_B" in name)


@pytest.mark.parametrize(("kind", "moved"), [("preference", False), ("instruct", True)])
def test_what_is_compared_with_its_start_begins_there_in_a_run_too(tmp_path: Path, kind: str, moved: bool):
    rows = [{"prompt": f"Why {i}?", "chosen": f"Since {i}.", "rejected": f"No {i}."} for i in range(20)]
    if kind == "instruct":
        rows = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in rows]
    made = prepare(recipe(tmp_path, rows, "llama", objective=kind, technique="qlora"), on_event=lambda event: None)
    begun = [bool(value.norm() > 0) for name, value in adapted_policy(made).trainable() if "lora_B" in name]
    assert begun
    assert set(begun) == {moved}
