"""What a network says to rows before anything in it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunesmith.data.template import Encoded
from tunesmith.model.batch import TOKENS_PER_PASS, Batch, collate, cut
from tunesmith.model.head import CHUNK
from tunesmith.model.policy import Policy


@torch.no_grad()
def referenced(rows: Sequence[Encoded], policy: Policy, *, tokens: int = TOKENS_PER_PASS) -> list[Encoded]:
    """The rows, each with the log-probability of the learned ids of its sequences under the policy as it is; so many
    `tokens` at once."""
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    found: dict[int, tuple[float, ...]] = {}
    for numbers in cut(order, sizes, tokens):
        batch = collate([rows[i] for i in numbers]).to(policy.device)
        values = policy.logprobs(batch).float().cpu().view(len(numbers), -1).tolist()
        found.update(zip(numbers, map(tuple, values), strict=True))
    return [replace(row, reference=found[i]) for i, row in enumerate(rows)]


@torch.no_grad()
def kl_to_start(policy: Policy, batch: Batch) -> tuple[float, int]:
    """The KL from the policy to its start over all words before each learned id, summed, in nats; and their number.

    Where the ids were drawn by the policy, the sum divided by the number is the KL of a token.
    """
    now, total = policy.learned(batch), 0.0
    with policy.reference():
        before = policy.learned(batch)
    for start in range(0, len(now), CHUNK):
        logs = policy.words.logits(now[start : start + CHUNK]).float().log_softmax(dim=1)
        with policy.reference():
            theirs = policy.words.logits(before[start : start + CHUNK]).float().log_softmax(dim=1)
        total += float((logs.exp() * (logs - theirs)).sum())
    return total, len(now)
