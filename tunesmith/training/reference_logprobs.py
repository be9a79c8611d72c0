"""Log-probabilities under the reference model, and the KL divergence from it.

Letters: M learned ids, D hidden width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.files import write_whole
from tunesmith.data.tokenization.chat_template import Encoded
from tunesmith.events import EventHandler, StageStarted
from tunesmith.models.batch import TOKENS_PER_PASS, Batch, collate, split_by_tokens
from tunesmith.models.lm_head import CHUNK
from tunesmith.models.policy import Policy
from tunesmith.training.batches import tokens_of
from tunesmith.training.prepare import TrainingContext


@torch.no_grad()
def add_reference_logprobs(rows: Sequence[Encoded], policy: Policy, *, tokens: int = TOKENS_PER_PASS) -> list[Encoded]:
    """Add to each row the log-probability of the learned ids of its sequences, under the policy in its present state.

    Args:
        rows: encoded examples.
        policy: the reference model, before training.
        tokens: largest number of tokens per forward pass.

    Returns:
        Copies of the rows, in order, with `reference` set: one value per sequence, in nats.
    """
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])  # rows of similar length together
    logprobs: dict[int, tuple[float, ...]] = {}
    for index in split_by_tokens(order, sizes, tokens):
        batch = collate([rows[i] for i in index]).to(policy.device)
        values = policy.logprobs(batch).float().cpu().view(len(index), -1).tolist()
        logprobs.update(zip(index, map(tuple, values), strict=True))
    return [replace(row, reference=logprobs[i]) for i, row in enumerate(rows)]


@torch.no_grad()
def kl_to_reference(policy: Policy, batch: Batch) -> tuple[float, int]:
    """Compute the KL divergence from the policy to its reference model, over the whole vocabulary at each learned id.

    Args:
        policy: the tuned model; its `reference` context gives the base model.
        batch: rows sampled from the policy, which makes the mean an estimate of its KL per token.

    Returns:
        KL summed over the M learned ids, in nats, and M.
    """
    tuned = policy.learned(batch)
    total = 0.0
    with policy.reference():
        base = policy.learned(batch)
    # In chunks: the logits of 4,096 positions over 49,152 words take 805 MB, and this needs two sets.
    for start in range(0, len(tuned), CHUNK):
        logs = policy.words.logits(tuned[start : start + CHUNK]).float().log_softmax(dim=1)
        with policy.reference():
            base_logs = policy.words.logits(base[start : start + CHUNK]).float().log_softmax(dim=1)
        total += float((logs.exp() * (logs - base_logs)).sum())
    return total, len(tuned)


# Examples whose log-probabilities are computed and written down together.
PART = 256


# Nats that each id of the preferred answers may lose before an alarm is raised.
FALL = 0.1


def precompute_reference_logprobs(
    prepared: TrainingContext, out: Path, *, policy: Policy, on_event: EventHandler
) -> TrainingContext:
    """The rows with the log-probability of each answer under the untuned model, where the objective asks for it."""
    objective = prepared.recipe.objective
    if objective.reference == "none" or objective.samples_completions:
        return prepared
    folder = out / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    on_event(StageStarted("computing reference log-probabilities"))
    most = tokens_of(prepared.recipe)
    train, validation = (_kept(rows, folder, policy, on_event, most) for rows in (prepared.train, prepared.validation))
    return replace(prepared, train=train, validation=validation)


def _kept(rows: Sequence[Encoded], folder: Path, policy: Policy, on_event: EventHandler, tokens: int) -> list[Encoded]:
    """The rows with their log-probabilities, read from the folder as far as they lie there."""
    found: list[Encoded] = []
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        said = [[(tokens.ids, tokens.learn) for tokens in row.sequences] for row in part]
        page = folder / f"{hashlib.sha256(repr((said, policy.autocast_dtype)).encode()).hexdigest()[:16]}.json"
        if not page.exists():
            known = [row.reference for row in add_reference_logprobs(part, policy, tokens=tokens)]
            write_whole(page, json.dumps(known))
            on_event(StageStarted(f"reference log-probabilities of {start + len(part)} of {len(rows)} rows"))
        told = json.loads(page.read_text(encoding="utf-8"))
        found += [replace(row, reference=tuple(known)) for row, known in zip(part, told, strict=True)]
    return found


def preference_metrics(prepared: TrainingContext, policy: Policy) -> dict[str, float]:
    """What the validation answers have gained since the start: the liked ones in nats an id, and pairs in margin.

    Nothing where the start was not asked.
    """
    rows = prepared.validation
    if not rows or not rows[0].reference:
        return {}
    gains: list[float] = []
    margins: list[float] = []
    for row, now in zip(rows, add_reference_logprobs(rows, policy, tokens=tokens_of(prepared.recipe)), strict=True):
        gained = [after - before for after, before in zip(now.reference, row.reference, strict=True)]
        liked = [i for i, good in enumerate(row.label) if good > 0]
        gains += [gained[i] / max(1, row.sequences[i].learned) for i in liked]
        margins += [gained[0] - gained[1]] if len(gained) == 2 else []
    found = {"chosen_gain": sum(gains) / max(1, len(gains))}
    if margins:
        found |= {"margin": sum(margins) / len(margins)}
        found |= {"preferred_more": sum(margin > 0 for margin in margins) / len(margins)}
    return found


def chosen_logprob_warning(entry: Mapping[str, Any]) -> str:
    """An alarm where a validation found that the preferred answers lost probability; else nothing."""
    lost = -entry.get("chosen_gain", 0.0)
    if lost <= FALL:
        return ""
    cure = "raise objective.nll or lower schedule.learning_rate"
    return f"alarm: the preferred answers lost {lost:.2f} nats an id since the start; {cure}"
