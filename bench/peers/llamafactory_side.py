"""`python -m bench.peers.llamafactory_side JOB SIDE OUT`: LLaMA-Factory's `run_exp` on the rows of a job.

The job's tokens come as LLaMA-Factory's `tokenized_path`, its starting adapter as `adapter_name_or_path`, its order by
`disable_shuffling`. Not its defaults: no gradient checkpointing, logging, checkpoints or pinned memory.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback

from bench.peers.job import Job, Meter, numbers_of, started, timed


class Clock(TrainerCallback):
    """Hands the trainer's steps to the meter and keeps what `finish` needs of it."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.counts: dict[str, int] = {}
        self.optimizer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        inner = known["model"].get_base_model()
        self.meter.watch(inner.base_model)
        self.counts = numbers_of(inner, inner.get_output_embeddings())
        self.optimizer = known["optimizer"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        if state.global_step == 0:
            self.meter.begin(known["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self.meter.step_ended()


def settings(job: Job, out: Path) -> dict[str, Any]:
    """What a recipe of LLaMA-Factory says."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": job.model,
        "adapter_name_or_path": str(Path(job.folder) / "adapter"),
        "finetuning_type": "lora",
        "tokenized_path": str(out / "rows"),
        "dataset": "rows",  # asked for, and not read where the tokens are given
        "template": "empty",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "output_dir": str(out / "tuned"),
        "per_device_train_batch_size": len(job.windows[0]),
        "max_steps": len(job.windows),
        "learning_rate": job.rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": job.beta2,
        "weight_decay": job.weight_decay,
        "max_grad_norm": job.clip,
        "seed": job.seed,
        "bf16": job.half,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "overwrite_output_dir": True,
    }


def main() -> None:
    # LLaMA-Factory imports torchaudio for rows with sound, and the wheel that it asks for does not load beside a torch
    # for CPUs (libc10_cuda.so is missing). Texts do not need it.
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    from llamafactory.train.tuner import run_exp

    del sys.modules["torchaudio"]
    job, _, out = started()
    rows = job.rows("rows")
    chosen = []
    for row in (rows[i] for window in job.windows for i in window):
        labels = [token if learn else -100 for token, learn in zip(row["input_ids"], row["learned"], strict=True)]
        chosen.append({"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"]), "labels": labels})
    DatasetDict({"train": Dataset.from_list(chosen)}).save_to_disk(str(out / "rows"))
    meter = Meter(job)
    clock = Clock(meter)
    run_exp(settings(job, out), callbacks=[clock])
    known = {module.__name__: module.__version__ for module in (torch, transformers, peft)}
    meter.finish(
        out,
        clock.optimizer,
        timed(job, rows),
        numbers=clock.counts,
        head_positions=meter.positions,
        recomputed=False,
        versions={"llamafactory": version("llamafactory"), **known},
    )


if __name__ == "__main__":
    main()
