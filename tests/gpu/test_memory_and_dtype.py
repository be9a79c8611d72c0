"""One GPU: memory, dtypes, kernels, and that it computes what a CPU computes. Not run on a GPU yet."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from tests.bases import LORA, OPENING, base, encoded, folder, gradients
from tests.golden.runs import answers, pairs, reviews
from tests.models.test_gpu_rules import TECHNIQUES, classify, domain, dpo, grpo, instruct, kto, moved, ppo
from tunesmith.config import make_recipe
from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.events import ignore
from tunesmith.inference.saved_model import load
from tunesmith.models.batch import Batch, collate, pack
from tunesmith.models.loading.device import choose_machine
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.policy import Policy
from tunesmith.models.profile import copy_rate
from tunesmith.models.recompute import recompute_layers
from tunesmith.objectives.base import Learner
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.pipelines.tune.tune import Run, tune_recipe
from tunesmith.techniques import Full, Lora
from tunesmith.techniques.base import Technique
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.fit import _backward, accumulate_gradients, optimizer_step, prepare_batches
from tunesmith.training.optim import TrainingPlan, make_optimizer
from tunesmith.training.overfit_check import can_learn

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")]
SHIPPED = Path(__file__).parents[2] / "tunesmith" / "shipped_data"

Case = Callable[[], tuple[Learner, list[Batch]]]
CASES: tuple[Case, ...] = (instruct, domain, classify, dpo, kto, grpo, ppo)
# Relative distance of three losses between the GPU and the CPU.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}


def policy_on(device: str, technique: Technique, dtype: str, *, head: int = 0) -> Policy:
    """The tiny Llama on a device as a run has it, with the same trained values on every device."""
    held = "float32" if isinstance(technique, Full) else dtype
    found = load_base(str(folder("llama")), options=LoadOptions(held, device)).network
    made = technique.adapt(found, family="decoder", keep_reference=True, start=OPENING)
    made.autocast_dtype = torch.bfloat16 if dtype == "bfloat16" else None
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in made.trainable():
            value.add_((torch.randn(value.shape, generator=chance) * 0.05).to(value.device))
    if head:
        torch.manual_seed(0)
        made.head = nn.Linear(made.hidden, head).to(device)
    return made


def batch_of(tokens: int, *, rows: int = 1) -> Batch:
    """Rows of so many tokens in all, of which the second half is learned."""
    each = tokens // rows
    ids = [[1 + (i * 7 + row) % 300 for i in range(each)] for row in range(rows)]
    return pack([Tokens(row, [i >= each // 2 for i in range(each)]) for row in ids], share=False).to("cuda")


@pytest.fixture
def fresh() -> None:
    """No memory of earlier tests."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


# ------------------------------------------------------------------ (1) the same numbers as on a CPU


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("technique", [Full(), *TECHNIQUES.values()], ids=["full", *TECHNIQUES])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_three_steps_on_the_gpu_are_those_on_the_cpu(case: Case, technique: Technique, dtype: str):
    losses: dict[str, list[float]] = {}
    prepared: list[Batch] = []
    for device in ("cpu", "cuda"):
        learner, batches = case()
        made = policy_on(device, technique, dtype, head={classify: 2, ppo: 1}.get(case, 0))
        # Sampling differs by rounding, so that the rollouts of the CPU are learned on both.
        prepared = prepared or prepare_batches(made, learner, batches)
        optimizer = make_optimizer(made, TrainingPlan(steps=3, learning_rate=1e-3))
        losses[device] = []
        for _ in range(3):
            here = [moved(batch, device) for batch in prepared]
            losses[device].append(accumulate_gradients(made, learner, here)[0])
            optimizer_step(made, optimizer, clip=1.0)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=TOLERANCES[dtype], abs=TOLERANCES[dtype])


# ------------------------------------------------------------------ (4) memory


