"""Training that goes wrong says so, with the cause and the last good checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.bases import LORA, Hooks, encoded, fit, policy
from tunesmith.errors import Refused
from tunesmith.models.batch import Batch, collate
from tunesmith.objectives import Instruct
from tunesmith.objectives.base import Loss
from tunesmith.techniques import Full, Ia3, Lora
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.train_state import SAMPLED, Alarms

PLAN = TrainingPlan(steps=30, learning_rate=1e-2, warmup=0.0)


def rows(step: int) -> list[Batch]:
    """Four rows a step, the same in every third."""
    made = encoded("llama", 12)
    return [collate(made[4 * (step % 3) : 4 * (step % 3) + 4])]


def run(
    folder: Path,
    technique: Any = LORA,
    *,
    learner: Any = None,
    made: Any = None,
    plan: TrainingPlan = PLAN,
    **hooks: Any,
) -> list[Any]:
    """The records of a run."""
    torch.manual_seed(0)
    records: list[Any] = []
    hooks = {"record": records.append, **hooks}
    fit(
        made or policy("llama", technique),
        learner or Instruct(),
        hooks.pop("rows", rows),
        plan=plan,
        hooks=Hooks(folder, **hooks),
    )
    return records


class Zeroed(Instruct):
    """A loss whose gradient is 0, as where every label is masked."""

    def loss(self, batch: Batch, policy: Any) -> Loss:
        found = super().loss(batch, policy)
        return replace(found, total=found.total.detach() + 0 * found.total)


class Detached(Instruct):
    """A loss that has lost its graph, as of adapters in layers that never run."""

    def loss(self, batch: Batch, policy: Any) -> Loss:
        found = super().loss(batch, policy)
        return replace(found, total=found.total.detach())


class Exploding(Instruct):
    """A loss that is multiplied from some step on."""

    def loss(self, batch: Batch, policy: Any) -> Loss:
        found = super().loss(batch, policy)
        # The weights tell how far training is: LoRA's B starts at zero.
        return replace(found, total=found.total * (1 + 40 * max(0.0, moved(policy) - 1.2)))


def moved(made: Any) -> float:
    """How far LoRA's B has gone from zero."""
    return sum(float(value.detach().abs().max()) for name, value in made.trainable() if "lora_B" in name)


def test_a_loss_without_a_graph_is_refused_in_its_first_step(tmp_path: Path):
    with pytest.raises(Refused, match=r"^training: the loss does not depend on what is trained; inspect the learned"):
        run(tmp_path, learner=Detached())


def test_gradients_of_zero_are_refused_after_three_steps(tmp_path: Path):
    with pytest.raises(Refused, match=r"^step 3: all gradients were 0 in 3 steps; .*--dry-run.*technique\.targets$"):
        run(tmp_path, learner=Zeroed())


def test_parameters_that_do_not_change_are_refused_after_three_steps(tmp_path: Path):
    plan = replace(PLAN, learning_rate=1e-13)
    with pytest.raises(Refused, match=r"^step 3: no trained parameter has changed in 3 steps; raise .*now 1e-13"):
        run(tmp_path, Ia3(), plan=plan)


def test_one_parameter_that_changes_is_enough(tmp_path: Path):
    made = policy("llama", Full())
    for name, value in made.trainable():
        value.requires_grad_("norm" in name)
    assert len(run(tmp_path, made=made)) == 30


@pytest.mark.parametrize("learner", [Instruct(), Zeroed()], ids=["changed", "zeroed"])
def test_only_the_first_three_steps_of_a_run_are_watched(learner: Instruct, tmp_path: Path):
    run(tmp_path, Ia3(), plan=replace(PLAN, steps=5))
    records = run(tmp_path, Ia3(), learner=learner, plan=replace(PLAN, steps=12, learning_rate=1e-13))
    assert [record["step"] for record in records] == list(range(6, 13))


def test_a_few_values_of_each_parameter_are_kept_in_its_own_precision(tmp_path: Path):
    made = policy("llama", Full())
    trained = [value for _, value in made.trainable()]
    alarms = Alarms(made, Instruct(), PLAN, tmp_path)
    alarms.before(0, lambda: rows(0))
    assert max(value.numel() for value in trained) > SAMPLED
    for value, kept in zip(trained, alarms.values, strict=True):
        assert kept.dtype == value.dtype
        assert 0 < kept.numel() <= min(value.numel(), SAMPLED)
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_no_double_precision_is_needed_which_some_devices_lack(tmp_path: Path):
    class Single(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **kwargs or {})
            if isinstance(made, torch.Tensor) and made.dtype == torch.float64:
                raise TypeError(f"{func}: no float64")
            return made

    with Single():
        assert len(run(tmp_path, plan=replace(PLAN, steps=5))) == 5


@pytest.mark.parametrize("technique", [LORA, Full()], ids=["lora", "full"])
def test_an_absurd_learning_rate_is_called_divergence(technique: Lora | Full, tmp_path: Path):
    with pytest.raises(
        Refused, match=r"^step \d+: the loss .*lower schedule.learning_rate \(now 1e\+06\).*no good checkp"
    ):
        run(tmp_path, technique, plan=replace(PLAN, learning_rate=1e6))


