"""What a head of labels begins as: a linear probe. Letters: N rows, D hidden, K labels."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.events import EventHandler, StageStarted
from tunesmith.metrics.baselines import fit_linear
from tunesmith.models.batch import collate, split_by_tokens
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify
from tunesmith.training.batches import tokens_of
from tunesmith.training.prepare import ONLY_TASK, TrainingContext

# A beginning need not have seen all rows.
MOST_ROWS = 2000


def init_heads_from_probe(prepared: TrainingContext, policy: Policy, on_event: EventHandler) -> None:
    """Let each head of labels begin as a linear probe of what the network says before any step.

    A head of zeros pulls the network out of shape until it has learned what a probe knows (Kumar et al. 2022, arXiv
    2202.10054): few rows then leave an encoder behind its own probe.
    """
    whole = prepared.recipe.objective
    for name, one in (prepared.parts or {ONLY_TASK: prepared}).items():
        objective = one.recipe.objective
        if not isinstance(objective, Classify) or objective.output == "words":
            continue
        seen = whole.task_policy(policy, name)
        on_event(StageStarted("a linear probe, for the head to begin as"))
        states, targets = _states(one, seen)
        weight, bias = (_several if objective.multi else _one)(states, targets, objective)
        assert seen.head is not None
        seen.head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})


@torch.no_grad()
def _states(prepared: TrainingContext, policy: Policy) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[N, D] pooled states and [N, K] labels of the training rows, or of so many of them."""
    policy.train(False)
    rows = prepared.train
    if len(rows) > MOST_ROWS:
        rows = random.Random(prepared.recipe.seed).sample(rows, MOST_ROWS)
    sizes = [row.size for row in rows]
    found = np.empty((len(rows), policy.hidden), dtype=np.float32)
    for numbers in split_by_tokens(
        sorted(range(len(rows)), key=lambda row: -sizes[row]), sizes, tokens_of(prepared.recipe)
    ):
        batch = collate([rows[i] for i in numbers]).to(policy.device)
        found[numbers] = policy.pooled(batch).float().cpu().numpy()
    return found, np.array([row.label for row in rows], dtype=np.float32)


Numbers = tuple[NDArray[np.float64], NDArray[np.float64]]


def _one(states: NDArray[np.float32], targets: NDArray[np.float32], objective: Classify) -> Numbers:
    """[K, D] and [K] for rows of one label each."""
    fit = fit_linear(states, [objective.labels[i] for i in targets.argmax(axis=1)], metric=objective.probe_metric)
    weight = np.zeros((len(objective.labels), states.shape[1]))
    bias = np.full(len(objective.labels), -_sure(states))
    places = [objective.labels.index(label) for label in fit.labels]
    weight[places], bias[places] = fit.weight, fit.bias
    if objective.shares and not fit.balanced:
        bias -= np.log(objective.shares)  # which learning adds
    return weight, bias


def _several(states: NDArray[np.float32], targets: NDArray[np.float32], objective: Classify) -> Numbers:
    """[K, D] and [K] for rows of several labels: each label against its absence, by a strength that suits most."""
    weight, bias = np.zeros((len(objective.labels), states.shape[1])), np.zeros(len(objective.labels))
    for place, column in enumerate(targets.T):
        fit = fit_linear(states, ["yes" if has else "no" for has in column], tries=False)
        if len(fit.labels) == 2:
            weight[place], bias[place] = np.diff(fit.weight, axis=0)[0], np.diff(fit.bias)[0]
        else:
            bias[place] = _sure(states) if fit.labels == ("yes",) else -_sure(states)
    return weight, bias


def _sure(states: NDArray[np.float32]) -> float:
    """The logit of what all of N rows have: one more may have been without (Laplace's rule)."""
    return math.log(len(states) + 1)
