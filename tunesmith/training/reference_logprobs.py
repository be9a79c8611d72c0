"""Log-probabilities under the reference model, and the KL divergence from it.

Letters: M learned ids, D hidden width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tunesmith.data.files import read_text, write_whole
from tunesmith.data.tokenization.token_store import packed
from tunesmith.data.tokenization.tokens import Encoded
from tunesmith.events import EventHandler, StageStarted
from tunesmith.models.batch import TOKENS_PER_PASS, Batch, collate, split_by_tokens
from tunesmith.models.lm_head import CHUNK
from tunesmith.models.policy import Policy
from tunesmith.models.world import current_world
from tunesmith.progress import track
from tunesmith.training.batches import tokens_of
from tunesmith.training.prepare import TrainingContext


def add_reference_logprobs(rows: Sequence[Encoded], policy: Policy, *, tokens: int = TOKENS_PER_PASS) -> list[Encoded]:
    """Return copies of rows with `reference` set, as `reference_logprobs` computes it."""
    logprobs = reference_logprobs(rows, policy, tokens=tokens)
    return [replace(row, reference=tuple(values)) for row, values in zip(rows, logprobs, strict=True)]


def reference_logprobs(rows: Sequence[Encoded], policy: Policy, *, tokens: int = TOKENS_PER_PASS) -> list[list[float]]:
    """Compute the log-probability of the learned ids of each sequence, under the policy in its present state.

    Args:
        rows: encoded examples, split over the processes of the run.
        policy: the reference model, before training.
        tokens: largest number of tokens per forward pass.

    Returns:
        For each row, in order, one value per sequence, in nats.
    """
    costs = [row.size for row in rows]
    return current_world().map(rows, lambda part: _logprobs(part, policy, tokens), costs=costs)


@torch.no_grad()
def _logprobs(rows: Sequence[Encoded], policy: Policy, tokens: int) -> list[list[float]]:
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])  # rows of similar length together
    logprobs: dict[int, list[float]] = {}
    for index in track(split_by_tokens(order, sizes, tokens), "scoring", unit="rows", size=len):
        batch = collate([rows[i] for i in index]).to(policy.device)
        values = policy.logprobs(batch).float().cpu().view(len(index), -1).tolist()
        logprobs.update(zip(index, values, strict=True))
    return [logprobs[i] for i in range(len(rows))]


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


# Rows whose log-probabilities are computed and saved together.
ROWS_PER_FILE = 256
# Loss of log-probability per token of the chosen answers, in nats, above which a warning is raised.
FALL = 0.1


def precompute_reference_logprobs(
    prepared: TrainingContext, out: Path, *, policy: Policy, on_event: EventHandler
) -> TrainingContext:
    """Add reference log-probabilities to the rows of an objective that needs them.

    They are saved in `out`, so that a resumed run and later epochs need not compute them again.

    Args:
        prepared: the context of one task.
        out: the run folder, or the folder of the task.
        policy: the base model.
        on_event: receives the progress.

    Returns:
        The context with `reference` set in its rows; unchanged if the objective needs no reference model, or
        samples its completions.
    """
    objective = prepared.recipe.objective
    if objective.reference == "none" or objective.samples_completions:
        return prepared
    folder = out / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    on_event(StageStarted("computing reference log-probabilities"))
    tokens = tokens_of(prepared.recipe)
    world = current_world()

    def referenced(rows: Sequence[Encoded]) -> list[Encoded]:
        result: list[Encoded] = []
        parts = [rows[start : start + ROWS_PER_FILE] for start in range(0, len(rows), ROWS_PER_FILE)]
        for part in track(parts, "reference log-probabilities", unit="rows", size=len):
            arrays = packed(part)
            content = b"".join(array.tobytes() for name in ("ids", "learned") for array in arrays[name])
            digest = hashlib.sha256(f"{policy.autocast_dtype}".encode() + content).hexdigest()[:16]
            file = folder / f"{digest}.json"
            if world.broadcast(file.exists()):
                logprobs = json.loads(read_text(file))
            else:
                logprobs = reference_logprobs(part, policy, tokens=tokens)
                if world.leads:
                    write_whole(file, json.dumps(logprobs))
            result += [replace(row, reference=tuple(values)) for row, values in zip(part, logprobs, strict=True)]
        return result

    return replace(prepared, train=referenced(prepared.train), validation=referenced(prepared.validation))


def preference_metrics(prepared: TrainingContext, policy: Policy) -> dict[str, float]:
    """Compute how the log-probabilities of the validation answers changed since the base model.

    Args:
        prepared: a run whose validation rows have reference log-probabilities.
        policy: the policy in its present state.

    Returns:
        `chosen_gain` in nats per token; for pairs also the `margin` in nats and the share `preferred_more` with a
        positive one. Empty without reference log-probabilities.
    """
    rows = prepared.validation
    if not rows or not rows[0].reference:
        return {}
    gains: list[float] = []
    margins: list[float] = []
    for row, now in zip(rows, add_reference_logprobs(rows, policy, tokens=tokens_of(prepared.recipe)), strict=True):
        changes = [after - before for after, before in zip(now.reference, row.reference, strict=True)]
        gains += [
            changes[i] / max(1, row.sequences[i].learned) for i, preferred in enumerate(row.label) if preferred > 0
        ]
        if len(changes) == 2:
            margins.append(changes[0] - changes[1])
    metrics = {"chosen_gain": sum(gains) / max(1, len(gains))}
    if margins:
        metrics["margin"] = sum(margins) / len(margins)
        metrics["preferred_more"] = sum(margin > 0 for margin in margins) / len(margins)
    return metrics


def chosen_logprob_warning(metrics: Mapping[str, float]) -> str:
    """Return a warning if a validation shows that the chosen answers became less likely; else an empty string."""
    lost = -metrics.get("chosen_gain", 0.0)
    if lost <= FALL:
        return ""
    fix = "raise objective.nll or lower schedule.learning_rate"
    return f"warning: log-probability of the chosen answers fell by {lost:.2f} nats/token since the base model; {fix}"
