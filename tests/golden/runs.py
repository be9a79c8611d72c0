"""The tiny runs whose numbers are frozen: rows, settings and the parts of a run folder that are compared.

Everything here goes through the public surface (`tunesmith.tune`, files of a run folder), so that no renaming of
internal modules touches it.
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import tunesmith as ts
from tests.golden.frozen import differences, load, record, recording
from tests.tiny import DECODERS, tiny_decoder, tiny_encoder

Rows = Sequence[dict[str, Any]]
PAGE_WORDS = ("server", "table", "index", "vacuum", "query", "planner")
REWARD = """
def short(attempt):
    return max(0.0, 1 - len(attempt.text) / 20)
"""

# Fields of report.json that are frozen, each as a whole after `numbers` dropped prose, times and sizes in bytes.
REPORT_FIELDS = (
    "family",
    "objective",
    "technique",
    "task",
    "tasks",
    "baselines",
    "controls",
    "retention",
    "calibration",
    "style",
    "judgement",
    "pursuit",
    "together",
    "training",
    "data",
)
DROPPED = frozenset({"sentence", "notes", "detail", "seconds", "tokens_per_second", "peak_bytes", "crc32"})


def reviews(count: int = 40) -> Rows:
    """Sentences with one of two labels."""
    words = {"positive": ("good", "great", "lovely"), "negative": ("bad", "awful", "broken")}
    labels = ("positive", "negative")
    return [{"text": f"{words[labels[i % 2]][i // 2 % 3]} {i}", "label": labels[i % 2]} for i in range(count)]


def topics(count: int = 40) -> Rows:
    """Sentences with any number of labels."""
    marks = (("screen",), ("battery",), ("screen", "battery"), ())
    return [{"text": f"phone {i}: {' and '.join(marks[i % 4]) or 'fine'}", "label": marks[i % 4]} for i in range(count)]


def answers(count: int = 40) -> Rows:
    """Prompts with one answer each."""
    return [{"prompt": f"number {i}", "answer": f"it is {i % 3}"} for i in range(count)]


def conversations(count: int = 30) -> Rows:
    """Chats of two questions and two answers."""
    roles = ("user", "assistant", "user", "assistant")
    texts = [(f"hello {n}", "hi", "which number", f"it is {n}") for n in range(count)]
    return [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]}
        for said in texts
    ]


def pairs(count: int = 40) -> Rows:
    """Prompts with a preferred and a rejected answer."""
    return [{"prompt": f"number {i}", "chosen": f"it is good, {i}", "rejected": f"bad {i % 5}"} for i in range(count)]


def thumbs(count: int = 40) -> Rows:
    """Answers that are good or bad by themselves."""
    words = ("it is good", "bad")
    return [{"prompt": f"number {i}", "completion": f"{words[i % 2]} {i}", "label": i % 2 == 0} for i in range(count)]


def pages(count: int = 24) -> Rows:
    """Texts in which the same few words come again, in any order."""
    chance = random.Random(0)
    texts = [" ".join(chance.choice(PAGE_WORDS) for _ in range(14)) for _ in range(count)]
    return [{"id": i, "text": f"{text} {i}.", "doc": f"d{i}"} for i, text in enumerate(texts)]


LORA = {"kind": "lora", "rank": 4}


def _run(
    model: str, rows: Callable[[], Rows], objective: Any, technique: Any = LORA, *, rate: float = 0.02, **more: Any
) -> dict[str, Any]:
    schedule = {"learning_rate": rate, "epochs": 2, "batch_rows": 8, "save_steps": 0, "probe": False}
    schedule |= more.pop("schedule", {})
    settings = {"objective": objective, "technique": technique, "schedule": schedule, **more}
    return {"model": model, "rows": rows, "settings": settings}


SHORT_ANSWERS = {"kind": "instruct", "max_new_tokens": 8}
RL = {"kind": "rl", "reward": "rules.py:short", "group": 4, "max_new_tokens": 6}
TASKS = {
    "mood": {"objective": {"kind": "classify", "instruction": "Good?"}, "data": {"train": "mood.jsonl"}},
    "count": {"objective": SHORT_ANSWERS, "data": {"train": "count.jsonl"}},
    "liked": {"objective": {"kind": "preference", "loss": "kto"}, "data": {"train": "liked.jsonl"}},
}
ON_PAGES = {"max_tokens": 48, "group": "doc", "test": 0.3}

# Name of the run -> tiny model, rows and settings of the recipe: one per objective and family, for every landing ...
QUICK: dict[str, dict[str, Any]] = {
    "domain-lora-encoder": _run("bert", pages, "domain", data=ON_PAGES),
    "classify-words-lora-decoder": _run("llama", reviews, "classify"),
    "preference-dpo-lora-decoder": _run("llama", pairs, "preference"),
    "instruct-lora-decoder": _run("llama", answers, SHORT_ANSWERS),
    "domain-lora-decoder": _run("llama", pages, "domain", data=ON_PAGES, replay={"share": 0.2}),
    "rl-grpo-lora-decoder": _run("llama", answers, RL, schedule={"epochs": 1}),
    "classify-linear-full-encoder": _run("bert", reviews, "classify", "full", rate=0.01),
    "multitask-lora-decoder": _run(
        "llama",
        answers,
        {"kind": "multitask", "tasks": TASKS},
        schedule={"epochs": 1, "batch_rows": 12},
        data={"max_tokens": 96},
    ),
}
# ... and the other losses, algorithms and techniques.
OTHERS: dict[str, dict[str, Any]] = {
    "classify-linear-lora-encoder": _run("bert", reviews, "classify", schedule={"save_steps": "auto", "probe": True}),
    "classify-linear-ptuning-encoder": _run("bert", reviews, "classify", {"kind": "p-tuning", "tokens": 6}),
    "classify-multi-dora-encoder": _run("bert", topics, {"kind": "classify", "multi": True}, {**LORA, "dora": True}),
    "classify-linear-lora-decoder": _run("llama", reviews, {"kind": "classify", "output": "linear"}),
    "classify-ia3-decoder": _run("llama", reviews, "classify", "ia3", rate=0.1),
    "classify-qlora-decoder": _run("llama", reviews, "classify", "qlora"),
    "classify-controls-decoder": _run("llama", reviews, "classify", controls=True, schedule={"epochs": 1}),
    "instruct-full-decoder": _run("llama", answers, SHORT_ANSWERS, "full", rate=0.01),
    "instruct-prefix-decoder": _run("llama", answers, SHORT_ANSWERS, {"kind": "prefix", "tokens": 6}, rate=0.1),
    "instruct-prompt-decoder": _run("llama", answers, SHORT_ANSWERS, {"kind": "prompt", "tokens": 6}, rate=0.1),
    "instruct-style-gpt2": _run("gpt2", answers, SHORT_ANSWERS, style={"short": {"max_words": 4}}),
    "instruct-thinking-qwen3": _run("qwen3", answers, SHORT_ANSWERS, {**LORA, "rslora": True}),
    "instruct-several-answers-gemma3": _run("gemma3", conversations, SHORT_ANSWERS),
    "classify-words-lora-gemma": _run("gemma", reviews, "classify"),
    "classify-linear-full-modernbert": _run("modernbert", reviews, {"kind": "classify", "metric": "macro_f1"}, "full"),
    "domain-full-distilbert": _run("distilbert", pages, "domain", "full", rate=0.01, data=ON_PAGES),
    "preference-ipo-nll-decoder": _run("llama", pairs, {"kind": "preference", "loss": "ipo", "nll": 0.2}),
    "preference-kto-lora-decoder": _run("llama", thumbs, {"kind": "preference", "loss": "kto"}),
    "preference-orpo-lora-decoder": _run("llama", pairs, {"kind": "preference", "loss": "orpo"}),
    "preference-simpo-lora-decoder": _run("llama", pairs, {"kind": "preference", "loss": "simpo"}),
    "reward-lora-decoder": _run("llama", pairs, "reward"),
    "reward-lora-encoder": _run("bert", pairs, "reward"),
    "rl-ppo-lora-decoder": _run("llama", answers, {**RL, "algorithm": "ppo"}, schedule={"epochs": 1}),
}
RUNS = QUICK | OTHERS


def write_jsonl(path: Path, rows: Rows) -> Path:
    """Write the rows as JSON lines and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tune(name: str, model: Path, folder: Path, **more: Any) -> Path:
    """Tune the run called `name` in the working folder and return its run folder."""
    run = RUNS[name]
    write_jsonl(folder / "rows.jsonl", run["rows"]())
    for task, rows in {"mood": reviews, "count": answers, "liked": pairs}.items():
        write_jsonl(folder / f"{task}.jsonl", rows())
    (folder / "rules.py").write_text(REWARD, encoding="utf-8")
    recipe: dict[str, Any] = {"model": str(model), **run["settings"]}
    recipe["machine"] = {"device": "cpu", "dtype": "float32", "threads": 1}
    if "tasks" not in (recipe["objective"] if isinstance(recipe["objective"], dict) else {}):
        recipe["data"] = {"train": "rows.jsonl", **recipe.get("data", {})}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return Path(ts.tune(path, out=folder / "run", offline=True, **more).folder)


