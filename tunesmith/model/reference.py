"""Log-probabilities under the reference model, and the KL divergence from it.

Letters: M learned ids, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunesmith.data.template import Encoded
from tunesmith.model.batch import TOKENS_PER_PASS, Batch, collate, split_by_tokens
from tunesmith.model.head import CHUNK
from tunesmith.model.policy import Policy


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
