"""The thinking of a tiny model under `drop` and `keep`: `python -m bench.thinking_tiny`, minutes on one core.

The real decoder takes an hour (`bench/thinking.py`). Here a random two-layer Qwen3 network learns to name the first of
two words in the order of the alphabet, after repeating them as thoughts. Then it is tuned on other rows of the same
kind that have the answer alone, without its thoughts (`drop`) and with its own (`keep`). The rows are made up; only
what becomes of the thinking is of interest, not the task.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import permutations
from pathlib import Path

from tests.tiny import tiny_decoder
from tunesmith.config import Recipe
from tunesmith.pipelines.tune.tune import Run, tune_recipe
from tunesmith.report.ledger_lines import COLUMNS, ledger_lines
from tunesmith.training.callbacks import Callbacks

WORDS = ["ant", "bat", "cat", "cow", "dog", "eel", "elk", "fly", "fox", "gnu", "hen", "owl", "pig", "rat"]
TEST, VALIDATION = 40, 6


def write(path: Path, pairs: list[tuple[str, str]], *, thinking: bool) -> Path:
    """Write one row per pair of words."""
    rows = [
        {"prompt": f"{a} {b}", "completion": min(a, b)} | ({"reasoning_content": f"{a} {b}"} if thinking else {})
        for a, b in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tune(name: str, model: Path, rows: Path, test: Path, *, thinking: str, epochs: int, rate: float) -> Run:
    """Tune a model and print its ledger."""
    recipe = Recipe.model_validate(
        {
            "model": str(model),
            "data": {"train": str(rows), "validation": VALIDATION, "test": str(test)},
            "objective": {
                "kind": "instruct",
                "metric": "exact_match",
                "thinking": thinking,
                "max_new_tokens": 8,
                "max_thinking_tokens": 24,
            },
            "technique": "full",
            "schedule": {"epochs": epochs, "learning_rate": rate, "probe": False, "patience": 1000},
            "retention": {"questions": 0, "texts": 2},
            "ledger": {"rows": TEST},
            "machine": {"threads": 1},
        }
    )
    run = tune_recipe(recipe, out=rows.parent / name, callbacks=Callbacks(), offline=True)
    print(f"\n{name}, {run.report.training.steps} steps, {run.report.speed.total_seconds:.0f} s")
    print("\n".join(note for note in run.report.data.notes if "thoughts" in note))
    assert run.report.thinking is not None
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for line in ledger_lines(run.report.thinking):
        print("| " + " | ".join(line.cells) + " |", flush=True)
    return run


def main() -> None:
    """Run `learn`, and `drop` and `keep` over its model."""
    parser = argparse.ArgumentParser(prog="python -m bench.thinking_tiny", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/thinking-tiny"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    pairs = list(permutations(WORDS, 2))
    random.Random(0).shuffle(pairs)
    test = write(out / "test.jsonl", pairs[:TEST], thinking=False)
    half = TEST + (len(pairs) - TEST) // 2
    taught = write(out / "taught.jsonl", pairs[TEST:half], thinking=True)
    plain = write(out / "plain.jsonl", pairs[half:], thinking=False)
    learn = tune(
        "learn", tiny_decoder(out / "model", "qwen3"), taught, test, thinking="learn", epochs=60, rate=3e-3
    ).folder
    for mode in ("drop", "keep"):
        tune(mode, learn, plain, test, thinking=mode, epochs=6, rate=1e-3)


if __name__ == "__main__":
    main()
