"""bench/RESULTS.md from the folders of finished races."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.job import Job
from bench.race.jobs import Race
from bench.race.run import OURS, OWN

NAMES = {
    "start": "before the first step",
    "tunesmith": "**Tunesmith**",
    "apart": "Tunesmith, nothing shared",
    "int8": "Tunesmith, frozen products in int8",
    "trl_best": "TRL SFTTrainer, best settings here",
    "trl": "TRL SFTTrainer, defaults",
    "plain": "transformers + PEFT, plain loop",
    "head": "transformers, classification head",
    "litgpt": "LitGPT, its LoRA",
    "llamafactory": "LLaMA-Factory, best settings here",
}
# Times the tokens/s of the best peer, and times its memory, that Tunesmith is held to.
FLOORS = {
    "reviews": 4.0,
    "synopsis": 3.5,
    "domain": 1.5,
    "encoder": 1.3,
    "full": 1.5,
    "long": 1.5,
    "qlora": 1.5,
}
# By how much of itself a held-out loss may differ and still be called equal: bf16's rounding alone moves it a percent.
EQUAL = {"float32": 0.001, "bfloat16": 0.03}
MEMORY_FLOOR, SCORING_FLOOR = 0.5, 2.5
HOW = """\
Each side runs in a separate process per round. Rounds alternate between the sides, and a value is the median of the
rounds. All sides have the same model, rows, order of rows, steps, learning rate (constant), betas, weight decay,
gradient clipping and precision; with LoRA also the same initial weights. A process warms up with one step and is timed
over the next. Rows of a step have similar lengths on all sides, as Tunesmith's sampler makes them, so that no peer
spends time on padding that it could avoid. All sides make the same number of steps. If they learn the same tokens, they
end at the same held-out loss, so the ratio of their rates is the ratio of the times to that loss. A floor of speed is
held only at an equal or better held-out loss (within 0.1 %; in bf16, whose rounding changes it, 3 %).

- **tokens/s** counts all tokens of each row, whatever a side computes: the same number for all sides on the same rows.
- **GEMM** is the arithmetic per second as a share of the rate of matrix products, measured before each round.
  Arithmetic: 2 p L (2 + t + c) + 2 p A (3 + c) + 2 h H (2 + t) for p positions through the network (padding included),
  L weights in its linear layers, A in adapters, h positions through a head with H weights; t = 1 if all weights are
  trained, c = 1 if the forward pass is recomputed for the backward pass. Attention's own products are not included.
- **memory** is the peak resident memory from the first step to the last, minus that before the first step (all weights
  loaded) and minus the optimizer state.
- **held-out loss** is that of the saved model of each side, evaluated by one script (bench/race/judge.py) in fp32, per
  learned token; for heads per row, not comparable with label words. Heads differ: ours reads the mean of the states,
  starts from a quarter of a linear probe of the base on the rows of the steps and has its own learning rate, as in
  `tune` (fitting takes some seconds, before the first step); that of transformers reads the pooler or the last token.
- **TRL settings** that differ from its defaults on both sides are those that must be equal (learning rate, constant
  schedule, betas, decay, clipping, loss on the completion only, batch), `use_cpu`, rows in the order of the job
  (default: random, which pads), `bf16` as in the race (default: on), no trackers or checkpoints. Best settings also: no
  gradient checkpointing (default: on), no logging, no pinned memory; in bf16 a frozen base in bf16. Not raced: Liger,
  whose Triton kernels need a GPU; `padding_free` and packing, which TRL supports with FlashAttention only;
  `torch_compile`, as the network of the plain loop had not compiled after 200 s (NOTES.md).
- **LitGPT** runs the step of its `finetune_lora` with a window as batch (default: one row); in bf16 all of its weights
  are in bf16, its default. **LLaMA-Factory** runs its `sft` without gradient checkpointing (default: on). Both start
  from the same LoRA weights. llama.cpp's finetune trains all weights in fp32 and no adapter: see NOTES.md.
- **fp32 products**: Tunesmith lets oneDNN multiply where it is faster and as exact (`machine.products`); peers have
  torch's default library. [NOTES.md](NOTES.md) ("The race again") has the ratios with the default on both sides.
- **classification head**: the text alone, without instruction, so it has fewer tokens: compare rows/s. The head of a
  decoder is trained with LoRA of the same rank, that of an encoder with all weights.
