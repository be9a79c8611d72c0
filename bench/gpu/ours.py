"""Tunesmith's side: the training step, scoring and sampling of the library itself, timed on one device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.gpu.job import Job
from tunesmith.data.tokenization.chat_template import Encoded, Template, Tokens
from tunesmith.models.batch import Batch, collate
from tunesmith.models.generation.generate import generate
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.device import configure_device, frozen_dtype, gemm_gflops, peak_bytes
from tunesmith.models.loading.load import Base, load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.policy import Policy
from tunesmith.models.profile import matmul_parameters
from tunesmith.models.recompute import recompute_layers
from tunesmith.objectives import Instruct, Preference
from tunesmith.objectives.base import Learner
from tunesmith.techniques import Full, Lora
from tunesmith.training.fit import accumulate_gradients, optimizer_step, prepare_batches
from tunesmith.training.optim import TrainingPlan, make_optimizer
from tunesmith.training.reference_logprobs import add_reference_logprobs

Window = Sequence[dict[str, list[int]]]
Figures = dict[str, Any]


def opened(job: Job, device: str) -> tuple[Base, Policy]:
    """The base of a job and the policy over it, as a run makes them on this device."""
    full = job.technique == "full"
    dtype = "float32" if full else frozen_dtype(device)
    base = load_base(job.model, options=LoadOptions(dtype, device, "nf4" if job.technique == "qlora" else ""))
    technique = Full() if full else Lora(rank=job.rank)
    torch.manual_seed(0)
    policy = technique.adapt(base.network, family=base.family, keep_reference=False)
    policy.autocast_dtype = torch.bfloat16 if device.startswith("cuda") else None
    if job.recompute:
        recompute_layers(policy.network)
    return base, policy


def batches_of(job: Job, window: Window, policy: Policy) -> list[Batch]:
    """The micro-batches of one step."""
    sides = ("answer", "rejected") if job.kind == "dpo" else ("answer",)
    rows = [
        Encoded(tuple(Tokens.of(row["prompt"], row[side]) for side in sides), f"row:{i}", (1.0, 0.0)[: len(sides)])
        for i, row in enumerate(window)
    ]
    if job.kind == "dpo":
        policy.train(False)
        rows = add_reference_logprobs(rows, policy)
    return [collate(rows[i : i + job.rows_per_pass]) for i in range(0, len(rows), job.rows_per_pass)]


def synchronized(device: str) -> float:
    """Seconds on a clock, when the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(job: Job, device: str, step: Callable[[int], None]) -> tuple[float, float]:
    """Median seconds of a step after the warm-up, and GB of memory at the peak."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for number in range(job.steps):
        began = synchronized(device)
        step(number)
        seconds.append(synchronized(device) - began)
    return statistics.median(seconds[job.warmup :]), peak_bytes(device) / 1e9


def train(job: Job, device: str) -> Figures:
    """Tokens per second, share of the device's own product rate (MFU), memory, and loss on held-out rows."""
    _, policy = opened(job, device)
    objective = Preference(loss="dpo", nll=0.0, beta=0.1, metric="preference_accuracy") if job.kind == "dpo" else None
    learner: Learner = (objective or Instruct()).make_learner()
    *windows, held = job.windows()
    optimizer = make_optimizer(policy, TrainingPlan(job.steps, job.learning_rate))
    for group in optimizer.param_groups:
        group["lr"] = job.learning_rate
    packs: list[Batch] = []

    def step(number: int) -> None:
        packs[:] = batches_of(job, windows[number], policy)
        accumulate_gradients(policy, learner, prepare_batches(policy, learner, packs))
        optimizer_step(policy, optimizer, clip=1.0)

    seconds, memory = timed(job, device, step)
    tokens = sum(batch.tokens for batch in packs)
    # Two operations per weight and token in each product: forward, to the inputs, and to the weights where they train.
    products = 4 * matmul_parameters(policy) + 2 * matmul_parameters(policy, moving=True)
    rate = gemm_gflops(device, torch.bfloat16 if device.startswith("cuda") else torch.float32) * 1e9
    policy.train(False)
    with torch.no_grad():
        batches = batches_of(job, held, policy)
        loss = sum(float(policy.sum_nll(batch.to(device))) for batch in batches) / sum(b.units for b in batches)
    return {
        "tokens_per_second": tokens / seconds,
        "computed_tokens": sum(batch.forward_tokens for batch in packs),
        "mfu": products * sum(batch.forward_tokens for batch in packs) / seconds / rate,
        "rows_per_second": job.rows / seconds,
        "peak_gb": memory,
        "held_out_loss": loss,
    }


def grpo(job: Job, device: str) -> Figures:
    """Seconds of sampling and of learning in a step of 8 completions per prompt, with our own generation."""
    base, policy = opened(job, device)
    template = Template(base.tokenizer)
    *windows, _ = job.windows()
    optimizer = make_optimizer(policy, TrainingPlan(job.steps, job.learning_rate))
    sampling, drawn = 0.0, 0

    def step(number: int) -> None:
        nonlocal sampling, drawn
        policy.train(False)
        began = synchronized(device)
        prompts = [row["prompt"] for row in windows[number] for _ in range(job.samples)]
        settings = Sampling(max_new_tokens=job.answer, temperature=1.0, seed=number)
        answers = generate(policy, prompts, sampling=settings, template=template)
        if number >= job.warmup:
            sampling += synchronized(device) - began
            drawn += sum(len(answer.ids) for answer in answers)
        rows = [Tokens.of(p, [*a.ids, *a.end]) for p, a in zip(prompts, answers, strict=True) if a.ids or a.end]
        batch = collate([Encoded((row,), f"row:{i}") for i, row in enumerate(rows)]).to(device)
        logprobs = policy.words.logprobs(policy.learned(batch), batch.targets)
        advantages = torch.randn(batch.rows, generator=torch.Generator().manual_seed(number)).to(device)
        (-(logprobs * advantages[batch.row_ids]).sum() / batch.units).backward()
        optimizer_step(policy, optimizer, clip=1.0)

    seconds, memory = timed(job, device, step)
    count = job.steps - job.warmup
    return {
        "seconds_per_step": seconds,
        "sampling_seconds": sampling / count,
        "learning_seconds": seconds - sampling / count,
        "sampled_tokens_per_second": drawn / max(sampling, 1e-9),
        "peak_gb": memory,
    }


def score(job: Job, device: str) -> Figures:
    """Rows scored per second: log-probabilities of given answers."""
    _, policy = opened(job, device)
    policy.train(False)
    windows = job.windows()

    def step(number: int) -> None:
        with torch.no_grad():
            for batch in batches_of(job, windows[number], policy):
                policy.logprobs(batch.to(device)).cpu()

    seconds, memory = timed(job, device, step)
    return {"rows_per_second": job.rows / seconds, "peak_gb": memory}


SIDES: dict[str, Callable[[Job, str], Figures]] = {
    "sft": train,
    "dpo": train,
    "grpo": grpo,
    "score": score,
}


def run(job: Job) -> Figures:
    """The figures of a job on the device that this machine has."""
    return SIDES[job.kind](job, configure_device("auto", threads=1 if not torch.cuda.is_available() else 0))
