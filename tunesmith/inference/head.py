"""The output layer that an objective needs beside the network's own."""

from __future__ import annotations

from tunesmith.model.masked_head import MaskedHead
from tunesmith.model.policy import Policy
from tunesmith.recipe import AnyObjective


def give_head(policy: Policy, objective: AnyObjective) -> None:
    """Put a fresh head into the policy, None where the network's own words are used; its numbers are drawn by torch."""
    masked = objective.kind == "domain" and policy.family == "encoder"
    policy.head = MaskedHead(policy.network) if masked else objective.head(policy.hidden)
    if policy.head is not None:
        policy.head.to(policy.device)
