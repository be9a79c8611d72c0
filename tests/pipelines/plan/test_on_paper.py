"""The plan on paper: shapes from config.json equal those of the real network, and memory and time follow by hand."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, LlamaConfig, Qwen3MoeConfig

from bench import paper
from tunesmith.config import Recipe
from tunesmith.config.recipe import Machine
from tunesmith.errors import ModelError, OptionError, RecipeError
from tunesmith.models.policy import Policy
from tunesmith.models.profile import measure_size
from tunesmith.pipelines.plan.cost_model import LIBRARIES, MachinePace, Placement, peak_bytes, step_seconds
from tunesmith.pipelines.plan.gpus import GPUS
from tunesmith.pipelines.plan.on_paper import (
    PaperRows,
    paper_estimate,
    paper_size,
    paper_ways,
    paper_work,
    plan_on_paper,
)
from tunesmith.techniques import Full, Lora

LLAMA = LlamaConfig(
    hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=320, architectures=["LlamaForCausalLM"],
)  # fmt: skip
ROWS = PaperRows(rows=1000, tokens=200.0, longest=500)
QLORA = Lora(rank=16, quantize="nf4")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    LLAMA.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eight():
    return paper_size(str(paper.CONFIGS / "llama-3.1-8b"))


def test_a_folder_with_a_configuration_alone_has_the_sizes_of_the_real_network(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.models.policy.lean.install", lambda network: None)  # as on the GPU it is planned for
    assert [path.name for path in llama.iterdir()] == ["config.json"]
    on_paper = paper_size(str(llama))
    network = AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    real = measure_size(Policy.over(network, family="decoder", reference=nullcontext))
    for name in ("layers", "hidden", "parameters", "matmul_parameters", "linear", "named", "past", "words", "causal"):
        assert getattr(on_paper, name) == getattr(real, name)
    assert on_paper.moving.token == pytest.approx(real.moving.token, rel=0.02)
    # On a CPU, attention of short rows does not keep its output, as the kernels for long rows do.
    assert real.frozen.token <= on_paper.frozen.token <= 1.1 * real.frozen.token
    assert on_paper.moving.pair == pytest.approx(0, abs=1e-6)  # flash attention keeps no scores


def test_only_the_text_part_of_a_multimodal_configuration_counts(tmp_path: Path):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    config = Gemma3Config(text_config={**text, "num_key_value_heads": 2, "vocab_size": 300})
    config.architectures = ["Gemma3ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    size = paper_size(str(tmp_path))
    assert (size.kind, size.layers, size.hidden, size.multimodal) == ("gemma3_text", 2, 32, True)


def test_a_token_is_multiplied_with_its_own_experts_only(tmp_path: Path):
    config = Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=300,
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, architectures=["Qwen3MoeForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    size = paper_size(str(tmp_path))
    experts = 2 * 8 * 3 * 32 * 16
    assert size.matmul_parameters == size.matrices + experts // 4
    assert size.parameters > size.matmul_parameters + experts * 3 // 4 - 1


def test_what_is_no_network_is_said_in_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "wide"}))
    with pytest.raises(ModelError, match="transformers cannot read it") as caught:
        paper_size(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_full_tuning_of_8b_on_eight_cards_takes_16_bytes_per_parameter_divided_by_eight(eight):
    work, pace = (
        paper_work(paper.recipe(), ROWS, 8),
        MachinePace(products=1e15, products32=1e15, moved=1e12, mixed=True),
    )
    held = 4 * eight.parameters
    bare = replace(work, widest=0, widest_rows=0, widest_padded=0, learned=0)
    needed = peak_bytes(Full(), eight, bare, pace, held=held, placement=Placement(shards=8, frozen=2))
    outside = eight.parameters - eight.matrices
    whole = 2 * 2 * (2 * eight.matrices / 32 + outside)  # two layers, embeddings and head, with gradients, in bfloat16
    assert needed == pytest.approx(16 * eight.parameters / 8 + whole + LIBRARIES + eight.moving.once, rel=1e-6)


def test_frozen_weights_have_two_bytes_and_four_bit_ones_half_of_one(eight):
    def of(technique: Lora) -> float:
        ways = paper_ways(paper.recipe(batch_rows=1), technique, eight, ROWS, gpu=GPUS["h100"], gpus=1)
        return next(way.memory.expected for way in ways if way.recompute)

    saved = of(Lora(rank=16)) - of(QLORA)
    assert saved == pytest.approx((2 - 0.52) * eight.matrices, rel=0.01)


def test_recompute_keeps_the_inputs_of_layers_and_takes_up_to_a_third_more_time(eight):
    rows = PaperRows(rows=64, tokens=8192.0, longest=8192)
    plain, again = (
        next(way for way in paper_ways(long, Full(), eight, rows, gpu=GPUS["h200"], gpus=8)
             if (way.shards, way.recompute) == (8, recompute))
        for long in [paper.recipe(batch_rows=8, batch_tokens=8192)] for recompute in (False, True)
    )  # fmt: skip
    kept = 8192 * (eight.moving.token * (1 - 1 / 32) - 2 * 4096 * 32)
    assert plain.memory.expected - again.memory.expected == pytest.approx(kept, rel=1e-3)
    # A third of the products; the head and the traffic of a backward pass are not repeated.
    assert 1.2 < again.seconds.expected / plain.seconds.expected < 4 / 3


@pytest.mark.parametrize("recompute", [True, False])
def test_a_recipe_that_decides_on_recompute_is_planned_so(eight, recompute: bool):
    settings = paper.recipe(recompute=recompute)
    ways = paper_ways(settings, Lora(), eight, ROWS, gpu=GPUS["h100"], gpus=1)
    assert {way.recompute for way in ways} == {recompute}


def test_one_process_is_planned_as_before(eight):
    pace = MachinePace(products=1e12, products32=1e12, moved=1e11, mixed=True)
    work = paper_work(paper.recipe(), ROWS, 1)
    assert peak_bytes(Lora(), eight, work, pace, held=1e9) == peak_bytes(
        Lora(), eight, work, pace, held=1e9, placement=Placement()
    )
    again = step_seconds(Lora(), eight, work, pace, placement=Placement(recompute=True))
    assert step_seconds(Lora(), eight, work, pace) < again


def test_where_nothing_fits_the_number_of_gpus_or_the_technique_that_fits_is_named(eight):
    full = paper_estimate(paper.recipe(), Full(), eight, ROWS, gpu=GPUS["h100"], gpus=1)
    assert (full.fits, full.change) == (False, "4 GPUs")
    bigger = paper_estimate(paper.recipe(), Full(), eight, ROWS, gpu=GPUS["h100"], gpus=4)
    assert bigger.fits
    assert bigger.shards == 4


def test_each_gpu_has_its_share_of_a_steps_rows_and_idle_ones_are_noted(llama: Path, tmp_path: Path):
    one, eight_gpus = (paper_work(paper.recipe(batch_rows=16), ROWS, gpus) for gpus in (1, 8))
    assert (one.steps, eight_gpus.steps) == (63, 63)
    assert one.computed == 63 * 16 * 200
    assert eight_gpus.computed == one.computed // 8
    file = tmp_path / "reviews.jsonl"
    words = [{"text": f"phone {i} is {'good' if i % 2 else 'bad'}", "label": "ab"[i % 2]} for i in range(60)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in words), encoding="utf-8")
    rows = Recipe.model_validate(
        {
            "model": str(llama),
            "data": {"train": str(file)},
            "objective": {"kind": "classify", "text": "text", "label": "label"},
        }
    )
    plan = plan_on_paper(rows, gpu="H100", gpus=[64], on_event=lambda event: None)
    assert [(option.technique, option.own) for option in plan.paper] == [
        ("full", False), ("lora", True), ("qlora", False)
    ]  # fmt: skip
    assert plan.notes == ["64 GPUs share the 16 rows of a step; raise schedule.batch_rows"]
    assert plan.how.endswith("not run on a GPU yet")
    with pytest.raises(OptionError, match="did you mean 'h100'"):
        plan_on_paper(rows, gpu="h1000", gpus=[1], on_event=lambda event: None)
    qlora = rows.model_copy(update={"technique": QLORA, "machine": Machine(shard="full")})
    with pytest.raises(RecipeError, match="machine.shard: 4-bit weights are copied to every process"):
        plan_on_paper(qlora, gpu="h100", machines=2, on_event=lambda event: None)


def test_machines_of_few_gpus_send_over_the_network_what_machines_of_eight_keep(eight):
    settings = paper.recipe(batch_rows=128)
    wide, narrow = (
        next(way for way in paper_ways(settings, Full(), eight, ROWS, gpu=GPUS["h100"], gpus=8, local=local)
             if (way.shards, way.recompute) == (8, False))
        for local in (8, 4)
    )  # fmt: skip
    assert narrow.seconds.expected > 1.5 * wide.seconds.expected
    assert narrow.memory == wide.memory
    within = paper_ways(settings, Full(), eight, ROWS, gpu=GPUS["h100"], gpus=8, local=4)
    assert {way.shards for way in within} == {1, 4, 8}


@pytest.mark.parametrize(("wish", "shards"), [("none", {1}), ("full", {8, 64}), ("auto", {1, 8, 64})])
def test_shards_are_those_that_the_recipe_asks_for(eight, wish: str, shards: set[int]):
    settings = paper.recipe().model_copy(update={"machine": Machine(shard=wish)})
    ways = paper_ways(settings, Full(), eight, ROWS, gpu=GPUS["h100"], gpus=64)
    assert {way.shards for way in ways} == shards
    assert {way.shards for way in paper_ways(settings, QLORA, eight, ROWS, gpu=GPUS["h100"], gpus=64)} == {1}


def test_the_formula_is_near_what_others_measured_with_the_same_settings(eight):
    titan, _, a100, _ = (one for one in paper.PUBLISHED if one.source == paper.TITAN)
    for one in (titan, a100):
        _, speed = paper.estimated(one, eight)
        assert 0.5 < speed / one.speed < 2
    theirs, ours = paper.slopes(eight)
    assert ours / theirs == pytest.approx(1, abs=0.05)


def test_the_tables_in_the_docs_are_those_of_the_formula(eight):
    page = Path("docs/scale.md").read_text(encoding="utf-8")
    rows = paper.planned("llama-3.1-8b", eight)
    rows += [paper.beside(one, eight) for one in paper.PUBLISHED if one.model == "llama-3.1-8b"]
    assert [row for row in rows if row not in page] == []
