"""`python -m bench.growth`: how the seconds of a run grow with rows, length and model size, drawn in bench/growth.svg.

Both sides of bench/verdict.py, one run a point, with 120 held-out movie reviews and an empty cache; a point that lies
on several axes is measured once. Models other than SmolLM2-135M have its shape in another width and depth, and random
weights: only their seconds mean something.
`--plot` only draws what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bench.verdict import MODEL, ROOT, SIDES, Case, ours, parts_of, theirs, write_job
from tunesmith.models.loading.bundled_models import fetch
from tunesmith.models.loading.device import choose_machine

WORK = ROOT / "bench" / ".verdict" / "growth"
HELD, ROWS = 120, 96
# A sentence has some 25 tokens. Sizes are widths here; the plot shows parameters.
AXES = {
    "rows": ("training rows", {rows: Case("", rows, held=HELD) for rows in (48, 96, 192, 384)}),
    "length": ("sentences of a text", {n: Case("", ROWS, held=HELD, sentences=n) for n in (1, 4, 16)}),
    "size": ("parameters, millions", {width: Case("", ROWS, held=HELD) for width in (192, 384, 576, 768)}),
}


COLOURS = {"ours": "#1f6f8b", "theirs": "#b5532a"}


def model_of(width: int) -> str:
    """A folder with random weights in SmolLM2's shape, 64 numbers a head; at its own width the model itself."""
    if width == 576:
        return MODEL
    folder = WORK / f"width-{width}"
    if not (folder / "config.json").exists():
        heads = width // 64
        config = AutoConfig.from_pretrained(fetch(MODEL))
        config.update(
            {"hidden_size": width, "intermediate_size": width * 8 // 3, "num_hidden_layers": width * 30 // 576}
        )
        config.update({"num_attention_heads": heads, "num_key_value_heads": math.gcd(heads, 3)})
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(fetch(MODEL)).save_pretrained(folder)
    return str(folder)


def folder_of(axis: str, x: int, *, tiny: bool) -> Path:
    return WORK / f"{'tiny-' * tiny}{axis}-{x}"


def case_of(axis: str, x: int) -> Case:
    case = AXES[axis][1][x]
    return replace(case, model=model_of(x)) if axis == "size" else case


def known(case: Case, side: str, *, tiny: bool) -> dict[str, Any] | None:
    """What a side took for the same case on any axis; None if it is not measured yet."""
    for axis, (_, cases) in AXES.items():
        for x in cases:
            file = folder_of(axis, x, tiny=tiny) / f"{side}.json"
            if file.exists() and case_of(axis, x) == case:
                found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return found
    return None


def measure(axis: str, *, threads: int, tiny: bool) -> None:
    """Both sides of each point of one axis that is not measured yet."""
    machine = choose_machine(threads=threads)
    fixed = {"dtype": machine.dtype, "threads": machine.threads}
    for x in AXES[axis][1]:
        case, folder, place = case_of(axis, x), folder_of(axis, x, tiny=tiny), float(x)
        if axis == "size":
            weights = (fetch(MODEL) if case.model == MODEL else Path(case.model)) / "model.safetensors"
            place = weights.stat().st_size / 4e6  # in float32
        write_job(case, parts_of(case, tiny=tiny), folder, machine=fixed)
        for side in SIDES:
            if not (folder / f"{side}.json").exists():
                found = known(case, side, tiny=tiny)
                found = found or (ours(folder, folder / "cache") if side == "ours" else theirs(folder))
                (folder / f"{side}.json").write_text(json.dumps({**found, "x": place}), encoding="utf-8")
                print(f"{axis} {x} {side}: {found['seconds']:.0f} s, training {found['training']:.0f} s", flush=True)


def draw(path: Path, *, tiny: bool) -> None:
    """The plot of every axis: whole run and training, both sides, both scales logarithmic."""
    points_of = {
        (axis, side): sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda one: one["x"])
        for axis in AXES
        for side in SIDES
        if (files := list(WORK.glob(f"{'tiny-' * tiny}{axis}-*/{side}.json")))
    }
    axes = [axis for axis in AXES if any(axis == one for one, _ in points_of)]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for place, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        for side, colour in COLOURS.items():
            for key, style, what in (("seconds", "-", "whole run"), ("training", "--", "training")):
                points = points_of.get((axis, side), [])
                x, y = [one["x"] for one in points], [one[key] for one in points]
                place.plot(x, y, style, marker="o", color=colour, label=f"{SIDES[side].strip('*')}, {what}")
        place.set(xscale="log", yscale="log", xlabel=AXES[axis][0], ylabel="seconds" if axis == axes[0] else "")
        ticks = [one["x"] for one in points_of.get((axis, "ours"), [])]
        place.set_xticks(ticks, [f"{x:.0f}" for x in ticks])
        place.xaxis.set_minor_locator(NullLocator())
        place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        place.yaxis.set_major_formatter("{x:g}")
        place.yaxis.set_minor_locator(NullLocator())
        place.grid(alpha=0.3)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=4, handlelength=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure the axes that are named, and draw all."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"{', '.join(AXES)}; none: all")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--tiny", action="store_true", help="24 rows: does it run? draws in the folder of its runs")
    parser.add_argument("--plot", action="store_true", help="only draw what is measured")
    asked = parser.parse_args()
    if unknown := set(asked.axes) - set(AXES):
        parser.error(f"no axis {min(unknown)}; there are {', '.join(AXES)}")
    for axis in () if asked.plot else asked.axes or AXES:
        measure(axis, threads=asked.threads, tiny=asked.tiny)
    draw((WORK if asked.tiny else ROOT / "bench") / "growth.svg", tiny=asked.tiny)


if __name__ == "__main__":
    main()
