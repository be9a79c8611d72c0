"""Memory runs out in the middle of a step: the step is taken again in smaller pieces, and it is the same step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import LORA, Hooks, encoded, farthest, fit, policy
from tests.objectives.test_online_rl import practice, prompts
from tunesmith.errors import Refused, out_of_memory
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Instruct
from tunesmith.objectives.base import Learner, Loss
from tunesmith.techniques import Full, Lora
from tunesmith.training.batches import Sampler
from tunesmith.training.optim import TrainingPlan
from tunesmith.training.train_state import trainable_state

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."
ROWS = encoded("llama", 12)
TIMES = ("seconds", "tokens_per_second", "peak_bytes")


def cramped(room: int, error: Exception) -> Instruct:
    """Answers are learned where no more than so many rows run at once."""

    class Cramped(Instruct):
        def loss(self, batch: Batch, policy: Policy) -> Loss:
            found = super().loss(batch, policy)
            if batch.rows > room:
                raise error
            return found

    return Cramped()


class Later(Learner):
    """Learns from rewards, where no more than so many answers run at once after so many losses of a step."""

    def __init__(self, room: int, *, after: int = 1) -> None:
        self.inner, self.room, self.after, self.seen = practice(updates=3), room, after, 0

    def prepare(self, batch: Batch, policy: Policy) -> Batch:
        self.seen = 0
        return self.inner.prepare(batch, policy)

    def units(self, batch: Batch) -> int:
        return self.inner.units(batch)

    def loss(self, batch: Batch, policy: Policy) -> Loss:
        self.seen += 1
        if self.seen > self.after and batch.rows > self.room:
            raise MemoryError
        return self.inner.loss(batch, policy)


class Cut:
    """Windows of four rows: the longest alone at first, so that its gradient is there when the others fail."""

    def __init__(self) -> None:
        self.sampler = Sampler(tuple(row.length for row in ROWS), 4, 200, seed=0)
        self.most = 3
        self.asked: list[int] = []

    def window(self, step: int) -> list[Batch]:
        (rows,) = replace(self.sampler, tokens=10**6).window(step)
        parts = [rows[:1], *(rows[i : i + self.most] for i in range(1, 4, self.most))]
        return [collate([ROWS[i] for i in part]) for part in parts]

    def smaller(self, step: int) -> bool:
        self.asked.append(step)
        self.most -= 1
        return self.most > 0


def run(
    folder: Path, objective: Instruct, technique: Full | Lora = LORA
) -> tuple[Policy, list[Mapping[str, Any]], Cut]:
    torch.manual_seed(0)
    made, cut, records = policy("llama", technique), Cut(), list[Mapping[str, Any]]()
    hooks = Hooks(folder, records.append, smaller=cut.smaller)
    fit(made, objective, cut.window, plan=TrainingPlan(steps=3, learning_rate=1e-2), hooks=hooks)
    return made, records, cut


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()],
    ids=["gpu", "cpu", "python"],
)
def test_a_run_whose_memory_ran_out_takes_the_steps_of_one_whose_memory_did_not(
    technique: Full | Lora, error: Exception, tmp_path: Path
):
    whole, wanted, roomy = run(tmp_path / "whole", Instruct(), technique)
    made, records, cut = run(tmp_path / "cramped", cramped(2, error), technique)
    assert (roomy.asked, cut.asked) == ([], [0])
    assert [record["loss"] for record in records] == pytest.approx([record["loss"] for record in wanted], rel=1e-5)
    assert [r["grad_norm"] for r in records] == pytest.approx([r["grad_norm"] for r in wanted], rel=1e-4)
    assert [record["tokens"] for record in records] == [record["tokens"] for record in wanted]
    assert farthest(trainable_state(made), trainable_state(whole)) < 1e-3


def test_memory_that_runs_out_when_rows_are_learned_from_again_leaves_the_same_step(tmp_path: Path):
    steps = {}
    for name, room in (("whole", 100), ("cramped", 4)):
        torch.manual_seed(0)
        made, records, asked = policy("llama", LORA, lively=0.05), list[Mapping[str, Any]](), list[int]()
        hooks = Hooks(tmp_path / name, records.append, smaller=lambda step, asked=asked: not asked.append(step))
        learner = Later(room)
        fit(
            made,
            learner,
            lambda step: [prompts(2, turn=step)],
            plan=TrainingPlan(steps=2, learning_rate=1e-2, updates=3),
            hooks=hooks,
        )
        steps[name] = (trainable_state(made), records, asked)
    whole, cramped = steps["whole"], steps["cramped"]
    assert (whole[2], cramped[2]) == ([], [0, 1])
    for wanted, found in zip(whole[1], cramped[1], strict=True):
        assert {name: found[name] for name in wanted if name not in TIMES} == pytest.approx(
            {name: value for name, value in wanted.items() if name not in TIMES}, rel=1e-3
        )
    assert farthest(whole[0], cramped[0]) < 1e-3


def test_the_answers_to_a_lone_prompt_are_cut_where_memory_does_not_hold_them_together(tmp_path: Path):
    """There is no smaller batch of prompts, and the answers are rows too."""
    ends = {}
    for name, room in (("whole", 99), ("cramped", 2)):
        torch.manual_seed(0)
        made = policy("llama", LORA, lively=0.05)
        plan = TrainingPlan(steps=2, learning_rate=1e-2, updates=1)
        hooks = Hooks(tmp_path / name, lambda record: None)  # whose `smaller` says no
        fit(made, Later(room, after=0), lambda step: [prompts(1, turn=step)], plan=plan, hooks=hooks)
        ends[name] = trainable_state(made)
    assert farthest(ends["whole"], ends["cramped"]) < 1e-3
    with pytest.raises(Refused, match="memory does not hold one row at a time"):
        fit(
            made,
            Later(0, after=0),
            lambda step: [prompts(1, turn=step)],
            plan=plan,
            hooks=replace(hooks, folder=tmp_path),
        )


def test_a_row_that_does_not_fit_alone_is_refused_with_what_needs_less(tmp_path: Path):
    with pytest.raises(Refused, match=r"step 1: memory does not hold one row at a time; .*`tunesmith plan`"):
        run(tmp_path, cramped(0, MemoryError()))


def test_memory_that_does_not_hold_the_optimizer_is_refused_with_what_needs_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def step(self: torch.optim.AdamW) -> None:
        raise RuntimeError(CPU)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(
        Refused, match="the optimizer's two values per trainable parameter; use a technique that trains"
    ):
        run(tmp_path, Instruct())


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError(CPU), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_only_memory_that_ran_out_is_tried_again(error: Exception, ran_out: bool):
    assert out_of_memory(error) is ran_out


def test_any_other_error_is_nobodys_to_swallow(tmp_path: Path):
    class Broken(Instruct):
        def loss(self, batch: Batch, policy: Policy) -> Loss:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(tmp_path, Broken())
