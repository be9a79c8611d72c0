"""Policy gradients and their advantages: pure functions of tensors; losses are sums.

Letters: P prompts, G completions of each, B completions in all, M tokens of all completions, concatenated, T tokens of
the longest completion. In all functions, `new`, `old`, `reference` and `sampled` [M] are the log-probabilities of the
tokens under the policy, under the policy at sampling time, under the reference model, and in the engine that sampled
them; `advantages` [M] are those of the tokens, and `sizes` the tokens of each completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# Added to a group's standard deviation, so that nearly equal rewards are not amplified; TRL's value.
LEAST_SPREAD = 1e-4
# Greatest importance weight of a token that an engine sampled.
MAX_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class PolicyLossOptions:
    """Hyperparameters of the losses."""

    clip: float  # epsilon of the clip range
    beta: float  # weight of the KL to the reference model
    value: float = 0.0  # weight of PPO's value loss


def group_advantages(rewards: Tensor, *, scaled: bool) -> Tensor:
    """Compute the advantage of each completion over its group, [P, G].

    With `scaled`, divides by the group's standard deviation. Without it (Dr. GRPO), groups with similar rewards do not
    weigh more.

    Source: Shao et al. 2024 (DeepSeekMath), arXiv 2402.03300, section 4.1; unscaled: Liu et al. 2025 (Dr. GRPO),
    arXiv 2503.20783.
    """
    # Subtract one of the rewards first: the mean of equal rewards is off by rounding, which dividing amplifies.
    rewards = rewards - rewards[:, :1]
    ahead = rewards - rewards.mean(dim=1, keepdim=True)
    return ahead / (rewards.std(dim=1, keepdim=True) + LEAST_SPREAD) if scaled else ahead


def kl(new: Tensor, reference: Tensor) -> Tensor:
    """Estimate the KL to the reference model at each token, [M] in nats; unbiased and never negative.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    ahead = reference - new
    return ahead.exp() - ahead - 1


def clipped_surrogate(new: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Compute PPO's clipped surrogate loss of each token, [M].

    Once the ratio of new to old probability differs from 1 by more than `clip`, typically 0.2, a further change does
    not lower the loss.

    Source: Schulman et al. 2017, arXiv 1707.06347, equation 7.
    """
    ratio = (new - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def sampling_weights(old: Tensor, sampled: Tensor) -> Tensor:
    """Compute the truncated importance weight of each token of another engine, [M].

    An engine rounds differently, so its samples are slightly off-policy even with equal weights. The loss keeps its own
    log-probabilities at sampling time as the centre of the clip range, and the weight corrects for the engine: clipping
    against the engine's own would drop tokens for their rounding and not for a change of the policy.

    Source: Espeholt et al. 2018 (IMPALA), arXiv 1802.01561, section 4.1, per token.
    """
    return (old - sampled).exp().clamp(max=MAX_WEIGHT)


def grpo(
    new: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    *,
    options: PolicyLossOptions,
    weights: Tensor | None = None,
) -> Tensor:
    """Compute the GRPO loss, summed over the M tokens.

    Divided by the tokens of a whole step it is DAPO's token-level loss, TRL's default. The KL term is weighted by the
    ratio of new to old probability, which makes its gradient unbiased too; its value is the same while the ratio is 1.
    Without a reference there is none. `weights` [M] are the `sampling_weights` of tokens that an engine sampled.

    Source: Yu et al. 2025 (DAPO), arXiv 2503.14476, equation 8; KL: DeepSeek-V3.2, arXiv 2512.02556.
    """
    each = clipped_surrogate(new, old, advantages, options.clip)
    if reference is not None and options.beta:
        each = each + options.beta * kl(new, reference) * (new - old).exp()
    return each.sum() if weights is None else (each * weights).sum()


def token_rewards(scores: Tensor, old: Tensor, reference: Tensor, sizes: list[int], *, beta: float) -> Tensor:
    """Compute PPO's reward of each token, [M]: minus the KL there, plus the score [B] at a completion's last token.

    Source: Ouyang et al. 2022 (InstructGPT), arXiv 2203.02155, equation 2.
    """
    rewards = -beta * (old - reference)
    last = torch.tensor(sizes, device=rewards.device).cumsum(dim=0) - 1
    return rewards.index_add(0, last, scores)


def gae(rewards: Tensor, values: Tensor, sizes: list[int], spread: float) -> Tensor:
    """Compute generalized advantage estimates of each token, [M], without discounting in time (gamma 1).

    The value after a completion's end is 0. `spread` is lambda: 0 uses only the next value, 1 the sum of all later
    rewards.

    Source: Schulman et al. 2015, arXiv 1506.02438, equation 16.
    """
    # Padded, so that the recursion runs over all completions in parallel, one step per position.
    reward, value = (pad_sequence(list(part.split(sizes)), batch_first=True) for part in (rewards, values))  # [B, T]
    next_value = torch.cat([value[:, 1:], value.new_zeros(len(value), 1)], dim=1)
    residual = reward + next_value - value
    advantages = torch.zeros_like(value)
    running = value.new_zeros(len(value))
    for step in reversed(range(value.shape[1])):
        running = residual[:, step] + spread * running
        advantages[:, step] = running
    real = torch.arange(value.shape[1], device=value.device) < torch.tensor(sizes, device=value.device)[:, None]
    return advantages[real]


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Compute half the squared error of the values [M] of the present head, summed over the M tokens.

    A value that has moved by more than `clip` since sampling time (`old`) does not lower the loss.
    """
    near = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns) ** 2, (near - returns) ** 2).sum()
