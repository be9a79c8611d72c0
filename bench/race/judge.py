"""Held-out loss and accuracy of what a side has tuned: one code for all sides, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from bench.peers.job import Job
from bench.race.ours import as_encoded, batches_of, labels_of, start, technique_of
from tunesmith.models.batch import collate
from tunesmith.models.loading.checkpoint import load_tensors
from tunesmith.models.loading.load import load_base
from tunesmith.models.policy import Policy
from tunesmith.training.train_state import load_trainable_state

PER_PASS = 32


@torch.no_grad()
def judge(job: Job, side: str, tuned: Path | None) -> dict[str, float]:
    """`loss` per learned token (words) or per row (heads), and `accuracy` where rows have labels.

    Without a folder, the start that all sides share.
    """
    held = job.rows("held")
    if side == "head":
        assert tuned is not None
        texts = job.rows("held") if job.family == "encoder" else job.rows("held_texts")
        return _of_logits(_foreign_logits(job, tuned, texts), texts)
    policy = _policy(job, tuned)
    policy.train(False)
    if labels_of(job):
        assert policy.head is not None
        parts = [collate([as_encoded(row, job.labels) for row in part], share=False) for part in _parts(held)]
        return _of_logits(torch.cat([policy.head(policy.pooled(batch)) for batch in parts]), held)
    found = {"loss": _word_loss(job, policy, held)}
    if job.labels:
        found["accuracy"] = _word_accuracy(job, policy)
    return found


def _policy(job: Job, tuned: Path | None) -> Policy:
    """What was tuned, put over a fresh base; where words are learned all sides save in the ecosystem's own format."""
    numbers = tuned / "numbers.safetensors" if tuned is not None else None
    if tuned is None or numbers is None or numbers.exists():
        policy = start(job)
        if numbers is not None:
            load_trainable_state(policy, load_tensors(numbers))
    else:
        technique = technique_of(job)
        base = load_base(job.model, options=technique.load_options(), offline=True)
        policy = technique.restore(base.network, tuned, family=base.family)
    policy.autocast_dtype = None
    return policy


def _word_loss(job: Job, policy: Policy, held: Sequence[dict[str, Any]]) -> float:
    """Mean of -log p over the learned tokens."""
    total, units = 0.0, 0
    for part in _parts(held):
        for batch in batches_of(job, part, share=True):
            total, units = total + float(policy.sum_nll(batch)), units + len(batch.targets)
    return total / units


@torch.no_grad()
def _word_accuracy(job: Job, policy: Policy) -> float:
    """Share of the rows whose own label is the likeliest of all labels."""
    rows = job.rows("held_labels")
    said = [policy.logprobs(collate([as_encoded(row, 0) for row in part], share=True)) for part in _parts(rows)]
    best = torch.cat(said).view(-1, job.labels).argmax(dim=1).tolist()
    gold = [row["gold"] for row in rows[:: job.labels]]
    return sum(a == b for a, b in zip(best, gold, strict=True)) / len(gold)


def _parts(rows: Sequence[dict[str, Any]]) -> list[Sequence[dict[str, Any]]]:
    """The rows in order, some at a time."""
    return [rows[first : first + PER_PASS] for first in range(0, len(rows), PER_PASS)]


def _foreign_logits(job: Job, tuned: Path, rows: Sequence[dict[str, Any]]) -> Tensor:
    """Logits of transformers' classification head, row by row, so that no padding is in play."""
    if job.family == "encoder":
        model = AutoModelForSequenceClassification.from_pretrained(tuned)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=job.labels, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, tuned)
    model.eval()
    return torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits.float() for row in rows])


def _of_logits(logits: Tensor, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Cross-entropy per row and accuracy."""
    gold = torch.tensor([row["label"] for row in rows])
    right = (logits.argmax(dim=1) == gold).float().mean()
    return {"loss": float(F.cross_entropy(logits, gold)), "accuracy": float(right)}
