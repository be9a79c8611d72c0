"""`python -m bench.peers.trl_side JOB SIDE OUT`: TRL's SFTTrainer, as it comes (`trl`) or at its best (`trl_best`).

Both: the job's rate, betas, weight decay and steps, a constant rate, loss on the completion only (so that losses are
the same), rows as the job orders them, no trackers, no checkpoints, bf16 as the job says (TRL's default: on).
Rows of a step are alike in length on both, as with `train_sampling_strategy="group_by_length"`; with TRL's default
order, random, it would pad.
Best: no gradient checkpointing (TRL's default: on), no logging, no pinned memory; in bf16 the frozen base is kept in
bf16 instead of being cast at every product.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from bench.peers.job import Job, Meter, numbers_of, started, timed


class Clock(TrainerCallback):
    """Hands the trainer's steps to the meter."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        if state.global_step == 0:
            self.meter.begin(known["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self.meter.step_ended()


def settings(job: Job, out: Path, *, best: bool) -> SFTConfig:
    """The trainer's settings; what is not named is TRL's default."""
    better = {
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return SFTConfig(
        output_dir=str(out / "trainer"),
        per_device_train_batch_size=len(job.windows[0]),
        max_steps=len(job.windows),
        learning_rate=job.rate,
        lr_scheduler_type="constant",
        adam_beta2=job.beta2,
        weight_decay=job.weight_decay,
        max_grad_norm=job.clip,
        completion_only_loss=True,
        train_sampling_strategy="sequential",
        seed=job.seed,
        use_cpu=True,
        bf16=job.half,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **(better if best else {}),
    )


def network(job: Job, *, best: bool) -> Any:
    """The base with the starting adapter, or the base alone where all weights move."""
    frozen_half = best and job.half and job.technique["kind"] == "lora"
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16 if frozen_half else torch.float32)
    if job.technique["kind"] == "full":
        return base
    return PeftModel.from_pretrained(base, Path(job.folder) / "adapter", is_trainable=True)


def main() -> None:
    job, side, out = started()
    best = side == "trl_best"
    rows = job.rows("rows")
    order = itertools.chain.from_iterable(job.windows)
    chosen = [{"input_ids": rows[i]["input_ids"], "completion_mask": rows[i]["learned"]} for i in order]
    model, meter = network(job, best=best), Meter(job)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    meter.watch(inner.base_model)
    counts = numbers_of(inner, inner.get_output_embeddings())
    trainer = SFTTrainer(
        model=model,
        args=settings(job, out, best=best),
        train_dataset=Dataset.from_list(chosen),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[Clock(meter)],
    )
    trainer.train()
    trainer.model.save_pretrained(out / "tuned")
    own = timed(job, rows)
    meter.finish(
        out,
        trainer.optimizer,
        own,
        numbers=counts,
        head_positions=meter.positions - len(own),
        recomputed=trainer.args.gradient_checkpointing,
        versions={module.__name__: module.__version__ for module in (torch, transformers, peft, trl)},
    )


if __name__ == "__main__":
    main()
