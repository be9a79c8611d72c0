"""Initialize heads for labels, tags and numbers from a linear probe.

N rows or tokens, D hidden width, K labels or tags.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.events import EventHandler, StageStarted
from tunesmith.metrics.baselines import LinearFit, fit_linear
from tunesmith.metrics.ridge import fit_ridge
from tunesmith.models.batch import collate, split_by_tokens
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Regress, Tag
from tunesmith.objectives.base import Objective
from tunesmith.progress import track
from tunesmith.training.batches import tokens_of
from tunesmith.training.prepare import TrainingContext

# Rows and tokens that the probe is fitted on; it is only a starting point.
MOST_ROWS = 2000
MOST_TOKENS = 20_000
TAG_STRENGTH = 0.1  # C of logistic regression: nine of ten tokens have no label, so a smaller one finds none


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
        if isinstance(objective, Tag):
            weight, bias = _tag_probe(task, view, objective)
        else:
            weight, bias = _row_probe(task, view, objective)
        view.head.load_state_dict({"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()})


@torch.no_grad()
def _tag_probe(
    task: TrainingContext, policy: Policy, objective: Tag
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [K, D] and bias [K] of a probe of the tokens of training rows, about MOST_TOKENS of them."""
    policy.train(False)
    rows, states, tags = [row for row in task.train if row.hidden], list[NDArray[np.float32]](), list[str]()
    random.Random(task.recipe.seed).shuffle(rows)
    for row in track(rows, "reading", unit="rows"):
        if len(tags) < MOST_TOKENS:
            states.append(policy.learned(collate([row]).to(policy.device)).float().cpu().numpy())
            tags += [objective.all_tags[tag] for _, tag in row.hidden]
    fit = fit_linear(np.concatenate(states), tags, tries=False, strength=TAG_STRENGTH)
    return _placed(fit, objective.all_tags, unseen=-math.log(len(tags) + 1))


def _row_probe(
    task: TrainingContext, policy: Policy, objective: Objective
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and bias of a probe of the pooled states of training rows."""
    states, targets = _states_and_targets(task, policy)
    if isinstance(objective, Regress):
        return _number_probe(states, targets, objective)
    assert isinstance(objective, Classify)
    if objective.multi:
        return _multi_label_probe(states, targets)
    return _single_label_probe(states, targets, objective)


def _placed(fit: LinearFit, labels: Sequence[str], *, unseen: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [K, D] and bias [K] in the order of `labels`, with the bias `unseen` where the fit has none."""
    weight = np.zeros((len(labels), fit.weight.shape[1]))
    bias = np.full(len(labels), unseen)
    indices = [labels.index(label) for label in fit.labels]
    weight[indices] = fit.weight
    bias[indices] = fit.bias
    return weight, bias


@torch.no_grad()
def _states_and_targets(task: TrainingContext, policy: Policy) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
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


def _number_probe(
    states: NDArray[np.float32], targets: NDArray[np.float32], objective: Regress
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [1, D] and bias [1] that predict standardised values."""
    fit = fit_ridge(states, (targets[:, 0] - objective.mean) / objective.scale)
    return fit.weight[None], np.array([fit.bias])


def _single_label_probe(
    states: NDArray[np.float32], targets: NDArray[np.float32], objective: Classify
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [K, D] and bias [K]; labels without a row get the bias of an unseen label."""
    fit = fit_linear(states, [objective.labels[i] for i in targets.argmax(axis=1)], metric=objective.probe_metric)
    weight, bias = _placed(fit, objective.labels, unseen=-_laplace_logit(states))
    if objective.shares and not fit.balanced:
        bias -= np.log(objective.shares)  # the loss adds it
    return weight, bias


def _multi_label_probe(
    states: NDArray[np.float32], targets: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight [K, D] and bias [K]: one probe per label against its absence, at a fixed regularization."""
    count = targets.shape[1]
    weight = np.zeros((count, states.shape[1]))
    bias = np.zeros(count)
    for index, column in enumerate(track(targets.T, "fitting linear probes", unit="labels")):
        fit = fit_linear(states, ["yes" if has else "no" for has in column], tries=False)
        if len(fit.labels) == 2:
            weight[index] = np.diff(fit.weight, axis=0)[0]
            bias[index] = np.diff(fit.bias)[0]
        else:
            bias[index] = _laplace_logit(states) if fit.labels == ("yes",) else -_laplace_logit(states)
    return weight, bias


def _laplace_logit(states: NDArray[np.float32]) -> float:
    """Return the logit of a property that all N rows have, by Laplace's rule of succession."""
    return math.log(len(states) + 1)
