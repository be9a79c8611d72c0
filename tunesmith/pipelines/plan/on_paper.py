"""The plan of a run on GPUs that are not here: memory and time from config.json and public figures; nothing is run.

The network is built on the meta device, where tensors have shapes and no values, and measured like any other network.
The formulas are those of `cost_model`; time is corrected as that of a machine without any earlier run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from tunesmith.config import AnyTechnique, Recipe
from tunesmith.config.checks import sharding_refusal
from tunesmith.config.resolve import size_of
from tunesmith.errors import RecipeError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.models.loading.load import refuse_foreign_code
from tunesmith.models.loading.locate import local_family, locate
from tunesmith.models.loading.quantization import experts
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import text_config
from tunesmith.models.loading.weight_files import read_json, reading
from tunesmith.models.policy import Policy
from tunesmith.models.profile import NetworkSize, measure_size
from tunesmith.pipelines.plan.cost_model import HALF, NUMBER, MachinePace, Placement, TrainingWork, estimate
from tunesmith.pipelines.plan.forecast import correction_of
from tunesmith.pipelines.plan.gpus import COUNTS, GPUS, PER_MACHINE, Gpu, gpu_of
from tunesmith.pipelines.plan.history import RunKind
from tunesmith.pipelines.plan.plan import techniques_of
from tunesmith.pipelines.plan.profile import named, placements
from tunesmith.pipelines.plan.report import Bounds, PaperEstimate, PlanReport
from tunesmith.pipelines.plan.rough_costs import FRAME, TOKENS_PER_CHARACTER
from tunesmith.techniques import Full
from tunesmith.training.read import read_tasks

NOT_RUN = "by formula; not run on a GPU yet"
PASS_TOKENS = 4096  # of a forward pass, where the recipe leaves them to the machine
CONTEXT = 1e9  # bytes of the CUDA context, the libraries' workspaces and the buffers of collectives
# Seconds per layer and pass in which kernels are launched: about 180 of 5 microseconds, forward and backward.
LAUNCHES = 0.9e-3
MOST_GPUS = 1024  # that a change names
SIMILAR = 1.1  # times the fastest: no reason to shard
# The name under which transformers finds `_attend`.
ATTENTION = "tunesmith-paper"


@dataclass(frozen=True, slots=True)
class PaperRows:
    """The training rows of a run, by their size."""

    rows: int
    tokens: float  # of the mean row
    longest: int  # tokens


def plan_on_paper(
    recipe: Recipe,
    *,
    gpu: str,
    gpus: Sequence[int] = (),
    machines: int = 1,
    on_event: EventHandler,
    offline: bool = False,
) -> PlanReport:
    """Estimate memory and time of a recipe on GPUs, from the configuration of its model alone.

    Args:
        recipe: the recipe; its own technique is planned, and full tuning, LoRA and QLoRA.
        gpu: a key of `GPUS`, in any case.
        gpus: numbers of GPUs of each machine, one plan for each; if empty, COUNTS, or PER_MACHINE of several machines.
            Without a number of machines, more than PER_MACHINE are on several.
        machines: number of machines.
        on_event: observes the progress.
        offline: do not access the network.

    Raises:
        OptionError: an unknown GPU, or a number below 1.
        ModelError: the configuration cannot be read, or the network cannot be built from it.
        RecipeError: the objective samples completions, whose length is unknown, or `machine.shard` is not supported.
    """
    gpu = gpu_of(gpu, gpus, machines)
    if recipe.objective.samples_completions:
        raise RecipeError("plan: rl: the length of completions is unknown; plan the same rows with objective: instruct")
    splits = read_tasks(recipe, on_event=on_event, offline=offline)
    examples = [example for loaded in splits.values() for example in loaded.split.train]
    counts = [min(size_of(row) * TOKENS_PER_CHARACTER + FRAME, float(recipe.data.max_tokens)) for row in examples]
    rows = PaperRows(len(counts), sum(counts) / len(counts), math.ceil(max(counts)))
    on_event(StageStarted(f"building {recipe.model} without weights"))
    size = paper_size(recipe.model, offline=offline)
    family = "decoder" if size.causal else "encoder"
    gpus = gpus or (COUNTS if machines == 1 else (PER_MACHINE,))
    totals = [machines * number for number in gpus]
    if max(totals) > 1 and recipe.machine.shard == "full" and (refusal := sharding_refusal(recipe, family)):
        raise RecipeError(f"machine.shard: {refusal}")
    paper = [
        paper_estimate(recipe, technique, size, rows, gpu=GPUS[gpu], gpus=total, local=local)
        for total, local in zip(totals, (gpus if machines > 1 else [PER_MACHINE] * len(totals)), strict=True)
        for technique in techniques_of(recipe)
        if named(technique) in (named(recipe.technique), "full", "lora", "qlora")
    ]
    work = paper_work(recipe, rows, 1)
    share = f"share the {recipe.schedule.batch_rows} rows of a step; raise schedule.batch_rows"
    return PlanReport(
        data=", ".join(Path(part.data.train).name for part in recipe.parts.values() or [recipe]),
        model=recipe.model,
        family=family,
        objective=recipe.objective.kind,
        train_rows=rows.rows,
        steps=work.steps,
        tokens=work.computed,
        machine=f"{gpu}, {machines} machines" if machines > 1 else f"{gpu}, {PER_MACHINE} per machine",
        room_bytes=round(GPUS[gpu].memory),
        how=NOT_RUN,
        options=[],
        paper=paper,
        recommendation=None,
        notes=[f"{total} GPUs {share}" for total in totals if total > recipe.schedule.batch_rows],
    )


def paper_size(model: str, *, offline: bool = False) -> NetworkSize:
    """Measure the network of a configuration on the meta device.

    Args:
        model: folder with a config.json, alias or Hub id; only the configuration is fetched.
        offline: do not access the network.

    Raises:
        ModelError: there is no such configuration, or it does not build a network that runs without values.
    """
    folder = locate(model, offline=offline, files=("config.json",))
    settings = read_json(folder / "config.json", where=model)
    refuse_foreign_code(settings, where=model)
    encoder = local_family(str(folder)) == "encoder"
    with reading(model), quiet():
        text = text_config(settings)
        config = text or AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            make: Any = AutoModel if encoder else AutoModelForCausalLM
            network = make.from_config(config, dtype=torch.bfloat16)
        network.set_attn_implementation(ATTENTION)
        size = measure_size(Policy(network, "encoder" if encoder else "decoder", None, nullcontext))
    # Each token is multiplied with a few of the experts, whose weights are not in linear layers.
    known = config.to_dict()
    total = known.get("num_experts") or known.get("num_local_experts") or known.get("n_routed_experts") or 1
    active = experts(network) * (known.get("num_experts_per_tok") or 1) / total
    return replace(size, matmul_parameters=size.matmul_parameters + round(active), multimodal=text is not None)


def _attend(module: Any, *states: Any, **_: Any) -> tuple[Tensor, None]:
    """Call the flash kernel, as a GPU would: the meta device would take the one that keeps all scores."""
    query, key, value, _mask = states
    out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal=True)[0]
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def paper_work(recipe: Recipe, rows: PaperRows, gpus: int) -> TrainingWork:
    """Return the work of one GPU: every step's rows are divided among all, packed into full passes."""
    schedule = recipe.schedule
    steps = max(1, math.ceil(schedule.epochs * rows.rows / schedule.batch_rows))
    own = math.ceil(schedule.batch_rows / gpus)  # rows of the GPU that has the most
    limit = PASS_TOKENS if isinstance(schedule.batch_tokens, str) else schedule.batch_tokens
    passes = math.ceil(own * rows.tokens / max(limit, rows.tokens))
    computed = round(steps * own * rows.tokens)
    widest = round(min(max(limit, rows.longest), own * rows.longest))
    return TrainingWork(
        steps=steps,
        passes=steps * passes,
        rows=steps * own,
        computed=computed,
        padded=computed,
        learned=computed,  # at most: of an instruction only the answer is learned
        widest=widest,
        widest_rows=math.ceil(own / passes),
        widest_padded=widest,
        widest_first=True,  # full passes are alike
        attended=round(computed * rows.tokens / 2),  # a causal kernel skips what is masked
    )


