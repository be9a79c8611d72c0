"""The rate over time, and an optimizer that comes back from a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.bases import LORA, encoded, policy
from tunesmith.config.resolve import default_validations
from tunesmith.models.batch import collate
from tunesmith.models.loading.checkpoint import load_tensors, save_tensors
from tunesmith.models.policy import Policy
from tunesmith.techniques import Full, Lora
from tunesmith.training.optim import (
    HEAD_RATE,
    TrainingPlan,
    between,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_rate,
)
from tunesmith.training.train_state import load_trainable_state, trainable_state


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_run_of_any_length_is_validated_as_often_as_asked_or_once_more_and_short_ones_less(count: int):
    times = {steps: -(-steps // between(steps, count)) for steps in range(1, 400)}
    assert max(times.values()) == count + 1
    assert min(times[steps] for steps in range(16, 400)) == count
    assert [-(-steps // between(steps, 6)) for steps in (11, 15, 117)] == [6, 5, 7]  # 15 steps were validated 8 times


def test_the_rate_rises_to_its_peak_and_falls_as_a_cosine_to_a_tenth():
    plan = TrainingPlan(steps=110, learning_rate=2.0, warmup=10 / 110)
    rates = [plan.rate(step) for step in range(110)]
    assert [round(rate, 6) for rate in rates[:3]] == [0.2, 0.4, 0.6]
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert rates[60] == pytest.approx(2.0 * 0.55)  # half-way down: (1 + 0.1) / 2
    assert rates[35] == pytest.approx(2.0 * (0.1 + 0.45 * (1 + 2**-0.5)))  # cos 45 degrees
    assert rates[109] == pytest.approx(0.2, abs=0.001)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.06), (2, 0.0), (3, 0.9)])
def test_a_short_plan_has_positive_rates_up_to_the_peak(steps: int, warmup: float):
    rates = [TrainingPlan(steps=steps, learning_rate=1.0, warmup=warmup).rate(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0


def headed(technique: Full | Lora) -> Policy:
    made = policy("llama", technique, lively=0.05)
    made.head = nn.Linear(made.hidden, 2)
    return made


def test_vectors_are_not_decayed_and_a_fresh_head_takes_a_larger_rate():
    made = headed(Full())
    optimizer = make_optimizer(made, TrainingPlan(steps=1, learning_rate=1e-5, weight_decay=0.1))
    set_rate(optimizer, 5e-6)  # half the peak
    seen = {}
    for group in optimizer.param_groups:
        for value in group["params"]:
            seen[id(value)] = (group["weight_decay"], group["lr"])
    for name, value in made.trainable():
        decay, rate = seen[id(value)]
        assert decay == (0.1 if value.ndim == 2 else 0.0)
        assert rate == pytest.approx(HEAD_RATE / 2 if name.startswith("head.") else 5e-6)


def test_a_head_takes_the_common_rate_where_that_is_larger():
    optimizer = make_optimizer(headed(LORA), TrainingPlan(steps=1, learning_rate=5e-3))
    set_rate(optimizer, 5e-3)
    assert {group["lr"] for group in optimizer.param_groups} == {5e-3}


def test_one_step_of_adamw_by_hand():
    made = policy("llama", LORA)
    name, value = next((n, v) for n, v in made.trainable() if "lora_A" in n)
    optimizer = make_optimizer(made, TrainingPlan(steps=1, learning_rate=0.1, weight_decay=0.5))
    before = value.detach().clone()
    value.grad = torch.full_like(value, 3.0)
    optimizer.step()
    # first step: m / sqrt(v) is the sign of the gradient, after decay by rate x 0.5
    assert torch.allclose(value, before * (1 - 0.1 * 0.5) - 0.1, atol=1e-6), name


# Smaller matrices keep moments of 32 bits: those of a tiny LoRA have 4,096 values from rank 128 on.
IN_8_BITS = {"full": Full(), "lora": Lora(rank=128)}


@pytest.mark.parametrize(
    ("technique", "kind"),
    [(Full(), "adamw"), (LORA, "adamw"), *((technique, "adamw-8bit") for technique in IN_8_BITS.values())],
    ids=["full", "lora", "full-8bit", "lora-8bit"],
)
def test_an_optimizer_comes_back_from_disk_and_goes_on_to_the_bit(technique: Full | Lora, kind: str, tmp_path):
    batch = collate(encoded("llama"))
    plan = TrainingPlan(steps=9, learning_rate=1e-3, optimizer=kind)

    def steps(made: Policy, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            made.sum_nll(batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    first = policy("llama", technique, lively=0.05)
    optimizer = make_optimizer(first, plan)
    steps(first, optimizer, 3)
    save_tensors(trainable_state(first), tmp_path / "numbers.safetensors")
    save_tensors(optimizer_tensors(optimizer, first), tmp_path / "optimizer.safetensors")
    steps(first, optimizer, 3)

    second = policy("llama", technique)
    fresh = make_optimizer(second, plan)
    load_trainable_state(second, load_tensors(tmp_path / "numbers.safetensors"))
    restore_optimizer(fresh, second, load_tensors(tmp_path / "optimizer.safetensors"))
    assert {float(state["step"]) for state in fresh.state.values()} == {3.0}
    steps(second, fresh, 3)
    for name, value in trainable_state(first).items():
        assert torch.equal(value, trainable_state(second)[name]), name


@pytest.mark.parametrize("technique", IN_8_BITS.values(), ids=IN_8_BITS)
def test_moments_of_8_bits_take_a_quarter_of_the_memory_and_learn_the_same(technique: Full | Lora):
    batch = collate(encoded("llama"))
    losses, sizes = {}, {}
    for kind in ("adamw", "adamw-8bit"):
        torch.manual_seed(0)
        made = policy("llama", technique, lively=0.05)
        optimizer = make_optimizer(made, TrainingPlan(steps=12, learning_rate=3e-3, optimizer=kind))
        losses[kind] = []
        for _ in range(12):
            loss = made.sum_nll(batch) / batch.units
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[kind].append(float(loss.detach()))
        large = [state for value, state in optimizer.state.items() if value.numel() >= 4096]
        sizes[kind] = sum(
            part.nbytes for state in large for key, part in state.items() if key != "step" and "qmap" not in key
        )
    assert losses["adamw-8bit"] == pytest.approx(losses["adamw"], rel=0.02)
    assert losses["adamw"][-1] < 0.9 * losses["adamw"][0]
    assert 0 < sizes["adamw-8bit"] < 0.27 * sizes["adamw"]


@pytest.mark.parametrize(
    ("trained", "read", "count"), [(648, 72, 3), (648, 0, 6), (3 * 648, 72, 6), (2 * 648, 72, 5), (100, 10_000, 3)]
)
def test_a_run_has_fewer_validations_if_six_cost_more_than_a_tenth_of_training_but_three_at_least(
    trained: int, read: int, count: int
):
    assert default_validations(trained, read) == count
    assert count <= 3 or count * read <= 0.1 * 3 * trained
