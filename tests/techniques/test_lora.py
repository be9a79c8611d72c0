"""LoRA: PEFT's numbers and files, whatever the options."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, SqueezeBertConfig, SqueezeBertModel

from tests.bases import base, documents, encoded, farthest, folder, gradients, policy
from tests.tiny import DECODERS, ENCODERS, HIDDEN
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.models.batch import collate
from tunesmith.models.policy import Policy
from tunesmith.techniques import SHORTHANDS, Full, Lora
from tunesmith.techniques.base import width_rule

OPTIONS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}
IDS = torch.arange(6, 26)[None]


def logits(made: Policy) -> torch.Tensor:
    with torch.no_grad():
        return made.network(input_ids=IDS).logits


def peer(kind: str, **options) -> PeftModel:
    """The same technique over the same base, put together by PEFT's own user interface."""
    wanted = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(AutoModelForCausalLM.from_pretrained(folder(kind)), wanted)


def opened_by_peft(network: torch.nn.Module, adapter: Path) -> PeftModel:
    """The adapter over a plain network; PEFT's only complaint may be about transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return PeftModel.from_pretrained(network, adapter)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_losses_and_gradients_are_those_of_peft(kind: str, option: str):
    made = policy(kind, Lora(rank=4, **OPTIONS[option]), lively=0.05)
    theirs = peer(kind, use_rslora=option == "rslora", use_dora=option == "dora")
    moving = {name.removeprefix("base_model.model."): p for name, p in theirs.named_parameters() if p.requires_grad}
    ours = dict(made.trainable())
    assert moving.keys() == ours.keys()
    with torch.no_grad():
        for name, value in moving.items():
            value.copy_(ours[name])
    (row,) = encoded(kind, 1)
    (one,) = row.sequences
    labels = torch.tensor([[i if learn else -100 for i, learn in zip(one.ids, one.learn, strict=True)]])
    loss = theirs(input_ids=torch.tensor([one.ids]), labels=labels).loss * one.learned
    loss.backward()
    wanted = {name: value.grad.clone() for name, value in moving.items()}
    found = made.sum_nll(collate([row]))
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    assert farthest(gradients(made), wanted) < 1e-4


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_saved_adapter_opens_in_peft_and_here_with_the_same_logits(kind: str, option: str, tmp_path: Path):
    technique = Lora(rank=4, **OPTIONS[option])
    made = policy(kind, technique, lively=0.05)
    plain = base(kind).network(input_ids=IDS).logits
    technique.save(made, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    opened = opened_by_peft(AutoModelForCausalLM.from_pretrained(folder(kind)), tmp_path / "adapter")
    restored = technique.restore(base(kind).network, tmp_path / "adapter", family="decoder")
    assert torch.equal(logits(restored), logits(made))
    assert torch.equal(opened(input_ids=IDS).logits, logits(made))
    assert not torch.allclose(logits(made), plain, atol=1e-2)


def test_many_tokens_without_gradient_get_the_same_from_update_and_weight_added_first():
    made = policy("llama", Lora(rank=4), lively=0.05)
    layer = made.network.model.layers[0].mlp.up_proj
    outer, inner = layer.base_layer.weight.shape
    states = torch.randn(4 * inner * outer // (inner + outer), inner)
    with torch.no_grad():
        wanted = PeftLinear.forward(layer, states)
        assert torch.allclose(layer(states), wanted, atol=1e-5)
        assert not torch.allclose(layer.base_layer(states), wanted, atol=1e-3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoders_adapter_comes_back_and_leaves_its_pooler_alone(kind: str, tmp_path: Path):
    made = policy(kind, Lora(rank=4), lively=0.05)
    Lora(rank=4).save(made, tmp_path / "adapter")
    restored = Lora(rank=4).restore(base(kind).network, tmp_path / "adapter", family="encoder")
    opened = opened_by_peft(AutoModel.from_pretrained(folder(kind)), tmp_path / "adapter")
    rows = documents(kind, "hi", "The quick brown fox.")
    batch = collate(rows, share=False)
    with torch.no_grad():
        assert torch.equal(restored.states(batch), made.states(batch))
        for row, path in zip(rows, batch.row_index, strict=True):
            theirs = opened(input_ids=torch.tensor([row.sequences[0].ids])).last_hidden_state[0]
            assert torch.allclose(theirs, made.states(batch)[path[path >= 0]], atol=1e-5)
    assert not any("pooler" in name for name, _ in made.trainable())


@pytest.mark.parametrize("option", OPTIONS)
def test_an_untrained_update_changes_nothing_and_can_be_switched_off(option: str):
    plain = base("llama").network(input_ids=IDS).logits
    fresh = policy("llama", Lora(rank=4, **OPTIONS[option]))
    lively = policy("llama", Lora(rank=4, **OPTIONS[option]), lively=0.05)
    assert torch.allclose(logits(fresh), plain, atol=1e-5)
    assert not torch.allclose(logits(lively), plain, atol=1e-2)
    with lively.reference():
        assert torch.equal(logits(lively), plain)


@pytest.mark.parametrize("kind", DECODERS)
def test_only_updates_move_and_every_linear_layer_but_the_head_has_one(kind: str):
    made = policy(kind, Lora(rank=4))
    names = [name for name, _ in made.trainable()]
    layers = [
        name
        for name, module in base(kind).network.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    ]
    assert len(names) == 2 * len(layers)
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


@pytest.mark.parametrize(
    ("technique", "scale"),
    [
        (Lora(rank=4), 2.0),
        (Lora(rank=4, alpha=6), 1.5),
        (Lora(rank=4, alpha=6, rslora=True), 6 / math.sqrt(4)),
        (Lora(rank=16, rslora=True), 2.0),  # 8 / 4, as without
        (Lora(rank=64, rslora=True), 1.0),  # 8 / 8
    ],
)
def test_the_update_is_scaled_by_alpha_over_rank_or_its_root(technique: Lora, scale: float):
    made = policy("llama", technique)
    layer = made.network.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(scale)
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)
        states = torch.ones(1, HIDDEN)
        wanted = layer.base_layer(states) + scale * 0.1 * layer.lora_A["default"].weight.sum()
        assert torch.allclose(layer(states), wanted, atol=1e-5)


def test_a_network_without_linear_layers_is_refused_with_the_layers_that_can_be_named():
    sizes = {"hidden_size": 8, "embedding_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    network = SqueezeBertModel(SqueezeBertConfig(vocab_size=32, num_attention_heads=4, **sizes))
    said = Lora().refusal(network, family="encoder")
    assert said.startswith("technique.targets: a squeezebert has no linear layers; name technique.targets, some of ")
    assert said.endswith("conv1d, key, query, value; nearest that works: full")
    assert Lora(targets=("query", "value")).refusal(network, family="encoder") == ""


def test_a_single_name_is_a_list_of_one_and_a_layer_that_is_not_there_is_refused_before_anything_runs():
    network = policy("llama", Full()).network
    assert Lora(targets="q_proj").targets == ("q_proj",)
    assert Lora(targets=r".*\.[qv]_proj").targets == r".*\.[qv]_proj"
    assert Lora(targets=("self_attn.q_proj", "v_proj")).refusal(network, family="decoder") == ""
    said = Lora(targets="query").refusal(network, family="decoder")
    assert said.startswith("technique.targets: no layer is called 'query'; use one of ")
    assert "q_proj" in said


def test_names_with_commas_between_them_are_a_list():
    assert Lora(targets="q_proj, v_proj").targets == ("q_proj", "v_proj")
    assert Lora(targets=r".*\.(q|v)_proj{1,1}").targets == r".*\.(q|v)_proj{1,1}"


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("*_proj", "'*_proj' is not a valid pattern (nothing to repeat at position 0); write .* for any characters"),
        (r".*\.query", r"no layer matches '.*\\.query'; use one of "),
        ((), "expected at least one layer; name one, or leave it out"),
        (r".*layers\.0\.self_attn.*", "matches model.layers.0.self_attn, which cannot be adapted"),
        (("q_proj", "norm"), "no layer is called 'norm'"),
    ],
)
def test_targets_that_fit_nothing_are_refused_before_anything_is_scored(targets: str | tuple[str, ...], said: str):
    assert said in Lora(targets=targets).refusal(base("llama").network, family="decoder")


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "embed_tokens"), r".*(q_proj|lm_head)", r".*embed.*"])
@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_a_weight_of_both_embeddings_takes_no_update_for_it_could_not_be_merged(
    targets: str | tuple[str, ...], quantize: str
):
    if quantize:
        pytest.importorskip("bitsandbytes")
    technique = Lora(targets=targets, quantize=quantize)
    said = technique.refusal(base("llama", technique.load_options()).network, family="decoder")
    assert "shares its weight with the model's other embedding" in said
    assert said.endswith("leave it out, or use technique: full")


def test_embeddings_of_their_own_weight_take_updates_that_merge_to_the_same_answers():
    network = base("llama").network
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    network.config.tie_word_embeddings = False
    technique = Lora(rank=4, targets=("lm_head", "embed_tokens"))
    assert technique.refusal(network, family="decoder") == ""
    made = technique.adapt(network, family="decoder", keep_reference=False)
    with torch.no_grad():
        for _, value in made.trainable():
            value.add_(0.05)
        wanted = made.network(input_ids=IDS).logits
        assert torch.allclose(made.adapter.merge_and_unload()(input_ids=IDS).logits, wanted, atol=1e-4)


def test_targets_may_be_named():
    made = policy("llama", Lora(rank=4, targets=("q_proj", "v_proj")))
    assert {name.split(".")[4] for name, _ in made.trainable()} == {"q_proj", "v_proj"}


def test_a_target_that_the_model_does_not_have_is_the_recipes_fault():
    with pytest.raises(RecipeError, match=r"^technique\.targets: \('query',\): .*not found.*; use all-linear$"):
        policy("llama", Lora(rank=4, targets=("query",)))


def test_the_first_numbers_follow_from_the_seed():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(dict(policy("llama", Lora(rank=4)).trainable()))
    name = next(name for name in made[0] if "lora_A" in name)
    assert torch.equal(made[0][name], made[1][name])
    assert not torch.equal(made[0][name], made[2][name])


def test_dropout_acts_in_training_only():
    made = policy("llama", Lora(rank=4, dropout=0.5), lively=0.05)
    quiet = logits(made)
    assert torch.equal(logits(made), quiet)
    made.train()
    assert not torch.allclose(logits(made), quiet, atol=1e-3)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors in it; the run was not finished"):
        Lora().restore(base("llama").network, tmp_path, family="decoder")


def test_an_adapter_names_its_base_and_holds_float32_updates_only(tmp_path: Path):
    Lora(rank=4).save(policy("llama", Lora(rank=4)), tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (about["base_model_name_or_path"], about["r"], about["lora_alpha"]) == (str(folder("llama")), 4, 8)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert all("lora_" in name for name in saved)


def test_the_rate_is_ten_times_that_of_full_tuning_and_falls_with_width():
    assert width_rule(2000, "decoder") == pytest.approx(5e-5)
    assert width_rule(576, "decoder") == pytest.approx(5e-5 * (2000 / 576) ** 0.781)
    assert Lora().learning_rate(2000, "decoder") == pytest.approx(5e-4)
    assert Lora().learning_rate(2000, "encoder") == pytest.approx(5e-4 / 3)


def test_shorthands_are_options_of_lora():
    assert {word: Lora(**options) for word, options in SHORTHANDS.items() if word in ("dora", "rslora")} == {
        "dora": Lora(dora=True),
        "rslora": Lora(rslora=True),
    }