@pytest.mark.parametrize("steps", [4, 10, 14])
@pytest.mark.parametrize(("validation", "good"), [(None, False), (99.0, False), (0.5, True)])
def test_an_explosion_at_the_end_of_a_run_is_told_unless_a_validation_was_good(
    steps: int, validation: float | None, good: bool, tmp_path: Path
):
    seen: list[bool] = []

    class Late(Instruct):
        def loss(self, batch: Batch, policy: Any) -> Loss:
            seen.append(torch.is_grad_enabled())
            found = super().loss(batch, policy)
            return replace(found, total=found.total * (99 if sum(seen) > steps // 2 else 1))

    plan = replace(PLAN, steps=steps, eval_steps=0 if validation is None else 1, patience=30)
    hooks: dict[str, Any] = {} if validation is None else {"validate": lambda: validation}
    told: list[str] = []
    run(tmp_path, learner=Late(), plan=plan, note=told.append, **hooks)
    assert len(told) == (not good)
    assert good or re.match(
        rf"warning: step {steps}: the loss of the first rows has risen .* training diverges", told[0]
    )


def test_a_run_whose_only_validation_is_not_a_number_is_called_divergence(tmp_path: Path):
    plan = replace(PLAN, steps=1, eval_steps=1)
    with pytest.raises(
        Refused, match=r"^step 1: the validation loss is nan, training diverges; lower .*no good checkp"
    ):
        run(tmp_path, plan=plan, validate=lambda: float("nan"))


def test_a_last_step_that_destroys_the_parameters_is_called_divergence(tmp_path: Path):
    with pytest.raises(Refused, match=r"^step 1: the loss .* is nan after it, training diverges; lower .*now 1e\+30"):
        run(tmp_path, plan=replace(PLAN, steps=1, learning_rate=1e30))
    assert not (tmp_path / "last").exists()


def test_the_last_checkpoint_before_the_explosion_is_named(tmp_path: Path):
    plan = replace(PLAN, save_steps=10)
    with pytest.raises(Refused, match=r"training diverges; .*; last good checkpoint: .*last, of step \d+$") as caught:
        run(tmp_path, learner=Exploding(), plan=plan)
    found = str(caught.value)
    saved, stopped = int(found.rpartition(" ")[2]), int(found.split(":")[0].removeprefix("step "))
    assert saved == 10
    assert saved <= stopped - 10


def test_the_best_checkpoint_is_named_if_there_was_a_validation(tmp_path: Path):
    plan = replace(PLAN, eval_steps=2, patience=30)
    left = [float(i) for i in range(30)]
    with pytest.raises(Refused, match=r"last good checkpoint: .*best-2$"):
        run(tmp_path, learner=Exploding(), plan=plan, validate=lambda: left.pop(0))
    assert (tmp_path / "best-2").exists()


def test_an_adapter_that_damages_the_base_is_refused_before_the_first_step(tmp_path: Path):
    known = policy("llama", Full())
    assert run(tmp_path / "base", made=known)[-1]["loss"] < 2
    made = LORA.adapt(known.network.requires_grad_(False), family="decoder", keep_reference=False)
    with torch.no_grad():
        for name, value in made.trainable():
            if "lora_B" in name:
                value.normal_(std=100.0)
    before = [value.clone() for _, value in made.trainable()]
    with pytest.raises(Refused, match=r"^step 1: the loss of the first rows is .*, that of the base model [01]"):
        run(tmp_path, made=made)
    assert all(torch.equal(old, value) for old, (_, value) in zip(before, made.trainable(), strict=True))


def test_hard_rows_after_easy_ones_are_no_explosion(tmp_path: Path):
    class Uneven(Instruct):
        def loss(self, batch: Batch, policy: Any) -> Loss:
            found = super().loss(batch, policy)
            return replace(found, total=found.total * (0.01 if torch.equal(batch.ids, rows(0)[0].ids) else 1.0))

    def uneven(step: int) -> Sequence[Batch]:
        return rows(0) if step == 0 else rows(1 + step % 2)

    records = run(tmp_path, learner=Uneven(), rows=uneven)
    assert len(records) == 30
    assert records[5]["loss"] > 20 * records[0]["loss"]


def test_alarms_cost_three_passes_and_leave_every_number_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []

    class Counting(Instruct):
        def loss(self, batch: Batch, policy: Any) -> Loss:
            seen.append(torch.is_grad_enabled())
            return super().loss(batch, policy)

    technique = Lora(rank=4, dropout=0.3)
    watched = run(tmp_path / "a", technique, learner=Counting())
    assert (seen.count(True), seen.count(False)) == (30, 3)
    quiet: Callable[..., None] = lambda *args, **more: None  # noqa: E731
    monkeypatch.setattr("tunesmith.training.train_state.Alarms.before", quiet)
    monkeypatch.setattr("tunesmith.training.train_state.Alarms.check", quiet)
    numbers = [[(r["loss"], r["grad_norm"]) for r in records] for records in (watched, run(tmp_path / "b", technique))]
    assert numbers[0] == numbers[1]
