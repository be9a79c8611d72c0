"""What a GPU gets differently, as far as a CPU can show it: dtypes, places, kernels and when results are read.

Where a tensor has to be somewhere else than on the CPU, it is on the meta device: it has no values, so that reading
one raises, as does every kernel that needs tensors of another place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from tests.bases import LORA, OPENING, base, chats, documents, encoded, folder, pairs, policy, template, with_mismatched
from tests.objectives.test_online_rl import practice, prompts
from tunesmith.data.examples.types import LabelledText, UnpairedPreference
from tunesmith.models.batch import Batch, collate, mean_metrics
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.kernels.fused_lora import FusedLora, LowRank, drop_peft_wrappers, fuse
from tunesmith.models.kernels.skinny_linear import SkinnyLinear, install
from tunesmith.models.lm_head import LanguageHead, sum_nll
from tunesmith.models.loading import device as devices
from tunesmith.models.loading.device import gemm_gflops
from tunesmith.models.loading.load import in_memory, load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Domain, Instruct, Preference
from tunesmith.objectives.base import Learner
from tunesmith.techniques import Ia3, Lora, Prefix, Prompt, PTuning
from tunesmith.techniques.base import Technique
from tunesmith.training.fit import _backward, optimizer_step, prepare_batches
from tunesmith.training.optim import TrainingPlan, make_optimizer

HALF = LoadOptions("bfloat16")
TECHNIQUES = {
    "lora": LORA,
    "dora": Lora(rank=4, dora=True),
    "ia3": Ia3(),
    "prompt": Prompt(tokens=4),
    "prefix": Prefix(tokens=4),
    "p-tuning": PTuning(tokens=4),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees a GPU that has bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_weights_that_are_not_trained_are_bfloat16_on_a_gpu_that_has_it_and_float32_elsewhere(
    gpu: None, monkeypatch: pytest.MonkeyPatch
):
    assert [devices.frozen_dtype(device) for device in ("cpu", "mps", "cuda", "cuda:1")] == [
        "float32",
        "float32",
        "bfloat16",
        "bfloat16",
    ]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert devices.frozen_dtype("cuda") == "float32"


def test_weights_are_read_straight_to_a_gpu_and_on_a_cpu_as_before():
    assert in_memory(LoadOptions("float32", "cpu"), "decoder") == {"dtype": torch.float32}
    assert in_memory(LoadOptions("bfloat16", "cuda:1"), "decoder") == {
        "dtype": torch.bfloat16,
        "device_map": {"": "cuda:1"},
    }
    four_bits = in_memory(LoadOptions("bfloat16", "cuda", "nf4"), "decoder")
    assert four_bits["device_map"] == {"": "cuda"}
    assert four_bits["dtype"] == four_bits["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16


def test_auto_is_the_dtype_of_the_device(monkeypatch: pytest.MonkeyPatch):
    assert load_base(str(folder("llama")), options=LoadOptions("auto")).network.dtype == torch.float32
    monkeypatch.setattr("tunesmith.models.loading.load.frozen_dtype", lambda device: "bfloat16")
    assert load_base(str(folder("llama")), options=LoadOptions("auto")).network.dtype == torch.bfloat16


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The settings of this process, restored after the test."""
    precision, exact = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(exact)


def test_a_gpu_multiplies_in_tf32_and_its_segments_grow_unless_the_user_says_otherwise(
    process: None, monkeypatch: pytest.MonkeyPatch
):
    devices.configure_gpu(exact=False)
    assert torch.get_float32_matmul_precision() == "high"
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    devices.configure_gpu(exact=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_cpu_leaves_the_process_as_it_is(process: None):
    before = torch.get_float32_matmul_precision()
    devices.configure_device("cpu", threads=None, exact=True)
    assert torch.get_float32_matmul_precision() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


def test_a_gpu_is_measured_with_products_that_fill_it(monkeypatch: pytest.MonkeyPatch):
    multiplied = []

    def best_time(left: torch.Tensor, right: torch.Tensor, *, clock: object) -> float:
        multiplied.append((*left.shape, right.shape[1]))
        return 0.002

    monkeypatch.setattr(devices, "_best_time", best_time)
    monkeypatch.setattr(torch, "ones", lambda *shape, dtype, device: torch.empty(shape, dtype=dtype, device="meta"))
    assert gemm_gflops("cuda", torch.bfloat16) == pytest.approx(2 * 8192**3 / 0.002 / 1e9)
    assert multiplied == [(8192, 8192, 8192)]
    gemm_gflops("cpu", torch.bfloat16)
    assert multiplied[1:] == list(devices.SHAPES)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_kernels_of_the_cpu_are_installed_on_a_cpu_only():
    here, there = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2, device="meta"))
    install(here)
    install(there)
    assert [type(layer) for layer in (*here, *there)] == [SkinnyLinear, nn.Linear]
    made = policy("llama", LORA).network
    assert any(isinstance(module, FusedLora) for module in made.modules())
    wrapped = get_peft_model(base("llama").network.to("meta"), LoraConfig(target_modules=["q_proj"]))
    fuse(wrapped)
    assert any(type(module) is PeftLinear for module in wrapped.modules())
    assert not any(isinstance(module, FusedLora) for module in wrapped.modules())


