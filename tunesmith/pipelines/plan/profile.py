"""A run counted before it begins: network, rows and machine in numbers, and the recipe's own line of the plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from tunesmith.config import AnyTechnique
from tunesmith.data.files import write_whole
from tunesmith.events import EventHandler, Note
from tunesmith.models.profile import NetworkSize, copy_rate, measure_size
from tunesmith.pipelines.plan.cost_model import FOUR_BITS, NUMBER, MachinePace, TrainingWork, estimate
from tunesmith.pipelines.plan.report import PREDICTION, Bounds, CostPrediction, read_prediction, told
from tunesmith.pipelines.plan.workload import WorkloadCounter, count_work
from tunesmith.techniques import Full, Lora
from tunesmith.training.prepare import TrainingContext
from tunesmith.training.train import base_policy


@dataclass(frozen=True, slots=True)
class RunProfile:
    """Everything that a plan's formulas are fed with."""

    size: NetworkSize
    work: TrainingWork
    pace: MachinePace
    held: float  # bytes that the process takes with plain weights
    room: float  # bytes that it may take
    counter: WorkloadCounter  # of further batches of the run


def profile_run(prepared: TrainingContext, *, own: bool = False) -> RunProfile:
    """The network, the rows and the machine in numbers; nothing is trained.

    With `own` only what the recipe's technique asks for, which takes half the passes.
    """
    machine = prepared.machine
    held, room = _memory(machine.device)  # first: what a look at the network takes is used again by the run
    policy = base_policy(prepared)
    weights = isinstance(prepared.recipe.technique, Full | Lora)
    size = measure_size(policy, modes=(weights,) if own else (True, False))
    rates = machine.gemm_gflops
    pace = MachinePace(
        products=1e9 * rates.get(machine.dtype, rates["float32"]),
        products32=1e9 * rates["float32"],
        moved=copy_rate(machine.device),
        mixed=policy.autocast_dtype is not None,
    )
    if prepared.recipe.technique.load_options().quantize:  # the formulas start from plain weights
        held += (NUMBER - FOUR_BITS) * size.matrices
    counter = WorkloadCounter.of(prepared, policy)
    return RunProfile(size, count_work(prepared, policy, counter), pace, held, room, counter)


def _memory(device: str) -> tuple[float, float]:
    """Bytes that are taken now, and those that may be: of the device that trains."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)  # of the rest, what others hold is not to be had
        return float(torch.cuda.memory_allocated(device)), float(torch.cuda.memory_reserved(device) + free)
    taken = float(psutil.Process().memory_info().rss)
    return taken, taken + float(psutil.virtual_memory().available)


def predict_cost(prepared: TrainingContext, out: Path, *, on_event: EventHandler) -> CostPrediction | None:
    """What the recipe's own technique takes, by formula alone; said, and kept in the folder from the first start on.

    None for `rl`: how long answers will be is not known before they are drawn.
    """
    if prepared.recipe.objective.samples_completions:
        return None
    made = read_prediction(out)
    if made is None:
        made = predict(prepared.recipe.technique, profile_run(prepared, own=True), how="by formula, not timed")
        write_whole(out / PREDICTION, made.model_dump_json(indent=1))
    on_event(Note(told(made)))
    return made


def predict(technique: AnyTechnique, found: RunProfile, *, how: str) -> CostPrediction:
    """One technique's prediction."""
    made = estimate(technique, found.size, found.work, found.pace, held=found.held)
    return CostPrediction(
        technique=named(technique),
        trainable=made.trainable,
        memory=Bounds(**asdict(made.memory)),
        seconds=Bounds(**asdict(made.seconds)),
        how=how,
    )


def named(technique: AnyTechnique) -> str:
    """A technique by the shortest word that a recipe knows it by."""
    if isinstance(technique, Lora) and (technique.quantize or technique.dora):
        return "qlora" if technique.quantize else "dora"
    return technique.kind