def large(technique: Technique) -> tuple[Policy, int]:
    """A Llama of about 0.7 billion random parameters on the GPU under a technique, and their number."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 12, "num_attention_heads": 16}
    config = transformers.LlamaConfig(vocab_size=32_000, num_key_value_heads=8, tie_word_embeddings=True, **sizes)
    dtype = torch.float32 if isinstance(technique, Full) else torch.bfloat16
    with torch.device("cuda"):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    made = technique.adapt(network.eval(), family="decoder", keep_reference=False)
    made.autocast_dtype = torch.bfloat16
    return made, sum(value.numel() for value in network.parameters() if not value.requires_grad or dtype.itemsize == 4)


@pytest.mark.parametrize(("technique", "most"), [(Lora(rank=16), 2.3), (Full(), 16.9)], ids=["lora", "full"])
def test_a_parameter_takes_two_bytes_under_an_adapter_and_sixteen_if_it_is_trained(
    fresh: None, technique: Technique, most: float
):
    made, parameters = large(technique)
    optimizer = make_optimizer(made, TrainingPlan(steps=1, learning_rate=1e-4))
    made.sum_nll(batch_of(64)).backward()
    optimizer_step(made, optimizer, clip=1.0)
    made.sum_nll(batch_of(64)).backward()
    trained = sum(value.numel() for _, value in made.trainable()) if not isinstance(technique, Full) else 0
    assert torch.cuda.memory_allocated() <= most * parameters + 16 * trained


def test_moments_of_8_bits_free_six_bytes_of_a_parameter(fresh: None):
    used = {}
    for kind in ("adamw", "adamw-8bit"):
        made, parameters = large(Full())
        optimizer = make_optimizer(made, TrainingPlan(steps=1, learning_rate=1e-4, optimizer=kind))
        made.sum_nll(batch_of(64)).backward()
        optimizer_step(made, optimizer, clip=1.0)
        used[kind] = torch.cuda.memory_allocated() / parameters
        del made, optimizer
        torch.cuda.empty_cache()
    assert used["adamw"] - used["adamw-8bit"] > 5.5


@pytest.mark.real
def test_the_peak_of_a_run_is_within_the_bounds_of_the_plan(tmp_path: Path):
    run = tune(tmp_path, reviews(200), "classify", model="smollm2-135m", technique="lora")
    memory = run.report.memory
    assert memory.predicted_bytes is not None
    assert memory.predicted_bytes / 2 < memory.peak_bytes < 2 * memory.predicted_bytes


# ------------------------------------------------------------------ (5) no synchronization


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_process_does_not_wait_for_the_gpu_within_a_step(case: Case):
    learner, batches = case()
    made = policy_on("cuda", LORA, "bfloat16", head={classify: 2, ppo: 1}.get(case, 0))
    prepared = prepare_batches(made, learner, batches)
    _backward(made, learner, prepared, 7.0)  # the first pass sets libraries up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _backward(made, learner, prepared, 7.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ------------------------------------------------------------------ (6) recomputation


def test_recomputation_divides_the_peak_at_8192_tokens_by_more_than_three(fresh: None):
    made, _ = large(Lora(rank=16))
    weights = torch.cuda.memory_allocated()
    batch, peaks, found = batch_of(8192), [], []
    for on in (False, True):
        recompute_layers(made.network, on=on)
        torch.cuda.reset_peak_memory_stats()
        made.sum_nll(batch).backward()
        found.append(gradients(made))
        peaks.append(torch.cuda.max_memory_allocated() - weights)
    assert peaks[1] < peaks[0] / 3
    for name, value in found[0].items():
        assert (value - found[1][name]).norm() <= 1e-2 * value.norm().clamp(min=1e-6), name


# ------------------------------------------------------------------ (7) QLoRA


def test_qlora_computes_in_bfloat16_and_learns_as_on_the_cpu(tmp_path: Path):
    batch, losses = collate(encoded("llama")), {}
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        network = load_base(str(folder("llama")), options=LoadOptions(dtype, device, "nf4")).network
        technique = Lora(rank=4, quantize="nf4")
        made = technique.adapt(network, family="decoder", keep_reference=False, start=OPENING)
        made.autocast_dtype = torch.bfloat16 if device == "cuda" else None
        losses[device] = float(made.sum_nll(batch.to(device)).detach()) / batch.units
    assert network.get_input_embeddings().weight.dtype == torch.bfloat16
    computed = {module.compute_dtype for module in network.modules() if hasattr(module, "compute_dtype")}
    assert computed == {torch.bfloat16}
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2)
    technique.save(made, tmp_path)
    PeftModel.from_pretrained(base("llama").network, tmp_path)


# ------------------------------------------------------------------ (8) out of memory


def tune(
    place: Path, rows: Any, objective: str, *, out: str = "run", stop: Callable[[], bool] = lambda: False, **parts: Any
) -> Run:
    """A run on the GPU over rows in a file."""
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {"model": str(folder("llama")), "data": str(file), "technique": {"kind": "lora", "rank": 4}, **parts}
    recipe |= {"objective": objective, "machine": {"device": "cuda", **parts.get("machine", {})}}
    return tune_recipe(make_recipe(recipe, place="test")[0], out=place / out, callbacks=Callbacks(ignore, stop))


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_micro_batch_that_does_not_fit_is_recomputed_then_halved_and_no_step_is_lost(tmp_path: Path):
    rows = [{"prompt": f"count from {i}", "answer": " ".join(str(n) for n in range(i, i + 60))} for i in range(256)]
    schedule = {"batch_rows": 128, "batch_tokens": 10**6, "learning_rate": 0.01, "eval_steps": 0}
    wide = tune(tmp_path, rows, "instruct", out="wide", schedule=schedule)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    used = wide.report.memory.peak_bytes
    torch.cuda.set_per_process_memory_fraction(max(0.002, 0.4 * used / total))
    try:
        cramped = tune(tmp_path, rows, "instruct", out="cramped", schedule=schedule)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    out = [record for record in journal(tmp_path / "cramped") if "out_of_memory" in record]
    assert out
    assert out[0].get("recompute")
    assert cramped.report.training.steps == wide.report.training.steps


# ------------------------------------------------------------------ (9) resume


@pytest.mark.parametrize(("exact", "tolerance"), [(False, 1e-5), (True, 0.0)], ids=["fast", "exact"])
def test_a_run_that_is_resumed_takes_the_steps_of_a_whole_one(exact: bool, tolerance: float, tmp_path: Path):
    schedule = {"save_steps": 1, "learning_rate": 0.01, "epochs": 2, "batch_rows": 8, "probe": False}
    more: dict[str, Any] = {"schedule": schedule, "machine": {"exact": exact}}
    tune(tmp_path, answers(), "instruct", out="whole", **more)
    left = [False, False, True]
    with pytest.raises(Interrupted):
        tune(tmp_path, answers(), "instruct", out="cut", stop=lambda: left.pop(0), **more)
    tune(tmp_path, answers(), "instruct", out="cut", **more)
    losses = [[record["loss"] for record in journal(tmp_path / out) if "loss" in record] for out in ("whole", "cut")]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance, abs=0)


# ------------------------------------------------------------------ (10), (16) scores and exports


@pytest.mark.real
@pytest.mark.slow
def test_scores_in_bfloat16_are_those_in_float32(tmp_path: Path):
    rows = [json.loads(line) for line in (SHIPPED / "reviews.jsonl").read_text(encoding="utf-8").splitlines()]
    tune(tmp_path, rows, "classify", model="smollm2-135m", out="half")
    texts = [row["text"] for row in rows[:200]]
    labels = [
        [one.label for one in load(tmp_path / "half", device=device).classify(texts)] for device in ("cpu", "cuda")
    ]
    assert sum(a == b for a, b in zip(*labels, strict=True)) >= 0.995 * len(texts)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_an_export_from_the_gpu_answers_as_the_run(dtype: str, tmp_path: Path):
    tune(tmp_path, answers(), "instruct", technique="full", schedule={"learning_rate": 1e-3})
    found = export(tmp_path / "run", ExportRequest.of("merged", dtype), out=None, on_event=ignore, offline=True)
    assert found.same_answers >= 0.9
    assert not found.faults


def test_preference_and_reinforcement_runs_finish_on_the_gpu(tmp_path: Path):
    run = tune(
        tmp_path, pairs(), "preference", out="pairs", technique={"kind": "full"}, schedule={"optimizer": "adamw-8bit"}
    )
    assert run.report.training.steps == run.report.training.planned_steps


# ------------------------------------------------------------------ (17) rates


def test_products_and_copies_are_measured_at_the_rates_of_the_card():
    """An H100 multiplies more than 400 TFLOP/s in bfloat16 and copies more than 1.5 TB/s, reads and writes together."""
    machine = choose_machine(device="cuda")
    assert machine.dtype == "bfloat16"
    assert machine.gemm_gflops["bfloat16"] > 2 * machine.gemm_gflops["float32"]
    if "H100" in torch.cuda.get_device_name():
        assert machine.gemm_gflops["bfloat16"] > 400_000
        assert copy_rate("cuda") > 1.5e12


def test_the_overfit_check_leaves_weights_as_they_were_without_a_second_copy_on_the_gpu(fresh: None):
    made, parameters = large(Full())
    before = copy.deepcopy({name: value.detach().cpu() for name, value in made.trainable()})
    learner, _ = instruct()
    can_learn(made, learner, [batch_of(512, rows=8)], plan=TrainingPlan(steps=24, learning_rate=1e-4))
    assert torch.cuda.max_memory_allocated() < 17.5 * parameters
    assert all(torch.equal(value.detach().cpu(), before[name]) for name, value in made.trainable())