# ------------------------------------------------------------------ weights in bfloat16


def half(kind: str, technique: Technique) -> Policy:
    """A base in bfloat16 under a technique, trained as on a GPU."""
    made = technique.adapt(base(kind, HALF).network, family="decoder", keep_reference=False, start=OPENING)
    made.autocast_dtype = torch.bfloat16
    return made


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "technique"),
    [
        pytest.param(kind, technique, id=f"{kind}-{name}")
        for kind in ("llama", "gemma", "gpt2", "qwen3_moe")
        for name, technique in TECHNIQUES.items()
        if kind != "qwen3_moe" or name not in ("ia3", "dora")  # which PEFT has not for experts
    ],
)
def test_over_a_base_in_bfloat16_only_what_trains_is_float32_and_it_learns_as_over_float32(
    kind: str, technique: Technique
):
    made, batch = half(kind, technique), collate(encoded(kind))
    assert {value.dtype for value in made.network.parameters() if not value.requires_grad} == {torch.bfloat16}
    assert {value.dtype for _, value in made.trainable()} == {torch.float32}
    whole = policy(kind, technique)
    losses: dict[str, list[float]] = {"half": [], "whole": []}
    for name, tuned in (("half", made), ("whole", whole)):
        optimizer = make_optimizer(tuned, TrainingPlan(steps=3, learning_rate=1e-2))
        for _ in range(3):
            loss = tuned.sum_nll(batch) / batch.units
            loss.backward()
            optimizer_step(tuned, optimizer, clip=1.0)
            losses[name].append(float(loss.detach()))
    assert losses["half"] == pytest.approx(losses["whole"], rel=2e-2)
    made.autocast_dtype = None
    made.train(False)
    ids = [row.sequences[0].ids[:8] for row in encoded(kind)]
    generate(made, ids, sampling=Sampling(max_new_tokens=4), template=template(kind))
    with torch.no_grad():
        assert float(made.sum_nll(batch)) == pytest.approx(float(whole.sum_nll(batch)), rel=2e-2)


def test_adapters_that_are_served_over_bfloat16_take_its_dtype_and_answer_as_in_peft():
    made, batch = half("llama", LORA), collate(encoded("llama"))
    with torch.no_grad():
        for _, value in made.trainable():
            value.normal_(std=0.05)
    made.autocast_dtype = None
    for module in made.network.modules():  # as on a GPU
        if isinstance(module, FusedLora):
            module.__class__ = PeftLinear
    with torch.inference_mode():
        wanted = made.states(batch)
        drop_peft_wrappers(made.network)
        found = made.states(batch)
    layers = [module for module in made.network.modules() if isinstance(module, LowRank)]
    assert {layer.lora_a.dtype for layer in layers} == {torch.bfloat16}
    assert not any(isinstance(module, PeftLinear) for module in made.network.modules())
    assert (found - wanted).norm() < 2e-2 * wanted.norm()


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_head_over_an_encoder_in_bfloat16_is_float32(kind: str):
    made = LORA.adapt(base(kind, HALF).network, family="encoder", keep_reference=False)
    made.head = nn.Linear(made.hidden, 2)
    logits = made.head(made.pooled(collate(documents(kind, "I like it.", "bad"), share=False)))
    assert logits.dtype == torch.float32
    logits.sum().backward()


def test_the_head_in_bfloat16_keeps_logits_and_sums_in_float32():
    torch.manual_seed(0)
    states, weight, bias = torch.randn(600, 32), torch.randn(400, 32) / 5, torch.randn(400) / 5
    targets = torch.randint(0, 400, (600,))
    found = [value.bfloat16().requires_grad_() for value in (states, weight, bias)]
    wanted = [value.detach().float().requires_grad_() for value in found]
    losses = [sum_nll(*found, targets), sum_nll(*wanted, targets)]
    assert losses[0].dtype == torch.float32  # in bfloat16 the sum would have three digits
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    for loss in losses:
        loss.backward()
    for half_value, value in zip(found, wanted, strict=True):
        assert half_value.grad is not None
        assert value.grad is not None
        assert (half_value.grad.float() - value.grad).norm() < 1e-2 * value.grad.norm()


