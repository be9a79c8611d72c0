"""bench/SERVE.md from what was measured."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.serve.adapters import TITLE, section
from bench.serve.made import CHARACTERS, GUESS, LABELLED, MOOD, ROOT, SECOND_OF, TOKENS

NAMES = {
    "ours": "`tunesmith serve`, one LoRA",
    "half": "`tunesmith serve --dtype bfloat16`, one LoRA",
    "mixed": "`tunesmith serve`, 8 LoRA in one batch",
    "transformers": "`transformers serve`, merged",
    "batching": "`transformers serve --continuous-batching`, merged",
    "llamacpp": "llama.cpp's server (xllamacpp), GGUF f16",
    "gguf": "`tunesmith serve`, the same GGUF by xllamacpp",
}


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the whole report."""
    requests = ", ".join(f"{count} by {clients}" for clients, count in SECOND_OF.items())
    lines = [
        "# Answers per second, for one client and many",
        "",
        "Made by `python -m bench.serve`. smollm2-135m in float32, in 16 bits where named, with LoRA of rank 16;",
        f"one-line summaries of package descriptions, at most {CHARACTERS} characters each after one instruction,",
        f"at most {TOKENS} tokens per answer, greedy decoding, every prompt once. A client sends its next request when",
        f"the last is answered. Requests: {requests} clients.",
        "",
        f"Machine: {machine()}.",
        "",
        "| server | clients | answers/s | times plain | p50 s | p95 s |",
        "|---|---|---|---|---|---|",
    ]
    one = found["plain"]["1"]
    lines.append(
        f"| plain `generate`, one by one | 1 | {one['answers']:.2f} | 1.0 | {one['p50']:.2f} | {one['p95']:.2f} |"
    )
    for way, name in NAMES.items():
        for clients, told in found.get(way, {}).items():
            times = told["answers"] / one["answers"]
            lines.append(
                f"| {name} | {clients} | {told['answers']:.2f} | {times:.1f} | {told['p50']:.2f} | {told['p95']:.2f} |"
            )
    lines += ["", *verdict(found, one["answers"])]
    if "labels" in found:
        lines += ["", *of_labels(found["labels"])]
    return "\n".join([*lines, ""])


def write_page(found: dict[str, dict[str, Any]]) -> None:
    """The page of what was measured; a part that was not measured again stays as it stands there."""
    file = ROOT / "bench" / "SERVE.md"
    race, mark, memory = file.read_text(encoding="utf-8").partition(TITLE)
    memory = mark + memory
    if "plain" in found and "ours" in found:
        race = f"{page(found)}\n"
    if "adapters" in found:
        memory = "\n".join([*section(found["adapters"]), ""])
    file.write_text(f"{race.rstrip()}\n\n{memory}".rstrip() + "\n", encoding="utf-8")


def verdict(found: dict[str, dict[str, Any]], plain_rate: float) -> list[str]:
    """The floor, and the best for one client and for many."""
    best = {
        clients: max(
            (way for way in NAMES if clients in found.get(way, {})), key=lambda w: found[w][clients]["answers"]
        )
        for clients in SECOND_OF
        if any(clients in found.get(way, {}) for way in NAMES)
    }
    told = [f"Best at {clients} client{'s' * (clients != '1')}: {NAMES[way]}." for clients, way in best.items()]
    if {"half", "gguf", "llamacpp"} <= found.keys():
        told += [
            f"With 16 bits per weight and {clients} client{'s' * (clients != '1')}, `tunesmith serve` gives "
            f"{of_llamacpp(found, 'half', clients):.2f} times the answers/s of llama.cpp's server in bfloat16, "
            f"and {of_llamacpp(found, 'gguf', clients):.2f} times with the GGUF."
            for clients in SECOND_OF
        ]
    times = found["ours"]["32"]["answers"] / plain_rate
    held = "held" if times >= 3 else "missed"
    first = f"Floor of 3 times plain `generate` one by one, at 32 clients: {times:.1f} times, {held}."
    return [first, "", *told]


def of_llamacpp(found: dict[str, dict[str, Any]], way: str, clients: str) -> float:
    """Answers per second of a way in multiples of llama.cpp's own server."""
    return float(found[way][clients]["answers"] / found["llamacpp"][clients]["answers"])


def of_labels(found: dict[str, float]) -> list[str]:
    """Labels by scores against labels that are written."""
    lines = [
        f"Labels of shipped reviews ({MOOD!r}):",
        "",
        "| method | texts/s | times |",
        "|---|---|---|",
    ]
    ways = {
        "generate": f"plain `generate`, one by one, at most {GUESS} tokens",
        "one by one": "`/classify` by scores, one text per request, one client",
        "together": f"`/classify` by scores, {LABELLED} texts per request",
    }
    lines += [f"| {name} | {found[way]:.2f} | {found[way] / found['generate']:.1f} |" for way, name in ways.items()]
    times = found["together"] / found["generate"]
    return [
        *lines,
        "",
        f"Floor of 5 times generating the label: {times:.1f} times, {'held' if times >= 5 else 'missed'}.",
    ]


def machine() -> str:
    """Processor, and the versions that were raced."""
    names = ("torch", "transformers", "peft", "xllamacpp", "fastapi", "uvicorn")
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    chip = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores of {chip}; " + ", ".join(f"{name} {version(name)}" for name in names)
