"""LoRA over mixtures of experts: which weights it reaches, PEFT's numbers and files, and merged weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoModelForCausalLM

from tests.bases import base, folder, policy
from tests.tiny import MIXTURES
from tunesmith.models.policy import Policy
from tunesmith.techniques import Lora

IDS = torch.arange(6, 26)[None]
OPTIONS = {
    "experts": Lora(rank=4),
    "router": Lora(rank=4, router=True),
    "attention": Lora(rank=4, experts=False),
    "named": Lora(rank=4, targets="q_proj,experts"),
    "rslora": Lora(rank=4, rslora=True, expert_rank=3),
}
SHARED = ("shared_expert.", "shared_experts.")


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=IDS).logits


def adapted(made: Policy) -> set[str]:
    """The layers and parameters that have an update, by the names they had without it."""
    return {name.partition(".lora_")[0].replace(".base_layer", "") for name, _ in made.trainable()}


@pytest.mark.parametrize("kind", MIXTURES)
def test_every_linear_layer_and_all_experts_are_adapted_and_no_router(kind: str):
    found = base(kind).network
    made = policy(kind, Lora(rank=4))
    linear = {
        name
        for name, module in found.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and not name.endswith((".gate", ".router"))
    }
    experts = {name for name, module in found.named_modules() if name.endswith(".experts")}
    assert adapted(made) == linear | experts
    per_expert = [value for name, value in made.trainable() if ".experts." in name and ".lora_A." in name]
    assert len(per_expert) == 2 * len(experts)
    rank = 4 if kind == "llama4" else 4 // 2  # divided by the experts per token
    assert all(len(value) == 4 * rank for value in per_expert)
    assert any(part in name for name in linear for part in SHARED) == (kind in ("qwen2_moe", "deepseek_v3", "llama4"))


@pytest.mark.long
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_a_saved_adapter_opens_in_peft_with_the_same_logits_and_merges_to_them(kind: str, option: str, tmp_path: Path):
    technique = OPTIONS[option]
    made = policy(kind, technique, lively=0.05)
    plain = logits(base(kind).network)
    found = logits(made.network)
    technique.save(made, tmp_path)
    restored = technique.restore(base(kind).network, tmp_path, family="decoder")
    assert torch.allclose(logits(restored.network), found, atol=1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder(kind)), tmp_path)
    assert torch.allclose(logits(opened), found, atol=1e-5)
    assert torch.allclose(logits(opened.merge_and_unload()), found, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    with made.reference():
        assert torch.allclose(logits(made.network), plain, atol=1e-6)


def test_routers_are_adapted_when_asked():
    made = policy("qwen2_moe", Lora(rank=4, router=True))
    assert {name for name in adapted(made) if name.endswith("mlp.gate")} == {
        f"model.layers.{i}.mlp.gate" for i in (0, 1)
    }
    assert Lora(router=True).refusal(base("llama").network, family="decoder").startswith("technique.router: ")


def test_the_scale_of_an_experts_update_is_that_of_the_other_layers(tmp_path: Path):
    made = policy("mixtral", Lora(rank=16, alpha=24))
    scales = {layer.scaling["default"] for layer in made.network.modules() if isinstance(layer, LoraLayer)}
    assert scales == {1.5}
    Lora().save(made, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 12)
    assert config["rank_pattern"] == {"k_proj|o_proj|q_proj|v_proj": 16}


@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        (Lora(dora=True), "technique.dora: PEFT does not support it for experts that share a parameter"),
        (Lora(dropout=0.1), "technique.dropout: PEFT does not support it for experts that share a parameter"),
        (Lora(targets="q_proj", dora=True), ""),
        (Lora(targets="nothing"), "technique.targets: no layer is called 'nothing'"),
        (Lora(targets="experts"), ""),
        (Lora(targets="gate_up_proj,gate"), ""),
        (Lora(targets="self_attn,experts"), "technique.targets: no layer is called 'self_attn'"),
    ],
)
def test_what_cannot_be_adapted_is_said_with_the_fix(technique: Lora, reason: str):
    found = technique.refusal(base("mixtral").network, family="decoder")
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