def paper_estimate(
    recipe: Recipe,
    technique: AnyTechnique,
    size: NetworkSize,
    rows: PaperRows,
    *,
    gpu: Gpu,
    gpus: int,
    local: int = PER_MACHINE,
) -> PaperEstimate:
    """Estimate a technique on GPUs: the simplest of the fastest ways that fit, or else the smallest, with a change.

    A machine has `local` GPUs at most.
    """

    def ways(number: int) -> list[PaperEstimate]:
        return list(paper_ways(recipe, technique, size, rows, gpu=gpu, gpus=number, local=local))

    if fitting := [way for way in ways(gpus) if way.fits]:
        limit = SIMILAR * min(way.seconds.expected for way in fitting)
        return next(way for way in fitting if way.seconds.expected <= limit)
    doublings = range(1, (MOST_GPUS // gpus).bit_length())
    more = next((gpus << n for n in doublings if any(way.fits for way in ways(gpus << n))), 0)
    smaller = "a smaller model" if technique.load_options().quantize else "technique=qlora"
    smallest = min(ways(gpus), key=lambda way: way.memory.expected)
    return smallest.model_copy(update={"change": f"{more} GPUs" if more else smaller})


def paper_ways(
    recipe: Recipe,
    technique: AnyTechnique,
    size: NetworkSize,
    rows: PaperRows,
    *,
    gpu: Gpu,
    gpus: int,
    local: int = PER_MACHINE,
) -> Iterator[PaperEstimate]:
    """Yield the estimates of a technique by how many GPUs share the base model, without and with recompute."""
    work, full = paper_work(recipe, rows, gpus), isinstance(technique, Full)
    kind = RunKind(model="", family="", objective=recipe.objective.kind, technique=technique.kind)
    correction = correction_of("training", kind, [])
    slower, reach = math.exp(correction.mean), correction.reach()  # than the rates of large products and copies
    products = gpu.products / slower
    pace = MachinePace(
        products=products,
        products32=products,
        moved=gpu.moved / slower,
        mixed=True,
        calls=LAUNCHES * slower,
        link=gpu.link,
        net=gpu.net,
    )
    held = CONTEXT + (NUMBER if full else HALF) * size.parameters
    for placement in placements(recipe, technique, size, Placement(gpus, min(gpus, local), frozen=HALF)):
        copy = HALF * size.matrices if full and placement.shards == 1 else 0  # of weights that autocast has cast
        cost = estimate(technique, size, work, pace, held=held + copy, placement=placement)
        yield PaperEstimate(
            gpus=gpus,
            technique=named(technique),
            own=named(technique) == named(recipe.technique),
            shards=placement.shards,
            recompute=placement.recompute,
            memory=cost.memory,
            fits=cost.memory.high <= gpu.memory,
            seconds=Bounds.around(cost.seconds, 1 / reach, reach),
            tokens_per_second=work.steps * recipe.schedule.batch_rows * rows.tokens / cost.seconds / gpus,
        )
