"""Compare the plan on paper (`tunesmith plan --gpu`) with figures that others have published for real GPUs.

    python -m bench.paper

The formula is not fitted to any of these figures. Nothing is run: the networks are built from bench/configs/.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.config import Recipe
from tunesmith.models.profile import NetworkSize
from tunesmith.objectives import Domain
from tunesmith.pipelines.plan.gpus import GPUS, Gpu
from tunesmith.pipelines.plan.on_paper import PaperRows, paper_estimate, paper_size, paper_ways
from tunesmith.techniques import Full, Lora

CONFIGS = Path(__file__).with_name("configs")
GIB = 2.0**30
LORA, QLORA = Lora(rank=16), Lora(rank=16, quantize="nf4")
A100_40GB = replace(GPUS["a100"], memory=40e9, moved=1.555e12)


@dataclass(frozen=True, slots=True)
class Published:
    """A published measurement; 0 where a figure is not given."""

    source: str
    model: str
    technique: Full | Lora
    gpu: Gpu
    gpus: int
    rows: int  # of one GPU in a pass
    tokens: int  # of a row
    recompute: bool
    shards: int = 1
    memory: float = 0.0  # bytes
    speed: float = 0.0  # tokens per second of one GPU
    note: str = ""


TITAN, UNSLOTH, FACTORY, GUIDE = "torchtitan", "Unsloth", "LLaMA-Factory", "ml-engineering"
H100, A100, H200 = GPUS["h100"], GPUS["a100"], GPUS["h200"]
GPU_NAMES = {"H100": H100, "A100": A100, "H200": H200, "A100 40 GB": A100_40GB}
SELECTIVE = "recomputes some products and keeps logits of all positions"
LEAST = "absolute minimum, settings not given; ours: one row of 2,048 tokens"
PUBLISHED = (
    Published(TITAN, "llama-3.1-8b", Full(), H100, 8, 2, 8192, False, 8, 82.4 * GIB, 5762, SELECTIVE),
    Published(TITAN, "llama-3.1-8b", Full(), H100, 128, 2, 8192, False, 128, 67.0 * GIB, 5605, SELECTIVE),
    Published(TITAN, "llama-3.1-8b", Full(), A100, 64, 1, 8192, False, 64, 0, 2904, SELECTIVE),
    Published(TITAN, "llama-3.1-70b", Full(), A100, 64, 1, 8192, True, 64, 0, 331),
    *(
        Published(UNSLOTH, model, technique, H100, 1, 1, 2048, True, 1, memory * 1e9, 0, LEAST)
        for model, technique, memory in (
            ("llama-3.1-8b", QLORA, 6),
            ("qwen3-32b", QLORA, 26),
            ("llama-3.1-70b", QLORA, 41),
            ("llama-3.1-8b", LORA, 22),
            ("qwen3-32b", LORA, 76),
            ("llama-3.1-70b", LORA, 164),
        )
    ),
    *(
        Published(
            FACTORY, "llama-2-7b", Lora(rank=8, quantize="nf4"), A100_40GB, 1, 1, tokens, True, 1, memory * 1e9, speed
        )
        for tokens, memory, speed in (
            (1024, 6, 2295),
            (4096, 9, 2926),
            (16384, 19, 3542),
            (32768, 32, 2216),
        )
    ),
)


TABLE = ("qwen3-1.7b", "llama-3.1-8b", "qwen3-32b", "llama-3.1-70b")


def main() -> None:
    """Print the tables of docs/scale.md."""
    sizes = {name: paper_size(str(CONFIGS / name)) for name in sorted({*TABLE, *(one.model for one in PUBLISHED)})}
    print("| model | GPUs | full | LoRA | QLoRA |\n|---|---|---|---|---|")
    for name in TABLE:
        print("\n".join(planned(name, sizes[name])))
    print("\n| source | run | memory per GPU, published | ours | error | tokens/s per GPU, published | ours | error |")
    print("|---|---|---|---|---|---|---|---|")
    for one in PUBLISHED:
        print(beside(one, sizes[one.model]))
    theirs, ours = slopes(sizes["llama-3.1-8b"])
    print(f"\nmemory per token of 8B with recompute: {theirs / 1e3:.0f} kB by {GUIDE}, ours {ours / 1e3:.0f} kB")


def planned(name: str, size: NetworkSize) -> list[str]:
    """Return the rows of one model: 128 rows of 2,048 tokens in each step, 4,096 tokens per pass, on H100."""
    lines = []
    for gpus in (1, 8, 64):
        cells = []
        for technique in (Full(), LORA, QLORA):
            rows = PaperRows(12_800, 2048.0, 2048)
            way = paper_estimate(recipe(batch_rows=128), technique, size, rows, gpu=H100, gpus=gpus)
            notes = [f"shards {way.shards}"] * (way.shards > 1) + ["recompute"] * way.recompute
            end = f"{way.tokens_per_second:,.0f} tokens/s" if way.fits else f"does not fit: {way.change}"
            cells.append(", ".join([f"{way.memory.expected / 1e9:,.0f} GB", *notes, end]))
        lines.append(f"| {name} | {gpus} | {' | '.join(cells)} |")
    return lines


def beside(one: Published, size: NetworkSize) -> str:
    """Return the row of a published run with our figures beside it."""
    ours = estimated(one, size)
    technique = "full" if isinstance(one.technique, Full) else "QLoRA" if one.technique.quantize else "LoRA"
    name = next(name for name, gpu in GPU_NAMES.items() if gpu == one.gpu)
    run = f"{one.model}, {technique}, {one.gpus} x {name}, {one.rows} x {one.tokens}"
    memory = compared(one.memory / 1e9, ours[0] / 1e9, "{:.1f} GB")
    recompute = ", recompute" * one.recompute
    return f"| {one.source} | {run}{recompute} | {memory} | {compared(one.speed, ours[1], '{:,.0f}')} |"


def slopes(size: NetworkSize) -> tuple[float, float]:
    """Return the published and our bytes per token of 8B with recompute: differences, without weights and context."""
    run = Published(GUIDE, "llama-3.1-8b", Full(), H200, 8, 1, 8192, True, 8)
    short, long = (estimated(replace(run, tokens=tokens), size)[0] for tokens in (8192, 262144))
    return (124.5 - 16.3) * GIB / (262144 - 8192), (long - short) / (262144 - 8192)


def recipe(**schedule: int) -> Recipe:
    """Return a recipe for texts with these keys of `schedule`."""
    objective = Domain().model_dump()
    return Recipe.model_validate({"data": {"train": "rows.jsonl"}, "objective": objective, "schedule": schedule})


def estimated(one: Published, size: NetworkSize) -> tuple[float, float]:
    """Return bytes and tokens per second of one GPU by our formula."""
    settings = recipe(batch_rows=one.rows * one.gpus, batch_tokens=one.rows * one.tokens)
    rows = PaperRows(one.rows * one.gpus * 100, float(one.tokens), one.tokens)
    ways = paper_ways(settings, one.technique, size, rows, gpu=one.gpu, gpus=one.gpus)
    (way,) = [way for way in ways if (way.shards, way.recompute) == (one.shards, one.recompute)]
    return way.memory.expected, way.tokens_per_second


def compared(theirs: float, ours: float, form: str) -> str:
    """Return both figures and the error of ours."""
    if not theirs:
        return f"- | {form.format(ours)} | -"
    return f"{form.format(theirs)} | {form.format(ours)} | {ours / theirs - 1:+.0%}"


if __name__ == "__main__":
    main()