def check_run(name: str, folder: Path) -> None:
    """Tune the run called `name` in the working folder and compare its numbers with the frozen ones."""
    kind = RUNS[name]["model"]
    model = (tiny_decoder if kind in DECODERS else tiny_encoder)(folder / "model", kind)
    found: dict[str, Any] = {"signature": signature(), **frozen(tune(name, model, folder))}
    if recording():
        record("losses", name, found)
        return
    expected = load("losses", name)
    if expected["signature"] == found["signature"]:
        faults = differences(expected, found)
    else:
        faults = differences(expected["journal"], found["journal"], relative=1e-3)
    assert not faults, "\n".join(faults[:30])


def frozen(run: Path) -> dict[str, Any]:
    """Return the numbers of a finished run that must not change: its journal and its report."""
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return {
        "journal": [numbers(json.loads(line)) for line in lines],
        "report": {name: numbers(report[name]) for name in REPORT_FIELDS},
    }


def numbers(value: Any) -> Any:
    """Return the value without prose, times and memory."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items() if key not in DROPPED}
    if isinstance(value, str):
        return value.split(": ", 1)[0]  # a verdict's word without its sentence
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return value


def signature() -> dict[str, str]:
    """Return what decides the last bits of a float on this machine."""
    return {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
    }


def _processor() -> str:
    """Return the name, family, model and stepping of the processor: virtual machines give several models one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    first = dict(reversed([tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line]))
    known = [first[key] for key in ("model name", "cpu family", "model", "stepping") if key in first]
    return ", ".join(known) or platform.machine()
