"""`python -m bench.peers.plain JOB SIDE OUT`: what a script of one's own does with transformers and PEFT.

`plain`: LoRA, logits of every position, the model's own loss. `head`: transformers' sequence classification over the
text alone, no instruction: LoRA on a decoder, all weights of an encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from bench.peers.job import Job, Meter, numbers_of, started, timed

Row = dict[str, Any]


def words(job: Job) -> Any:
    """The language model, with the starting adapter where only that moves."""
    bits = None
    if job.technique.get("quantize"):
        half = torch.bfloat16 if job.half else torch.float32
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=half)
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32, quantization_config=bits)
    if job.technique["kind"] == "full":
        return base
    return PeftModel.from_pretrained(base, Path(job.folder) / "adapter", is_trainable=True)


def head(job: Job, pad: int) -> Any:
    """The network with a fresh classification head."""
    kind = AutoModelForSequenceClassification
    base = kind.from_pretrained(job.model, dtype=torch.float32, num_labels=job.labels, pad_token_id=pad)
    if job.family == "encoder":
        return base
    rank = job.technique["rank"]
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return get_peft_model(base, config)


def collate(rows: Sequence[Row], *, pad: int, words: bool) -> dict[str, torch.Tensor]:
    """Rows padded to the longest."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }
    if not words:
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}
    learned = [torch.tensor(row["learned"], dtype=torch.bool) for row in rows]
    labels = [one.masked_fill(~mask, -100) for one, mask in zip(ids, learned, strict=True)]
    return {**batch, "labels": pad_sequence(labels, batch_first=True, padding_value=-100)}


def train(job: Job, model: Any, batches: Sequence[dict[str, torch.Tensor]], meter: Meter) -> torch.optim.Optimizer:
    """The loop of every tutorial."""
    numbers = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        numbers, lr=job.rate, betas=(0.9, job.beta2), weight_decay=job.weight_decay, fused=True
    )
    model.train()
    meter.begin(model)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16) if job.half else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(numbers, job.clip)
        optimizer.step()
        optimizer.zero_grad()
        meter.step_ended()
    return optimizer


def main() -> None:
    job, side, out = started()
    pad = transformers.AutoTokenizer.from_pretrained(job.model).pad_token_id or 0
    model = words(job) if side == "plain" else head(job, pad)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    last = inner.get_output_embeddings() if side == "plain" else None
    rows = job.rows("rows" if side == "plain" or job.family == "encoder" else "texts")
    batches = [collate([rows[i] for i in window], pad=pad, words=side == "plain") for window in job.windows]
    meter = Meter(job)
    meter.watch(inner.base_model)
    optimizer = train(job, model, batches, meter)
    model.save_pretrained(out / "tuned")
    meter.finish(
        out,
        optimizer,
        timed(job, rows),
        numbers=numbers_of(inner, last),
        head_positions=meter.positions if side == "plain" else 0,
        recomputed=False,
        versions={module.__name__: module.__version__ for module in (torch, transformers, peft)},
    )


if __name__ == "__main__":
    main()
