"""What a network says to rows before anything in it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from tunesmith.data.template import Encoded
from tunesmith.model.batch import TOKENS_PER_PASS, collate, cut
from tunesmith.model.policy import Policy


@torch.no_grad()
def referenced(rows: Sequence[Encoded], policy: Policy, *, tokens: int = TOKENS_PER_PASS) -> list[Encoded]:
    """The rows, each with the log-probability of the learned ids of its sequences under the policy as it is."""
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    found: dict[int, tuple[float, ...]] = {}
    for numbers in cut(order, sizes, tokens):
        batch = collate([rows[i] for i in numbers]).to(policy.device)
        values = policy.logprobs(batch).float().cpu().view(len(numbers), -1).tolist()
        found.update(zip(numbers, map(tuple, values), strict=True))
    return [replace(row, reference=found[i]) for i, row in enumerate(rows)]
