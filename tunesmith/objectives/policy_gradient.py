"""The arithmetic of learning from rewards: pure functions of tensors, sums where they are losses.

Letters: P prompts, G answers to each, B answers in all, M tokens of all answers one after another, T of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Keeps a group of nearly equal rewards from being blown up; TRL's value.
LEAST_SPREAD = 1e-4


@dataclass(frozen=True, slots=True)
class Weights:
    """What the losses are set by."""

    clip: float
    beta: float  # of the KL to the start
    value: float = 0.0  # of PPO's value loss


def group_advantages(rewards: Tensor, *, scaled: bool) -> Tensor:
    """[P, G] -> [P, G]: by how much each answer is better than its group, in units of the group's spread if `scaled`.

    Shao et al. 2024 (DeepSeekMath), arXiv 2402.03300, section 4.1; unscaled: Liu et al. 2025 (Dr. GRPO), 2503.20783.
    """
    rewards = rewards - rewards[:, :1]  # else the mean of equal numbers is off by rounding, over a spread of nothing
    ahead = rewards - rewards.mean(dim=1, keepdim=True)
    return ahead / (rewards.std(dim=1, keepdim=True) + LEAST_SPREAD) if scaled else ahead


def kl(new: Tensor, reference: Tensor) -> Tensor:
    """[M] from [M]: an unbiased, never negative estimate of the KL to the start (Schulman 2020, "k3"), nats."""
    ahead = reference - new
    return ahead.exp() - ahead - 1


def clipped(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """[M]: the loss of each token, no better for a ratio that has left the clip range: arXiv 1707.06347, equation 7."""
    ratio = (new - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def grpo(new: Tensor, old: Tensor, reference: Tensor | None, advantages: Tensor, weights: Weights) -> Tensor:
    """The sum over the M tokens; divided by the tokens of a window it is DAPO's token-level loss, TRL's default.

    Yu et al. 2025 (DAPO), arXiv 2503.14476, equation 8. The KL to the start is weighted by the ratio, so that its
    gradient too is unbiased (DeepSeek-V3.2, arXiv 2512.02556); its value is the same while the ratio is 1.
    """
    each = clipped(new, old, advantages, weights.clip)
    if reference is not None and weights.beta:
        each = each + weights.beta * kl(new, reference) * (new - old).exp()
    return each.sum()


def token_rewards(scores: Tensor, old: Tensor, reference: Tensor, sizes: list[int], beta: float) -> Tensor:
    """[M]: what PPO is paid for each token: less the KL to the start there, and the score [B] at an answer's last.

    Ouyang et al. 2022 (InstructGPT), arXiv 2203.02155, equation 2.
    """
    rewards = -beta * (old - reference)
    last = torch.tensor(sizes, device=rewards.device).cumsum(dim=0) - 1
    return rewards.index_add(0, last, scores)


def gae(rewards: Tensor, values: Tensor, sizes: list[int], spread: float) -> Tensor:
    """[M]: generalised advantages of each token, discounted by `spread` (lambda) and not in time (gamma 1).

    Schulman et al. 2015, arXiv 1506.02438, equation 16; behind an answer's end the value is 0.
    """
    pay, worth = (pad_sequence(list(one.split(sizes)), batch_first=True) for one in (rewards, values))  # [B, T]
    following = torch.cat([worth[:, 1:], worth.new_zeros(len(worth), 1)], dim=1)
    surprise = pay + following - worth
    found, running = torch.zeros_like(worth), worth.new_zeros(len(worth))
    for place in reversed(range(worth.shape[1])):
        running = surprise[:, place] + spread * running
        found[:, place] = running
    real = torch.arange(worth.shape[1], device=worth.device) < torch.tensor(sizes, device=worth.device)[:, None]
    return found[real]


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """The summed half squared error of the values [M], no better for one that has moved beyond the clip range."""
    near = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns) ** 2, (near - returns) ** 2).sum()
