"""The plan of a run on GPUs that are not here: memory and time from config.json and public figures; nothing is run.

The network is built on the meta device, where tensors have shapes and no values, and measured like any other network.
The formulas are those of `cost_model`; time is corrected as that of a machine without any earlier run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from tunesmith.config import AnyTechnique, Recipe
from tunesmith.config.resolve import size_of
from tunesmith.errors import OptionError, RecipeError, suggestion
from tunesmith.events import EventHandler, StageStarted
from tunesmith.models.loading.load import refuse_foreign_code
from tunesmith.models.loading.locate import local_family, locate
from tunesmith.models.loading.quantization import experts
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import text_config
from tunesmith.models.loading.weight_files import read_json, reading
from tunesmith.models.policy import Policy
from tunesmith.models.profile import NetworkSize, measure_size
from tunesmith.pipelines.plan.cost_model import (
    HALF,
    NUMBER,
    FigureBounds,
    MachinePace,
    Placement,
    TrainingWork,
    peak_bytes,
    step_seconds,
    trainable,
)
from tunesmith.pipelines.plan.forecast import correction_of
from tunesmith.pipelines.plan.history import RunKind
from tunesmith.pipelines.plan.profile import named
from tunesmith.pipelines.plan.report import Bounds, PaperEstimate, PlanReport
from tunesmith.pipelines.plan.rough_costs import FRAME, TOKENS_PER_CHARACTER
from tunesmith.techniques import Full, Lora
from tunesmith.training.read import read_tasks


@dataclass(frozen=True, slots=True)
class Gpu:
    """Rounded public figures of a GPU."""

    memory: float  # bytes
    products: float  # bfloat16 operations per second that large matrix products reach
    moved: float  # bytes per second of its memory
    link: float  # bytes per second to another GPU of the machine, in one direction
    net: float  # bytes per second to a GPU of another machine, in one direction


# Memory, bandwidth and links: data sheets of the SXM cards and of DGX A100, H100, H200 and B200. Products: measured by
# the finder of maximum achievable matmul FLOPS (github.com/stas00/ml-engineering, compute/accelerator): 271 of 312
# TFLOP/s on an A100, 795 of 989 on an H100 and H200, 1745 of 2250 on a B200.
GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(memory=80e9, products=270e12, moved=2.0e12, link=300e9, net=25e9),
    "h100": Gpu(memory=80e9, products=800e12, moved=3.35e12, link=450e9, net=50e9),
    "h200": Gpu(memory=141e9, products=800e12, moved=4.8e12, link=450e9, net=50e9),
    "b200": Gpu(memory=180e9, products=1750e12, moved=8.0e12, link=900e9, net=50e9),
}
NOT_RUN = "by formula; not run on a GPU yet"
PER_MACHINE = 8  # GPUs
COUNTS = (1, 8, 64)  # GPUs that are planned for
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
        gpu: a key of `GPUS`.
        gpus: numbers of GPUs of each machine, one plan for each; COUNTS if empty.
        machines: number of machines.
        on_event: observes the progress.
        offline: do not access the network.

    Raises:
        OptionError: an unknown GPU.
        ModelError: the configuration cannot be read, or the network cannot be built from it.
        RecipeError: the objective samples completions, whose length is unknown.
    """
    if gpu not in GPUS:
        raise OptionError(f"--gpu {gpu}: unknown, {suggestion(gpu, GPUS) or 'choose from ' + ', '.join(GPUS)}")
    gpus = [machines * number for number in gpus or COUNTS]
    if min(gpus) < 1:
        raise OptionError(f"--gpus: expected integers >= 1, got {min(gpus)}; give 1 or more")
    if recipe.objective.samples_completions:
        raise RecipeError("plan: rl: the length of completions is unknown; plan the same rows with objective: instruct")
    splits = read_tasks(recipe, on_event=on_event, offline=offline)
    examples = [example for loaded in splits.values() for example in loaded.split.train]
    counts = [min(size_of(row) * TOKENS_PER_CHARACTER + FRAME, float(recipe.data.max_tokens)) for row in examples]
    rows = PaperRows(len(counts), sum(counts) / len(counts), math.ceil(max(counts)))
    on_event(StageStarted(f"building {recipe.model} without weights"))
    size = paper_size(recipe.model, offline=offline)
    paper = [
        paper_estimate(recipe, technique, size, rows, gpu=GPUS[gpu], gpus=number)
        for number in gpus
        for technique in _techniques(recipe)
    ]
    work = paper_work(recipe, rows, 1)
    idle = [number for number in gpus if number > recipe.schedule.batch_rows]
    share = f"share the {recipe.schedule.batch_rows} rows of a step; raise schedule.batch_rows"
    return PlanReport(
        data=", ".join(Path(part.data.train).name for part in recipe.parts.values() or [recipe]),
        model=recipe.model,
        family="decoder" if size.causal else "encoder",
        objective=recipe.objective.kind,
        train_rows=rows.rows,
        steps=work.steps,
        tokens=work.computed,
        machine=f"{gpu}, {PER_MACHINE} per machine",
        room_bytes=round(GPUS[gpu].memory),
        how=NOT_RUN,
        options=[],
        paper=paper,
        recommendation=None,
        notes=[f"{number} GPUs {share}" for number in idle],
    )


