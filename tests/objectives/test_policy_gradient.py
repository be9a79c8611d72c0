"""Rewards to losses: TRL's numbers on the same tensors, and PPO's worked out by hand."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tunesmith.objectives.policy_gradient import (
    PolicyLossOptions,
    clipped_surrogate,
    gae,
    group_advantages,
    grpo,
    kl,
    token_rewards,
    value_loss,
)

SIZES = [4, 2, 6]


def drawn(seed: int, *, spread: float = 0.3) -> Tensor:
    """A number for each token of three answers."""
    return torch.randn(sum(SIZES), generator=torch.Generator().manual_seed(seed)) * spread


def padded(values: Tensor) -> Tensor:
    """The same as TRL lays them out, [B, T]."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(SIZES)), batch_first=True)


def theirs(new: Tensor, old: Tensor | None, reference: Tensor, advantages: Tensor, *, beta: float) -> Tensor:
    """TRL's loss (its default: DAPO) over these tensors, as a sum over tokens."""
    from trl import GRPOTrainer

    same = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    said = padded(new)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (said, torch.zeros_like(said), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1),
        loss_type="dapo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=same,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    mask = padded(torch.ones(sum(SIZES)))
    inputs = {
        "prompt_ids": torch.zeros(3, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(3, 1, dtype=torch.int64),
        "completion_ids": torch.zeros_like(mask, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": advantages,
        "ref_per_token_logps": padded(reference),
        "num_items_in_batch": mask.sum(),
    }
    if old is not None:
        inputs["old_per_token_logps"] = padded(old)
    return GRPOTrainer._compute_loss(trainer, None, inputs) * mask.sum()


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("moved", [False, True], ids=["first update", "later update"])
def test_grpo_and_its_gradient_are_trls(beta: float, moved: bool):
    new = (drawn(1) - 2).requires_grad_()
    old = (new.detach() + drawn(2)) if moved else None
    reference, advantages = drawn(3) - 2, torch.tensor([1.2, -0.7, 0.1])
    wanted = theirs(new, old, reference, advantages, beta=beta)
    (expected,) = torch.autograd.grad(wanted, new)
    each = advantages.repeat_interleave(torch.tensor(SIZES))
    found = grpo(new, new.detach() if old is None else old, reference, each, options=PolicyLossOptions(0.2, beta))
    (gradient,) = torch.autograd.grad(found, new)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_advantages_are_rewards_in_units_of_their_own_groups_spread():
    # mean 0.5 and standard deviation 0.5774 in the first group; the second is all alike and teaches nothing
    found = group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.3]]), scaled=True)
    assert found[0].tolist() == pytest.approx([0.86588, 0.86588, -0.86588, -0.86588], abs=1e-5)
    assert found[1].tolist() == [0.0] * 4


def test_unscaled_advantages_are_differences_from_the_mean():
    assert group_advantages(torch.tensor([[1.0, 0.0, 0.5]]), scaled=False).tolist() == [[0.5, -0.5, 0.0]]
    assert not group_advantages(torch.full((1, 6), 1234.3), scaled=True).any()  # and not the rounding of their mean


def test_the_kl_estimate_is_zero_where_nothing_moved_and_never_negative():
    new = torch.tensor([-1.0, -1.0, -1.0])
    found = kl(new, torch.tensor([-1.0, -1.5, -0.5]))
    assert found.tolist() == pytest.approx([0.0, 0.106531, 0.148721], abs=1e-6)  # e^-.5 + .5 - 1, e^.5 - .5 - 1


def test_a_ratio_beyond_the_clip_range_pulls_no_further():
    new = torch.tensor([0.5, 0.5, -0.5]).requires_grad_()
    found = clipped_surrogate(new, torch.zeros(3), torch.tensor([1.0, -1.0, -1.0]), 0.2)
    # ratios 1.649, 1.649, 0.607: the first and the last are clipped, the second would make a bad token likelier
    assert found.tolist() == pytest.approx([-1.2, 1.648721, 0.8], abs=1e-6)
    (gradient,) = torch.autograd.grad(found.sum(), new)
    assert gradient.tolist() == pytest.approx([0.0, 1.648721, 0.0], abs=1e-6)


def test_ppo_pays_the_score_at_the_last_token_and_charges_the_kl_at_each():
    old, reference = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.5, -1.0, -1.0])
    found = token_rewards(torch.tensor([2.0, 5.0]), old, reference, [2, 1], beta=0.1)
    assert found.tolist() == pytest.approx([-0.05, 2.0, 5.1])


def test_generalised_advantages_look_ahead_by_lambda_and_no_further_than_their_answer():
    # surprises: 0 + 2 - 1 = 1, then 3 + 0 - 2 = 1; in the second answer 4 - 5 = -1
    found = gae(torch.tensor([0.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 5.0]), [2, 1], 0.5)
    assert found.tolist() == [1.5, 1.0, -1.0]


def test_the_value_loss_is_half_the_squared_error_and_no_better_beyond_the_clip_range():
    # 0.5 (1 - 3)^2 = 2; moved from 0 to 2 but clipped at 0.2: 0.5 (0.2 - 3)^2 = 3.92
    assert value_loss(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([3.0]), 0.2).item() == 2.0
    found = value_loss(torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([3.0]), 0.2)
    assert found.item() == pytest.approx(3.92)
