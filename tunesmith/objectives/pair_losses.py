"""Losses over preference pairs and unpaired preferences: pure functions of log-probabilities, none of them averaged.

The losses of `PAIR_LOSSES` take what `dpo` takes and return the loss of each pair; all are tested against TRL.

Letters: P preference pairs, T unpaired preferences. Log-probabilities are sums over a completion's tokens, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest log-probability: closer to 0, exp(x) rounds to 1, and 1 - exp(x) has no logarithm.
NEAREST = -1e-6


@dataclass(frozen=True, slots=True)
class PairLogprobs:
    """Log-probabilities of both completions of each pair, each [P]."""

    chosen: Tensor  # under the policy
    rejected: Tensor
    reference_chosen: Tensor  # under the reference model
    reference_rejected: Tensor
    chosen_ids: Tensor  # number of learned tokens
    rejected_ids: Tensor

    @property
    def margin(self) -> Tensor:
        """Gain of the chosen completion over the rejected one, relative to the reference model, [P] in nats."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)

    @property
    def margin_per_id(self) -> Tensor:
        """The same margin with each completion's gain divided by its number of tokens, [P] in nats per token."""
        chosen = (self.chosen - self.reference_chosen) / self.chosen_ids
        return chosen - (self.rejected - self.reference_rejected) / self.rejected_ids


@dataclass(frozen=True, slots=True)
class PairLossOptions:
    """Hyperparameters of the losses."""

    beta: float  # weight of the margin; a small beta lets the policy move further from the reference model
    gamma: float  # SimPO's target margin


def dpo(logps: PairLogprobs, options: PairLossOptions) -> Tensor:
    """Compute the DPO loss of each pair.

    Increases the log-probability of the chosen completion relative to the rejected one, measured against the reference
    model. A small beta lets the policy move further from the reference.

    Args:
        logps: summed log-probabilities of both completions under policy and reference model, each [P], nats.
        options: `beta`, typically 0.1 to 0.5.

    Returns:
        Loss per pair, [P]. Not averaged: the training loop divides by the units of the whole step.

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7. Tested against TRL.
    """
    return -F.logsigmoid(options.beta * logps.margin)


def hinge(logps: PairLogprobs, options: PairLossOptions) -> Tensor:
    """Compute the hinge loss of each pair on DPO's margin.

    Pairs whose margin exceeds 1 / beta, in nats, contribute no gradient.

    Source: Zhao et al. 2023 (SLiC), arXiv 2305.10425.
    """
    return torch.relu(1 - options.beta * logps.margin)


def ipo(logps: PairLogprobs, options: PairLossOptions) -> Tensor:
    """Compute the IPO loss of each pair.

    Regresses the margin to 1 / (2 beta) instead of increasing it without limit, so pairs that all raters agree on are
    not overfitted. The margin is per token, as in the authors' own experiments.

    Source: Azar et al. 2023, arXiv 2310.12036, equation 17.
    """
    return (logps.margin_per_id - 1 / (2 * options.beta)) ** 2


def dpo_norm(logps: PairLogprobs, options: PairLossOptions) -> Tensor:
    """Compute the length-normalized DPO loss of each pair.

    Each completion's gain is divided by its number of tokens, so that long completions do not dominate; `beta` is
    larger than DPO's, because the margin is per token.

    Source: Lambert et al. 2024 (Tülu 3), arXiv 2411.15124.
    """
    return -F.logsigmoid(options.beta * logps.margin_per_id)


def orpo(logps: PairLogprobs, options: PairLossOptions) -> Tensor:
    """Compute the odds-ratio loss of each pair, without a reference model.

    `beta` is the weight of this part (lambda in the paper). The other part of ORPO, the negative log-likelihood of the
    chosen completion, is the objective's `nll` option.

    Source: Hong et al. 2024, arXiv 2403.07691, equation 7.
    """
    chosen = logps.chosen / logps.chosen_ids
    rejected = logps.rejected / logps.rejected_ids
    log_odds_ratio = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -options.beta * F.logsigmoid(log_odds_ratio)


def simpo(logps: PairLogprobs, options: PairLossOptions) -> Tensor:
    """Compute the SimPO loss of each pair, without a reference model.

    Source: Meng et al. 2024, arXiv 2405.14734, equation 6.
    """
    lead = logps.chosen / logps.chosen_ids - logps.rejected / logps.rejected_ids
    return -F.logsigmoid(options.beta * lead - options.gamma)


PAIR_LOSSES: dict[str, Callable[[PairLogprobs, PairLossOptions], Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "dpo_norm": dpo_norm,
    "orpo": orpo,
    "simpo": simpo,
}


def kto(ahead: Tensor, good: Tensor, beta: float) -> Tensor:
    """Compute the KTO loss of each unpaired preference.

    Args:
        ahead: log-probability of the completion under the policy minus that under the reference model, minus the
            estimated KL between the two, [T] in nats.
        good: whether the completion was rated good, [T] bool.
        beta: weight of `ahead`.

    Returns:
        Loss per completion, [T].

    Source: Ethayarajh et al. 2024, arXiv 2402.01306, equation 8. Tested against TRL.
    """
    return 1 - torch.sigmoid(beta * torch.where(good, ahead, -ahead))


def _log1mexp(logs: Tensor) -> Tensor:
    """Compute log(1 - p) from log p, exact near both ends."""
    logs = logs.clamp(max=NEAREST)
    near_one = logs > -math.log(2)
    # `where` also computes the gradient of the branch it does not take: give each branch values without overflow.
    small = torch.where(near_one, logs, -1.0)
    large = torch.where(near_one, -1.0, logs)
    return torch.where(near_one, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
