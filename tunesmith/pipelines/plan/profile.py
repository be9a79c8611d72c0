"""The profile of a run before it starts: base model, workload and machine, and what a technique costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch

from tunesmith.config import AnyTechnique, Recipe
from tunesmith.config.checks import sharding_refusal
from tunesmith.models.profile import NetworkSize, copy_rate, measure_size
from tunesmith.models.world import World, among, current_world
from tunesmith.pipelines.plan.cost_model import (
    FOUR_BITS,
    MOMENTS,
    MOMENTS_8BIT,
    NUMBER,
    Estimate,
    MachinePace,
    Placement,
    TrainingWork,
    estimate,
)
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
    recipe: Recipe
    device: str
    placement: Placement  # of the processes; `placed` adds what depends on the technique

    def placed(self, technique: AnyTechnique) -> Placement:
        """Return how a run of a technique is divided, and what it keeps of a pass: on a GPU, the first way that fits.

        On a CPU, what the recipe leaves to the machine is neither divided nor computed again.
        """
        ways = placements(self.recipe, technique, self.size, self.placement)
        fitting = (way for way in ways if self.cost(technique, way).memory.high <= self.available)
        return next(fitting, ways[0]) if self.device.startswith("cuda") else ways[0]

    def cost(self, technique: AnyTechnique, placement: Placement | None = None) -> Estimate:
        """Return the cost of a technique by formula, for each process."""
        placement = placement or self.placed(technique)
        return estimate(technique, self.size, self.work, self.pace, held=self.held, placement=placement)

    def shared(self, prepared: TrainingContext, processes: int) -> RunProfile:
        """Return the profile of each of several processes of this machine; they divide its cores or have a GPU each."""
        if processes == 1:
            return self
        parts = 1 if self.device.startswith("cuda") else processes
        pace = self.pace
        with among(World(size=processes, local_size=processes)):
            work = count_work(prepared, base_policy(prepared), self.counter)
        return replace(
            self,
            work=work,
            pace=replace(
                pace, products=pace.products / parts, products32=pace.products32 / parts, moved=pace.moved / parts
            ),
            available=self.available / parts,
            placement=replace(self.placement, processes=processes, local=processes),
        )


def placements(recipe: Recipe, technique: AnyTechnique, size: NetworkSize, processes: Placement) -> list[Placement]:
    """Return the ways to run a technique: among how many processes weights are divided, without and with recompute.

    What the recipe leaves to the machine has several, the simplest first.
    """
    wish, recompute = recipe.machine.shard, recipe.schedule.recompute
    changed = recipe.model_copy(update={"technique": technique})
    shards = {min(processes.processes, processes.local), processes.processes}  # within a machine, or among all
    family = "decoder" if size.causal else "encoder"
    if wish == "none" or sharding_refusal(changed, family, multimodal=size.multimodal):
        shards = {1}
    moments = MOMENTS if recipe.schedule.optimizer == "adamw" else MOMENTS_8BIT
    return [
        replace(processes, shards=number, moments=moments, recompute=again)
        for number in sorted(shards | ({1} if wish == "auto" else set()))
        for again in ((False, True) if recompute == "auto" else (recompute,))
    ]


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
    size = replace(size, trained=prepared.recipe.technique.count_trained(policy.network))
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
    world = current_world()
    placement = Placement(world.size, world.local_size)
    work = count_work(prepared, policy, counter)
    return RunProfile(
        size, work, pace, held, available, counter, prepared.recipe, device=machine.device, placement=placement
    )


def process_memory(device: str) -> tuple[float, float]:
    """Return the bytes that this process uses now, and those that it may use, on the device that trains."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)  # the rest belongs to other processes
        return float(torch.cuda.memory_allocated(device)), float(torch.cuda.memory_reserved(device) + free)
    used = float(psutil.Process().memory_info().rss)
    return used, used + float(psutil.virtual_memory().available)


def named(technique: AnyTechnique) -> str:
    """Return the shortest name that a recipe accepts for a technique."""
    if isinstance(technique, Lora) and (technique.quantize or technique.dora):
        return "qlora" if technique.quantize else "dora"
    return technique.kind
