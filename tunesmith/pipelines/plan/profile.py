"""The profile of a run before it starts: base model, workload and machine, and the prediction of its cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import psutil
import torch

from tunesmith.config import AnyTechnique
from tunesmith.models.profile import NetworkSize, copy_rate, measure_size
from tunesmith.pipelines.plan.cost_model import FOUR_BITS, NUMBER, MachinePace, TrainingWork, estimate
from tunesmith.pipelines.plan.report import Bounds, CostPrediction
from tunesmith.pipelines.plan.workload import WorkloadCounter, count_work
from tunesmith.techniques import Full, Lora
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import base_policy


@dataclass(frozen=True, slots=True)
class RunProfile:
    """The input of the cost model."""

    size: NetworkSize
    work: TrainingWork
    pace: MachinePace
    held: float  # bytes that the process uses, with unquantized weights
    available: float  # bytes that it may use
    counter: WorkloadCounter  # counts further micro-batches of the run


def profile_run(prepared: TrainingContext, *, own: bool = False) -> RunProfile:
    """Measure base model, workload and machine; nothing is trained.

    Args:
        prepared: the run.
        own: only what the recipe's own technique needs, which takes half the passes if it trains no weights.
    """
    machine = prepared.machine
    held, available = process_memory(machine.device)  # first: the memory of the measurements is used again by the run
    policy = base_policy(prepared)
    trains_weights = isinstance(prepared.recipe.technique, Full | Lora)
    size = measure_size(policy, modes=(False,) if own and not trains_weights else (True, False))
    rates = machine.gemm_gflops
    pace = MachinePace(
        products=1e9 * rates.get(machine.dtype, rates["float32"]),
        products32=1e9 * rates["float32"],
        moved=copy_rate(machine.device),
        mixed=policy.autocast_dtype is not None,
    )
    if prepared.recipe.technique.load_options().quantize:  # the cost model starts from unquantized weights
        held += (NUMBER - FOUR_BITS) * size.matrices
    counter = WorkloadCounter.of(prepared, policy)
    return RunProfile(size, count_work(prepared, policy, counter), pace, held, available, counter)


def process_memory(device: str) -> tuple[float, float]:
    """Return the bytes that this process uses now, and those that it may use, on the device that trains."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)  # the rest belongs to other processes
        return float(torch.cuda.memory_allocated(device)), float(torch.cuda.memory_reserved(device) + free)
    used = float(psutil.Process().memory_info().rss)
    return used, used + float(psutil.virtual_memory().available)


def predict(technique: AnyTechnique, profile: RunProfile, *, how: str) -> CostPrediction:
    """Predict the cost of a technique; `how` states the method."""
    cost = estimate(technique, profile.size, profile.work, profile.pace, held=profile.held)
    return CostPrediction(
        technique=named(technique),
        trainable=cost.trainable,
        memory=Bounds(**asdict(cost.memory)),
        seconds=Bounds(**asdict(cost.seconds)),
        how=how,
    )


def named(technique: AnyTechnique) -> str:
    """Return the shortest name that a recipe accepts for a technique."""
    if isinstance(technique, Lora) and (technique.quantize or technique.dora):
        return "qlora" if technique.quantize else "dora"
    return technique.kind