def _techniques(recipe: Recipe) -> list[AnyTechnique]:
    """Return the recipe's own technique, and full tuning, LoRA and QLoRA."""
    own = recipe.technique
    lora = own.model_copy(update={"dora": False, "quantize": ""}) if isinstance(own, Lora) else Lora()
    others: list[AnyTechnique] = [Full(), lora, lora.model_copy(update={"quantize": "nf4"})]
    return others if named(own) in {named(other) for other in others} else [own, *others]


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
        config = text_config(settings) or AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            make: Any = AutoModel if encoder else AutoModelForCausalLM
            network = make.from_config(config, dtype=torch.bfloat16)
        network.set_attn_implementation(ATTENTION)
        size = measure_size(Policy(network, "encoder" if encoder else "decoder", None, nullcontext))
    # Each token is multiplied with a few of the experts, whose weights are not in linear layers.
    known = config.to_dict()
    total = known.get("num_experts") or known.get("num_local_experts") or known.get("n_routed_experts") or 1
    active = experts(network) * (known.get("num_experts_per_tok") or 1) / total
    return replace(size, matmul_parameters=size.matmul_parameters + round(active))


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
    recipe: Recipe, technique: AnyTechnique, size: NetworkSize, rows: PaperRows, *, gpu: Gpu, gpus: int
) -> PaperEstimate:
    """Estimate a technique on a number of GPUs: the simplest of the fastest ways that fit, or else the smallest way.

    Args:
        recipe: schedule of the run.
        technique: the technique.
        size: sizes of the base model.
        rows: the training rows.
        gpu: figures of one GPU.
        gpus: number of GPUs.
    """
    ways = list(paper_ways(recipe, technique, size, rows, gpu=gpu, gpus=gpus))
    fitting = [way for way in ways if way.fits]
    if fitting:
        limit = SIMILAR * min(way.seconds.expected for way in fitting)
        return next(way for way in fitting if way.seconds.expected <= limit)
    smallest = min(ways, key=lambda way: way.memory.expected)
    return smallest.model_copy(update={"change": _change(recipe, technique, size, rows, gpu=gpu, gpus=gpus)})


def _change(recipe: Recipe, technique: AnyTechnique, size: NetworkSize, rows: PaperRows, *, gpu: Gpu, gpus: int) -> str:
    """Return what to change if nothing fits."""
    more = gpus * 2
    while more <= MOST_GPUS:
        if any(way.fits for way in paper_ways(recipe, technique, size, rows, gpu=gpu, gpus=more)):
            return f"{more} GPUs"
        more *= 2
    return "a smaller model" if technique.load_options().quantize else "technique=qlora"


def paper_ways(
    recipe: Recipe, technique: AnyTechnique, size: NetworkSize, rows: PaperRows, *, gpu: Gpu, gpus: int
) -> Iterator[PaperEstimate]:
    """Yield the estimates of a technique by how many GPUs share the base model, without and with recompute."""
    quantized = bool(technique.load_options().quantize)
    # 4-bit weights are not sharded; shards within a machine need no network between layers.
    sharings = {1} if quantized else {1, min(gpus, PER_MACHINE), gpus}
    work = paper_work(recipe, rows, gpus)
    pace = MachinePace(products=gpu.products, products32=gpu.products, moved=gpu.moved, mixed=True, calls=LAUNCHES)
    weight = NUMBER if isinstance(technique, Full) else HALF
    copy = HALF * size.matrices if isinstance(technique, Full) else 0  # of weights that autocast has cast
    kind = RunKind(model="", family="", objective=recipe.objective.kind, technique=technique.kind)
    correction = correction_of("training", kind, [])
    asked = recipe.schedule.recompute
    for shards in sorted(sharings):
        for recompute in (False, True) if asked == "auto" else (bool(asked),):
            placement = Placement(shards=shards, frozen=HALF, recompute=recompute)
            held = CONTEXT + weight * size.parameters / shards + (copy if shards == 1 else 0)
            needed = peak_bytes(technique, size, work, pace, held=held, placement=placement)
            memory = FigureBounds.around(needed, "memory")
            computing = step_seconds(technique, size, work, pace, recompute=recompute) * math.exp(correction.mean)
            sending = _sending(technique, size, work, gpu, gpus=gpus, shards=shards)
            seconds = max(computing, sending.gathered) + sending.summed
            reach = correction.reach()
            yield PaperEstimate(
                gpus=gpus,
                technique=named(technique),
                shards=shards,
                recompute=recompute,
                memory=Bounds(low=memory.low, expected=memory.expected, high=memory.high),
                fits=memory.high <= gpu.memory,
                seconds=Bounds(low=seconds / reach, expected=seconds, high=seconds * reach),
                tokens_per_second=work.steps * recipe.schedule.batch_rows * rows.tokens / seconds / gpus,
            )


@dataclass(frozen=True, slots=True)
class Sending:
    """Seconds in which a GPU exchanges values with others."""

    gathered: float  # weights and gradients of shards, while it computes
    summed: float  # gradients after a step


def _sending(
    technique: AnyTechnique, size: NetworkSize, work: TrainingWork, gpu: Gpu, *, gpus: int, shards: int
) -> Sending:
    """Return the seconds of collectives: a ring moves (N - 1) / N of the values through each GPU."""
    full = isinstance(technique, Full)
    gathered = 0.0
    if shards > 1:  # weights for forward and backward in bfloat16, gradients in float32
        moved = (2 * HALF + NUMBER * full) * size.parameters * (shards - 1) / shards
        gathered = work.passes * moved / (gpu.link if shards <= PER_MACHINE else gpu.net)
    copies = gpus // shards if full else gpus
    own = trainable(technique, size, work) / (shards if full else 1)
    summed = 2 * NUMBER * own * (copies - 1) / copies / (gpu.link if gpus <= PER_MACHINE else gpu.net)
    return Sending(gathered, work.steps * summed)
