"""Can it learn eight rows at all?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.bases import LORA, encoded, policy
from tunesmith.errors import Refused
from tunesmith.models.batch import collate
from tunesmith.objectives import Instruct
from tunesmith.techniques import Full, Lora
from tunesmith.training import overfit_check as probe
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.overfit_check import STEPS, WANTED, can_learn
from tunesmith.training.train_state import trainable_state


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
def test_a_model_that_learns_is_told_so_and_left_as_it_was(technique: Full | Lora):
    made = policy("llama", technique)
    before = {name: value.clone() for name, value in trainable_state(made).items()}
    found = can_learn(made, Instruct(), [collate(encoded("llama", 8))], plan=TrainingPlan(steps=9, learning_rate=2e-2))
    assert found.last < WANTED * found.first
    assert found.steps <= STEPS
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(made).items())
    assert not made.network.training
    assert all(value.grad is None for _, value in made.trainable())


@pytest.mark.parametrize("rate", [1e-9, 1e30])
def test_a_model_that_does_not_learn_is_refused_and_left_as_it_was(rate: float):
    made = policy("llama", LORA)
    before = {name: value.clone() for name, value in trainable_state(made).items()}
    with pytest.raises(Refused, match=rf"^overfit check: {STEPS} steps on the same 8 rows .* raise schedule.learn"):
        can_learn(made, Instruct(), [collate(encoded("llama", 8))], plan=TrainingPlan(steps=9, learning_rate=rate))
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(made).items())


def test_rows_that_are_known_already_need_no_learning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.training.overfit_check.step", lambda *args, **kwargs: (0.01, 0.1))
    found = can_learn(
        policy("llama", LORA), Instruct(), [collate(encoded("llama", 8))], plan=TrainingPlan(steps=9, learning_rate=1)
    )
    assert (found.first, found.last, found.steps) == (0.01, 0.01, 1)


def test_a_probe_that_is_cut_short_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch):
    made, left = policy("llama", LORA), [0.0, 0.0]
    before = {name: value.clone() for name, value in trainable_state(made).items()}
    learn = probe.step

    def step(*given: Any, **more: Any) -> tuple[float, float]:
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        left.pop()
        return learn(*given, **more)

    monkeypatch.setattr(probe, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        can_learn(made, Instruct(), [collate(encoded("llama", 8))], plan=TrainingPlan(steps=9, learning_rate=2e-2))
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(made).items())
    assert all(value.grad is None for _, value in made.trainable())