"""


@dataclass(frozen=True)
class Line:
    """What one side came to over its rounds."""

    side: str
    tokens: float  # per second
    rows: float  # per second
    spread: float  # (max - min) / median of the rounds
    gemm: float
    memory: float  # MB
    scoring: float
    judged: dict[str, float]


def flops(found: dict[str, Any], *, trained: bool) -> float:
    """Arithmetic of the timed steps, by the formula of the page."""
    numbers, again, all_weights = found["numbers"], float(found["recomputed"]), float(trained)
    inner = found["positions"] * numbers["linear"] * (2 + all_weights + again)
    beside = found["positions"] * numbers["adapter"] * (3 + again)
    return 2.0 * (inner + beside + found["head_positions"] * numbers["head"] * (2 + all_weights))


def lines_of(race: Race, folder: Path) -> list[Line]:
    """One line for each side."""
    job, judged = Job.read(folder), _read(folder / "judged.json")
    rounds = sorted(folder.glob("round-*"))
    speeds = [_read(one / "machine.json")["gemm_gflops"][job.dtype] * 1e9 for one in rounds]
    made = []
    for side in race.sides:
        found = [_read(one / side / "result.json") for one in rounds]
        seconds = [sum(one["seconds"]) for one in found]
        middle = statistics.median(seconds)
        work = flops(found[0], trained=job.technique["kind"] == "full")
        made.append(
            Line(
                side,
                found[0]["tokens"] / middle,
                found[0]["rows"] / middle,
                (max(seconds) - min(seconds)) / middle,
                work / middle / statistics.median(speeds),
                statistics.median(one["memory_mb"] for one in found),
                statistics.median(one.get("scoring", 0.0) for one in found),
                judged[side],
            )
        )
    return made


def section(race: Race, folder: Path) -> list[str]:
    """The heading, the table and the verdict of one race."""
    job, lines = Job.read(folder), lines_of(race, folder)
    rounds = len(list(folder.glob("round-*")))
    rows = len(job.windows[0])
    about = f"{race.about}; {Path(job.model).name}, {rows} rows per step, {len(job.windows) - 1} timed"
    said = [f"## {race.name}, {'bf16' if job.half else 'fp32'}", "", f"{about}, {rounds} rounds.", ""]
    said += ["| side | tokens/s | rows/s | spread | GEMM | memory, MB | held-out loss | accuracy |"]
    said += ["|---|---|---|---|---|---|---|---|"]
    said += [f"| {NAMES['start']} | | | | | | {_judged(_read(folder / 'judged.json')['start'])} |"]
    said += [
        f"| {NAMES[one.side]} | {one.tokens:.0f} | {one.rows:.2f} | {one.spread:.0%} | {one.gemm:.0%} "
        f"| {one.memory:.0f} | {_judged(one.judged)} |"
        for one in lines
    ]
    return [*said, "", *_verdict(race, lines, equal=EQUAL[job.dtype]), ""]


def _verdict(race: Race, lines: Sequence[Line], *, equal: float) -> list[str]:
    """Ours against the fastest peer on the same rows, and against the floors."""
    ours = next(one for one in lines if one.side == "tunesmith")
    # A head on a decoder reads the text alone, fewer tokens; on an encoder the same rows as ours.
    same = ("trl", "trl_best", "plain", "litgpt", "llamafactory", *(("head",) if race.name == "encoder" else ()))
    best = max((one for one in lines if one.side in same), key=lambda one: one.tokens)
    speed, scoring = ours.tokens / best.tokens, ours.scoring / ours.tokens
    memory = ours.memory / best.memory if best.memory > 0 else float("inf")
    floor, as_good = FLOORS[race.name], ours.judged["loss"] <= best.judged["loss"] * (1 + equal)
    return [
        f"Against the fastest peer ({NAMES[best.side]}): **{speed:.2f} times** the tokens/s at "
        f"{'an equal or better' if as_good else 'a worse'} held-out loss (floor {floor}: "
        f"{_held(as_good and speed >= floor)}), {memory:.2f} of its memory (floor {MEMORY_FLOOR}: "
        f"{_held(memory <= MEMORY_FLOOR)}). Scoring without gradient: {ours.scoring:.0f} tokens/s, "
        f"{scoring:.2f} times the training rate (floor {SCORING_FLOOR}: {_held(scoring >= SCORING_FLOOR)})."
    ]


def _held(is_held: bool) -> str:
    return "held" if is_held else "missed"


def _judged(found: dict[str, float]) -> str:
    accuracy = f"{found['accuracy']:.1%}" if "accuracy" in found else ""
    return f"{found['loss']:.5f} | {accuracy}"


def _read(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return known


def write_page(path: Path, races: Sequence[tuple[Race, Path]], command: str) -> None:
    """The whole page."""
    race, folder = races[0]
    ours = _read(folder / "round-1" / "tunesmith" / "result.json")["versions"]
    theirs: dict[str, dict[str, str]] = {}  # by environment
    for one, place in races:
        for side in one.sides:
            if side not in OURS:
                known = _read(place / "round-1" / side / "result.json")["versions"]
                theirs.setdefault(side if side in OWN else "peers", {}).update(known)
    machines = [_read(one / "machine.json") for _, place in races for one in sorted(place.glob("round-*"))]
    measured = {kind: [one["gemm_gflops"][kind] for one in machines] for kind in ("float32", "bfloat16")}
    speeds = ", ".join(f"{kind} {min(found):.0f} to {max(found):.0f}" for kind, found in measured.items())
    head = [
        "# Results",
        "",
        f"Made by `{command}` on {cpu()}, {machines[0]['threads']} threads; matrix products before each round: "
        f"{speeds} GFLOP/s.",
        f"Tunesmith on {_versions(ours)}; peers, in separate environments, on "
        f"{'; '.join(map(_versions, theirs.values()))}.",
        "",
        HOW,
    ]
    body = [line for one, place in races for line in section(one, place)]
    path.write_text("\n".join([*head, *body]).rstrip() + "\n", encoding="utf-8")


def _versions(known: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in known.items())


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
