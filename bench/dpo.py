"""`python -m bench.dpo SIDE`: pairs a second of DPO.

SIDE is `tunesmith` or `trl` (DPOTrainer at its best: no gradient checkpointing, no logging, no checkpoints). Both:
SmolLM2-135M, LoRA rank 16, four pairs a step, the same ones of g1_pandalm_human (../shared/data), beta 0.1,
bf16 where `--half`. The first step warms up, `--steps` more are timed. Theirs asks the untuned model in each step, ours
of every pair before the first one: `pairs_per_second_whole` begins there, and has the first step and all else in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.preference import read, write
from bench.rl import TRL_AT_ITS_BEST
from tunesmith.events import Event, StepFinished
from tunesmith.training.callbacks import Callbacks

PAIRS, RANK, RATE, BETA, LONGEST = 4, 16, 1e-4, 0.1, 512


def rows(steps: int) -> list[dict[str, str]]:
    """The pairs of so many steps and of one before them."""
    some = read("g1_pandalm_human")[: PAIRS * (steps + 1)]
    return [{part: row[part] for part in ("prompt", "chosen", "rejected")} for row in some]


def ours(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Pairs a second of the timed steps, and of all with the untuned model asked."""
    from tunesmith.config import make_recipe
    from tunesmith.training.prepare import prepare
    from tunesmith.training.train import train

    pairs = rows(asked.steps)
    # A recipe has test rows; none are asked here.
    held_out = {"prompt": "Say a word.", "chosen": "A word.", "rejected": "No."}
    files = {"train": write(pairs, folder / "train.jsonl"), "test": write([held_out], folder / "test.jsonl")}
    raw: dict[str, Any] = {
        "model": "smollm2-135m",
        "data": {**files, "validation": 0, "max_tokens": LONGEST},
        "objective": {"kind": "preference", "beta": BETA, "nll": 0},
        "technique": {"kind": "lora", "rank": RANK},
        "schedule": {"batch_rows": PAIRS, "epochs": 1, "learning_rate": RATE, "probe": False},
        "machine": {"threads": asked.threads, "dtype": "bfloat16" if asked.half else "float32"},
    }
    prepared = prepare(make_recipe(raw, place="bench")[0], on_event=lambda event: None, offline=True)
    ends: list[float] = []

    def step(event: Event) -> None:
        if isinstance(event, StepFinished):
            ends.append(time.perf_counter())

    began = time.perf_counter()
    train(prepared, folder / "run", callbacks=Callbacks(step))
    whole = time.perf_counter() - began
    return {"pairs_per_second": rate(ends), "pairs_per_second_whole": len(prepared.train) / whole}


def theirs(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Pairs a second of TRL's timed steps."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from tunesmith.models.loading.bundled_models import fetch

    ends: list[float] = []

    class Clock(TrainerCallback):
        """When each step ended."""

        def on_step_end(self, *known: Any, **more: Any) -> None:
            ends.append(time.perf_counter())

    data = [
        {part: [{"role": "user" if part == "prompt" else "assistant", "content": row[part]}] for part in row}
        for row in rows(asked.steps)
    ]
    settings = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PAIRS,
        max_length=LONGEST,
        max_steps=asked.steps + 1,
        learning_rate=RATE,
        beta=BETA,
        bf16=asked.half,
        **TRL_AT_ITS_BEST,
    )
    trainer = DPOTrainer(
        model=str(fetch("smollm2-135m", offline=True)),
        args=settings,
        train_dataset=Dataset.from_list(data),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    return {"pairs_per_second": rate(ends)}


def rate(ends: Sequence[float]) -> float:
    """Pairs a second after the first step."""
    return PAIRS * (len(ends) - 1) / (ends[-1] - ends[0])


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.dpo", description=__doc__)
    parser.add_argument("side", choices=("tunesmith", "trl"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        found = (ours if asked.side == "tunesmith" else theirs)(asked, Path(folder))
    print(json.dumps(vars(asked) | found))


if __name__ == "__main__":
    main()
