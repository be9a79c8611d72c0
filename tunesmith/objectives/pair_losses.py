"""The losses over P pairs and T thumbs: pure functions of log-probabilities, none of them averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# exp(x) of a log-probability this close to 0 is 1, and 1 - exp(x) has no logarithm.
NEAREST = -1e-6


@dataclass(frozen=True, slots=True)
class Sides:
    """Each [P]: log p of both answers now and before tuning, and how many ids they have."""

    chosen: Tensor
    rejected: Tensor
    chosen_before: Tensor
    rejected_before: Tensor
    chosen_ids: Tensor
    rejected_ids: Tensor

    @property
    def margin(self) -> Tensor:
        """[P]: by how much the chosen answer has gained on the other, in nats."""
        return (self.chosen - self.chosen_before) - (self.rejected - self.rejected_before)

    @property
    def margin_per_id(self) -> Tensor:
        """[P]: the same, each answer's gain divided by its own length."""
        chosen = (self.chosen - self.chosen_before) / self.chosen_ids
        return chosen - (self.rejected - self.rejected_before) / self.rejected_ids


@dataclass(frozen=True, slots=True)
class Options:
    """What the losses are set by."""

    beta: float
    gamma: float


def dpo(sides: Sides, options: Options) -> Tensor:
    """Rafailov et al. 2023, arXiv 2305.18290, equation 7."""
    return -F.logsigmoid(options.beta * sides.margin)


def hinge(sides: Sides, options: Options) -> Tensor:
    """Zhao et al. 2023 (SLiC), arXiv 2305.10425, on DPO's margin."""
    return torch.relu(1 - options.beta * sides.margin)


def ipo(sides: Sides, options: Options) -> Tensor:
    """Azar et al. 2023, arXiv 2310.12036, equation 17, per id as its authors run it."""
    return (sides.margin_per_id - 1 / (2 * options.beta)) ** 2


def dpo_norm(sides: Sides, options: Options) -> Tensor:
    """DPO with each answer's gain divided by its length: Lambert et al. 2024 (Tülu 3), arXiv 2411.15124."""
    return -F.logsigmoid(options.beta * sides.margin_per_id)


def orpo(sides: Sides, options: Options) -> Tensor:
    """The odds-ratio part of Hong et al. 2024, arXiv 2403.07691, equation 7; the NLL part is the `nll` option."""
    chosen, rejected = sides.chosen / sides.chosen_ids, sides.rejected / sides.rejected_ids
    odds = (chosen - rejected) - (_log_of_the_rest(chosen) - _log_of_the_rest(rejected))
    return -options.beta * F.logsigmoid(odds)


def simpo(sides: Sides, options: Options) -> Tensor:
    """Meng et al. 2024, arXiv 2405.14734, equation 6."""
    lead = sides.chosen / sides.chosen_ids - sides.rejected / sides.rejected_ids
    return -F.logsigmoid(options.beta * lead - options.gamma)


PAIR_LOSSES: dict[str, Callable[[Sides, Options], Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "dpo_norm": dpo_norm,
    "orpo": orpo,
    "simpo": simpo,
}


def kto(ahead: Tensor, good: Tensor, beta: float) -> Tensor:
    """[T] from each answer's gain over the start less the KL to it, and whether the answer is good.

    Ethayarajh et al. 2024, arXiv 2402.01306, equation 8.
    """
    return 1 - torch.sigmoid(beta * torch.where(good, ahead, -ahead))


def _log_of_the_rest(logs: Tensor) -> Tensor:
    """log(1 - p) from log p, exact near both ends."""
    logs = logs.clamp(max=NEAREST)
    near_one = logs > -math.log(2)
    # `where` gives gradients of both branches: each gets values it can stand.
    small, large = torch.where(near_one, logs, -1.0), torch.where(near_one, -1.0, logs)
    return torch.where(near_one, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
