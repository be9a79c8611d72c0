"""Initialize heads that start from a linear probe of the base model.

N rows or tokens, D hidden width, K labels or tags.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.events import EventHandler, StageStarted
from tunesmith.models.batch import collate, split_by_tokens
from tunesmith.models.policy import Policy
from tunesmith.progress import track
from tunesmith.training.batches import tokens_of
from tunesmith.training.prepare import TrainingContext

# Rows and tokens that the probe is fitted on; it is only a starting point.
MOST_ROWS = 2000
MOST_TOKENS = 20_000


def init_heads_from_probe(prepared: TrainingContext, policy: Policy, on_event: EventHandler) -> None:
    """Set the weights of every head that starts from a probe to a linear probe of the network before any step.

    A head of zeros distorts the network until it has learned what a probe knows (Kumar et al. 2022, arXiv
    2202.10054); with few rows an encoder then scores below its own probe.

    Args:
        prepared: the run.
        policy: its policy, with new heads.
        on_event: receives the stage.
    """
    for name, task in prepared.tasks.items():
        objective = task.recipe.objective
        if not objective.starts_from_probe:
            continue
        view = prepared.recipe.objective.task_policy(policy, name)
        assert view.head is not None
        on_event(StageStarted("initializing the head from a linear probe"))
        read = _token_states if objective.produces == "spans" else _row_states
        weight, bias = objective.probe_head(*read(task, view))
        view.head.load_state_dict({"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()})


@torch.no_grad()
def _token_states(task: TrainingContext, policy: Policy) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return states [N, D] and tags [N, 1] of the tokens of training rows, about MOST_TOKENS of them."""
    policy.train(False)
    rows, states, tags = [row for row in task.train if row.hidden], list[NDArray[np.float32]](), list[int]()
    random.Random(task.recipe.seed).shuffle(rows)
    for row in track(rows, "reading", unit="rows"):
        if len(tags) < MOST_TOKENS:
            states.append(policy.learned(collate([row]).to(policy.device)).float().cpu().numpy())
            tags += [tag for _, tag in row.hidden]
    return np.concatenate(states), np.array(tags, dtype=np.float32)[:, None]


@torch.no_grad()
def _row_states(task: TrainingContext, policy: Policy) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return pooled states [N, D] and labels [N, K] of at most MOST_ROWS training rows."""
    policy.train(False)
    rows = task.train
    if len(rows) > MOST_ROWS:
        rows = random.Random(task.recipe.seed).sample(rows, MOST_ROWS)
    sizes = [row.size for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    states = np.empty((len(rows), policy.hidden), dtype=np.float32)
    divided = split_by_tokens(order, sizes, tokens_of(task.recipe))
    for indices in track(divided, "reading", unit="rows", size=len):
        batch = collate([rows[i] for i in indices]).to(policy.device)
        states[indices] = policy.pooled(batch).float().cpu().numpy()
    return states, np.array([row.label for row in rows], dtype=np.float32)