def test_mixed_products_leave_the_gradient_of_a_trained_head_in_float32():
    torch.manual_seed(0)
    layer = nn.Linear(32, 400, bias=False)
    states, targets = torch.randn(300, 32), torch.randint(0, 400, (300,))
    heads = [LanguageHead(layer), LanguageHead(layer, products=torch.bfloat16)]
    capped = [LanguageHead(layer, 1.0, 30.0), LanguageHead(layer, 1.0, 30.0, torch.bfloat16)]
    for whole, mixed in (heads, capped):
        gradients = []
        for head in (whole, mixed):
            layer.weight.grad = None
            (head.sum_nll(states, targets) - head.logprobs(states, targets).sum()).backward()
            assert layer.weight.grad is not None
            gradients.append(layer.weight.grad)
        assert gradients[1].dtype == torch.float32
        assert (gradients[1] - gradients[0]).norm() < 1e-2 * gradients[0].norm()
        assert mixed.logits(states).dtype == torch.bfloat16


# ------------------------------------------------------------------ nothing is read within a step


def instruct() -> tuple[Learner, list[Batch]]:
    return Instruct(), [collate(encoded("llama")[:2]), collate(encoded("llama")[2:])]


def domain() -> tuple[Learner, list[Batch]]:
    return Domain(), [collate(encoded("llama"))]


def dpo() -> tuple[Learner, list[Batch]]:
    objective = Preference().bind(pairs(4), "decoder")
    return objective.make_learner(), [collate([objective.encode(p, template("llama"), limit=200) for p in pairs(4)])]


def kto() -> tuple[Learner, list[Batch]]:
    rated = [
        UnpairedPreference(f"r:{i}", c.messages[:1], c.messages[1].content, i % 2 == 0) for i, c in enumerate(chats())
    ]
    objective = Preference().bind(rated, "decoder")
    return objective.make_learner(), [
        with_mismatched([objective.encode(e, template("llama"), limit=200) for e in rated])
    ]


def classify() -> tuple[Learner, list[Batch]]:
    texts = [LabelledText(f"r:{i}", c.messages[0].content, (("good", "bad")[i % 2],)) for i, c in enumerate(chats())]
    objective = Classify(output="linear").bind(texts, "decoder")
    rows = [row for text in texts for row in objective.encode_all(text, template("llama"), limit=200)]
    return objective.make_learner(), [collate(rows)]


def grpo() -> tuple[Learner, list[Batch]]:
    return practice(updates=2), [prompts(2)]


def ppo() -> tuple[Learner, list[Batch]]:
    return practice(updates=2, algorithm="ppo"), [prompts(2)]


def moved(batch: Batch, device: str) -> Batch:
    """The batch on a device; `Batch.to` leaves rollouts where they were sampled."""
    rollout = batch.rollout
    if rollout is not None:
        parts = {part.name: getattr(rollout, part.name) for part in fields(rollout)}
        rollout = replace(rollout, **{k: v.to(device) for k, v in parts.items() if isinstance(v, torch.Tensor)})
    return replace(batch.to(device), rollout=rollout)


@pytest.mark.parametrize("technique", [LORA, Prompt(tokens=4), Prefix(tokens=4)], ids=lambda each: each.kind)
@pytest.mark.parametrize("case", [instruct, domain, classify, dpo, kto, grpo, ppo], ids=lambda case: case.__name__)
def test_no_step_reads_a_value_or_makes_a_tensor_elsewhere(case: object, technique: Technique):
    learner, batches = case()  # type: ignore[operator]
    made = policy("llama", technique, lively=0.05)
    if case in (classify, ppo):
        made.head = nn.Linear(made.hidden, 2 if case is classify else 1)
    prepared = prepare_batches(made, learner, batches)
    made.network.to("meta")
    for module in made.network.modules():  # as on a GPU
        if isinstance(module, FusedLora):
            module.__class__ = PeftLinear
    if made.virtual is not None:
        made.virtual.module.to("meta")
    if made.head is not None:
        made.head.to("meta")
    totals, metrics = _backward(made, learner, [moved(batch, "meta") for batch in prepared], 7.0)
    assert {total.device.type for total in totals} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):  # the end of a step reads its losses
        torch.stack(totals).tolist()
    if case in (grpo, ppo):
        with pytest.raises(RuntimeError, match="meta"):
            mean_metrics(metrics)
