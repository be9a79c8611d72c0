"""`python -m bench.gpu.peers.trl_side JOB [--unsloth]`: TRL's SFTTrainer or DPOTrainer on a written job.

As its documentation recommends for speed on a GPU: bf16, packing or padding-free batches with flash attention, fused
AdamW. With `--unsloth`, the model comes from Unsloth's FastLanguageModel, which patches TRL. Rows are those of the job
in its order, one optimizer step per window. Not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from bench.gpu.job import Job

GPU = torch.cuda.is_available()
# All linear layers of the decoder, as ours.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Clock(TrainerCallback):
    """Seconds of every step, with the device waited for."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def mark(self) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        self.mark()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.mark()


class TokenizedDPO(DPOTrainer):
    """TRL's trainer, on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def opened(job: Job, *, unsloth: bool) -> Any:
    """The model: the base, in bf16 on a GPU, with a 4-bit base in qlora."""
    if unsloth:
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            job.model, max_seq_length=job.length, load_in_4bit=job.technique == "qlora", dtype=torch.bfloat16
        )
        if job.technique == "full":
            return model
        return FastLanguageModel.get_peft_model(
            model,
            r=job.rank,
            lora_alpha=2 * job.rank,
            target_modules=TARGETS,
            use_gradient_checkpointing="unsloth" if job.recompute else False,
        )
    options: dict[str, Any] = {"attn_implementation": "flash_attention_2"} if GPU else {}
    if job.technique == "qlora":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    full = job.technique == "full" or not GPU
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32 if full else torch.bfloat16, **options)


def settings(job: Job, out: Path) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(out),
        "max_steps": job.steps,
        "per_device_train_batch_size": job.rows_per_pass,
        "gradient_accumulation_steps": job.rows // job.rows_per_pass,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "adam_beta2": 0.99,
        "bf16": GPU,
        "use_cpu": not GPU,
        "optim": "adamw_torch_fused" if GPU else "adamw_torch",
        "gradient_checkpointing": job.recompute,
        "max_length": job.length,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "padding_free": GPU,
    }


def trainer_of(job: Job, rows: list[dict[str, list[int]]], model: Any, *, clock: Clock, out: Path) -> Any:
    """TRL's trainer over the job's rows, in order."""
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    adapted = job.technique == "full" or hasattr(model, "peft_config")
    lora = None if adapted else LoraConfig(r=job.rank, lora_alpha=2 * job.rank, target_modules=TARGETS)
    common: dict[str, Any] = {"model": model, "processing_class": tokenizer, "peft_config": lora, "callbacks": [clock]}
    if job.kind == "dpo":
        data = Dataset.from_list(
            [{"prompt_ids": r["prompt"], "chosen_ids": r["answer"], "rejected_ids": r["rejected"]} for r in rows]
        )
        made: Any = TokenizedDPO(args=DPOConfig(beta=0.1, **settings(job, out)), train_dataset=data, **common)
    else:
        data = Dataset.from_list(
            [
                {
                    "input_ids": r["prompt"] + r["answer"],
                    "completion_mask": [0] * len(r["prompt"]) + [1] * len(r["answer"]),
                }
                for r in rows
            ]
        )
        made = SFTTrainer(args=SFTConfig(completion_only_loss=True, **settings(job, out)), train_dataset=data, **common)
    made._get_train_sampler = lambda *_: SequentialSampler(data)
    return made


def main() -> None:
    """Train the job, and print the figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--unsloth", action="store_true")
    args = parser.parse_args()
    job, (*windows, held) = Job.read(args.job)
    clock = Clock()
    rows = list(itertools.chain(*windows))
    trainer = trainer_of(job, rows, opened(job, unsloth=args.unsloth), clock=clock, out=args.job / "out")
    trainer.train()
    seconds = statistics.median(after - before for before, after in list(itertools.pairwise(clock.ends))[job.warmup :])
    tokens = sum(len(r["prompt"]) + len(r["answer"]) for r in windows[-1])
    if job.kind == "dpo":
        tokens += sum(len(r["prompt"]) + len(r["rejected"]) for r in windows[-1])
    figures: dict[str, Any] = {
        "benchmark": job.name,
        "side": "unsloth" if args.unsloth else "trl",
        "card": torch.cuda.get_device_name() if GPU else "cpu",
        "tokens_per_second": tokens / seconds,
        "rows_per_second": job.rows / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if GPU else None,
    }
    if job.kind == "sft":
        figures["held_out_loss"] = held_out(trainer.model, held)
    print(json.dumps(figures))


@torch.no_grad()
def held_out(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Loss per learned token of rows that were not trained on, nats."""
    model.eval()
    total = count = 0.0
    for row in rows:
        ids = torch.tensor([row["prompt"] + row["answer"]], device=model.device)
        logits = model(input_ids=ids).logits[0, len(row["prompt"]) - 1 : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, len(row["prompt"]) :], reduction="sum"))
        count += len(row["answer"])
    return total / count


if __name__ == "__main__":
    main()
