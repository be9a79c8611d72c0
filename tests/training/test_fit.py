"""The loop: it learns, keeps the best, and goes on after any interruption as if there had been none."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bases import LORA, Hooks, encoded, farthest, fit, gradients, labelled, policy, template
from tunesmith.errors import CheckpointError, Refused
from tunesmith.models.batch import Batch, collate
from tunesmith.models.policy import Policy
from tunesmith.objectives import Classify, Instruct
from tunesmith.techniques import Full, Lora
from tunesmith.training.batches import Sampler
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.fit import step
from tunesmith.training.optim import TrainingPlan, make_optimizer
from tunesmith.training.train_state import TrainingState, trainable_state

ROOT = Path(__file__).parents[2]
PLAN = TrainingPlan(steps=8, learning_rate=1e-2, save_steps=3)


def window(kind: str = "llama", *, rows: int = 12, tokens: int = 200) -> Callable[[int], list[Batch]]:
    """Steps of four rows, cut into micro-batches."""
    made = encoded(kind, rows)
    sampler = Sampler(tuple(row.length for row in made), 4, tokens, seed=0)
    return lambda number: [collate([made[i] for i in batch]) for batch in sampler.window(number)]


def digest(made: Policy) -> str:
    """sha256 over all numbers that move."""
    found = hashlib.sha256()
    for name, value in sorted(trainable_state(made).items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def start(technique: Full | Lora = LORA) -> Policy:
    torch.manual_seed(0)
    return policy("llama", technique)


def run(
    folder: Path, *, technique: Full | Lora = LORA, plan: TrainingPlan = PLAN, **hooks: Any
) -> tuple[Policy, TrainingState, list]:
    """A whole run in a folder: the policy, where it ended, and its records."""
    records: list[Mapping[str, Any]] = []
    made = start(technique)
    state = fit(made, Instruct(), window(), plan=plan, hooks=Hooks(folder, records.append, **hooks))
    return made, state, records


def stop_after(count: int) -> Callable[[], bool]:
    """Asked once a step; says stop at the count-th."""
    left = list(range(count))
    return lambda: left.pop() == 0 if left else True


def scores(*values: float) -> Callable[[], float]:
    left = list(values)
    return lambda: left.pop(0)


# ------------------------------------------------------------------ it learns


@pytest.mark.parametrize("technique", [Full(), LORA, Lora(rank=4, dora=True)], ids=["full", "lora", "dora"])
def test_the_loss_falls_and_every_step_is_recorded(technique: Full | Lora, tmp_path: Path):
    plan = TrainingPlan(steps=12, learning_rate=3e-2)
    made, state, records = run(tmp_path, technique=technique, plan=plan)
    assert records[-1]["loss"] < 0.85 * records[0]["loss"]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["learning_rate"] for record in records] == [plan.rate(i) for i in range(12)]
    assert (state.step, state.rows, state.stopped_early) == (12, 48, False)
    assert state.tokens == 4 * sum(row.length for row in encoded("llama", 12))  # four epochs of three steps
    assert not made.network.training


def test_the_first_recorded_loss_is_the_mean_over_the_steps_learned_tokens(tmp_path: Path):
    _, _, records = run(tmp_path)
    made, objective, batches = start(), Instruct(), window()(0)
    with torch.no_grad():
        total = sum(made.sum_nll(batch).item() for batch in batches)
    assert records[0]["loss"] == pytest.approx(total / sum(objective.units(batch) for batch in batches), rel=1e-5)


def test_seconds_count_training_steps_only(tmp_path: Path):
    time = iter(range(1000))
    _, state, records = run(tmp_path, clock=lambda: float(next(time)))
    assert state.seconds == 8  # a step reads the clock twice, one second apart
    assert records[-1]["tokens_per_second"] == state.tokens / 8


# ------------------------------------------------------------------ any cut into micro-batches gives the same step


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("sizes", [[8] * 4, [1] * 32, [7, 1, 16, 3, 5]], ids=["4x8", "32x1", "ragged"])
def test_accumulated_micro_batches_have_the_gradient_of_one_batch(technique: Full | Lora, sizes: list[int]):
    rows = encoded("llama", 32)
    made = policy("llama", technique, lively=0.05)
    whole = gradient_of(made, [rows], monkey_rows=32)
    places = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = [rows[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert farthest(gradient_of(made, parts, monkey_rows=32), whole) < 1e-4


def gradient_of(made: Policy, parts: list, *, monkey_rows: int) -> dict[str, torch.Tensor]:
    """The gradient that `step` hands to its optimizer, which then moves nothing."""
    assert sum(map(len, parts)) == monkey_rows
    found: dict[str, torch.Tensor] = {}

    class Still(torch.optim.SGD):
        def step(self) -> None:  # type: ignore[override]
            found.update(gradients(made))

    optimizer = Still([value for _, value in made.trainable()], lr=0.0)
    step(made, Instruct(), [collate(part) for part in parts], optimizer=optimizer, clip=1e9)
    return found


def test_a_heads_gradient_is_a_mean_over_rows_however_they_are_cut():
    bound = Classify().bind(labelled(6), "encoder")
    rows = [bound.encode(one, template("bert"), limit=64) for one in labelled(6)]
    found = []
    for parts in ([rows], [rows[:1], rows[1:]]):
        made = policy("bert", LORA)
        made.head = bound.head(made)
        optimizer = make_optimizer(made, TrainingPlan(steps=1, learning_rate=1e-3))
        batches = [collate(part, share=False) for part in parts]
        loss, norm = step(made, bound, batches, optimizer=optimizer, clip=1.0)
        found.append((loss, norm))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][0] == pytest.approx(math.log(2), rel=1e-6)


def test_a_gradient_is_clipped_to_its_norm_before_the_numbers_move():
    made = policy("llama", Full())
    optimizer = torch.optim.SGD([value for _, value in made.trainable()], lr=1.0)
    before = {name: value.clone() for name, value in trainable_state(made).items()}
    _, norm = step(made, Instruct(), window()(0), optimizer=optimizer, clip=0.01)
    moved = sum(float((value - before[name]).square().sum()) for name, value in trainable_state(made).items()) ** 0.5
    assert norm > 1
    assert moved == pytest.approx(0.01, rel=1e-3)


# ------------------------------------------------------------------ the best


def test_the_best_numbers_are_kept_and_patience_ends_the_run(tmp_path: Path):
    seen: list[str] = []
    made = start()

    def validate() -> float:
        seen.append(digest(made))
        return [3.0, 2.0, 2.5, 2.0, 9.0][len(seen) - 1]

    records: list[Mapping[str, Any]] = []
    plan = TrainingPlan(steps=20, learning_rate=1e-2, eval_steps=2, patience=2)
    state = fit(made, Instruct(), window(), plan=plan, hooks=Hooks(tmp_path, records.append, validate))
    assert (state.step, state.best, state.best_step, state.stopped_early) == (8, 2.0, 4, True)
    assert digest(made) == seen[1]
    assert [r["validation_loss"] for r in records if "validation_loss" in r] == [3.0, 2.0, 2.5, 2.0]


def test_the_last_step_is_validated_too(tmp_path: Path):
    plan = TrainingPlan(steps=5, learning_rate=1e-2, eval_steps=2)
    made, state, _ = run(tmp_path, plan=plan, validate=scores(3.0, 2.0, 1.0))
    assert (state.best, state.best_step, state.stopped_early) == (1.0, 5, False)
    unvalidated, _, _ = run(tmp_path / "other", plan=replace(plan, eval_steps=0))
    assert digest(made) == digest(unvalidated)


def test_validations_that_are_no_numbers_are_never_the_best(tmp_path: Path):
    plan = TrainingPlan(steps=4, learning_rate=1e-2, eval_steps=1, patience=9)
    _, state, _ = run(tmp_path, plan=plan, validate=scores(math.nan, math.inf, 5.0, math.nan))
    assert (state.best, state.best_step) == (5.0, 3)


def test_dropout_is_off_while_validating_and_on_again_after(tmp_path: Path):
    made = start(Lora(rank=4, dropout=0.5))
    modes: list[bool] = []

    def validate() -> float:
        modes.append(made.network.training)
        return 1.0

    trained: list[bool] = []
    hooks = Hooks(tmp_path, lambda record: trained.append(made.network.training), validate)
    fit(made, Instruct(), window(), plan=TrainingPlan(steps=2, learning_rate=1e-2, eval_steps=1), hooks=hooks)
    assert modes == [False, False]
    assert trained == [True, False, True, False]  # step, validation, step, validation


# ------------------------------------------------------------------ what is not a number


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_good_checkpoint(
    bad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = Instruct.loss, []
    fifth = sum(len(window()(number)) for number in range(4)) + 1

    def loss(self, batch, made):
        found = real(self, batch, made)
        if torch.is_grad_enabled():  # not where an alarm looks at the start
            calls.append(batch)
        return replace(found, total=found.total * bad) if len(calls) == fifth else found

    monkeypatch.setattr(Instruct, "loss", loss)
    with pytest.raises(Refused, match=r"^step 5: the loss is (nan|inf), .*last good checkpoint: .*last, of step 3$"):
        run(tmp_path)
    kept = json.loads((tmp_path / "last" / "state.json").read_text())
    assert kept["step"] == 3


# ------------------------------------------------------------------ going on


@pytest.mark.parametrize(
    ("technique", "stop"), [(Full(), 4), (Lora(rank=4, dropout=0.2), 1), (Lora(rank=4, dropout=0.2), 7)]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(technique: Full | Lora, stop: int, tmp_path: Path):
    whole, state, records = run(tmp_path / "whole", technique=technique)
    with pytest.raises(Interrupted, match=f"stopped after step {stop} of 8"):
        run(tmp_path / "cut", technique=technique, stop=stop_after(stop))
    resumed: list[int] = []
    again, later, rest = run(tmp_path / "cut", technique=technique, resumed=resumed.append)
    assert digest(again) == digest(whole)
    assert resumed == [stop]
    assert [r["loss"] for r in rest] == [r["loss"] for r in records[stop:]]
    # How much memory the test's process ever had is no part of where a run is.
    assert replace(later, seconds=0.0, peak_bytes=0) == replace(state, seconds=0.0, peak_bytes=0)


def test_a_run_that_goes_on_ends_with_the_numbers_of_its_own_best_step(tmp_path: Path):
    """A life that was killed after its validation of step 4 and before its next checkpoint left numbers of step 4."""
    plan = TrainingPlan(steps=6, learning_rate=1e-2, eval_steps=2, save_steps=3, patience=9)
    seen: list[str] = []

    def killed(score: float) -> float:
        seen.append(digest(made))
        if score < 0.2:
            raise KeyboardInterrupt
        return score

    made = start()
    first = Hooks(tmp_path, lambda record: None, validate=lambda left=[0.5, 0.3, 0.1]: killed(left.pop(0)))
    with pytest.raises(KeyboardInterrupt):
        fit(made, Instruct(), window(), plan=plan, hooks=first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-2", "best-4", "last"]
    again, state, _ = run(tmp_path, plan=plan, validate=scores(0.6, 0.7))  # scored by another rule
    assert (state.best_step, digest(again)) == (2, seen[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-2", "last"]


def test_what_was_best_before_a_stop_is_still_the_best_after_it(tmp_path: Path):
    plan = TrainingPlan(steps=6, learning_rate=1e-2, eval_steps=1, save_steps=2, patience=9)
    values = (3.0, 1.0, 2.0, 2.0, 2.0, 2.0)
    whole, state, _ = run(tmp_path / "whole", plan=plan, validate=scores(*values))
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", plan=plan, validate=scores(*values), stop=stop_after(3))
    again, later, _ = run(tmp_path / "cut", plan=plan, validate=scores(*values[3:]))
    assert (state.best_step, later.best_step, later.bad_validations) == (2, 2, 4)
    assert digest(again) == digest(whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    first, state, _ = run(tmp_path)
    again, later, records = run(tmp_path)
    assert records == []
    assert later == state
    assert digest(again) == digest(first)


def test_a_run_that_stopped_early_is_not_trained_again(tmp_path: Path):
    plan = TrainingPlan(steps=20, learning_rate=1e-2, eval_steps=1, patience=1)
    first, state, _ = run(tmp_path, plan=plan, validate=scores(1.0, 2.0))
    again, later, records = run(tmp_path, plan=plan)
    assert (records, later) == ([], state)
    assert digest(again) == digest(first)


def test_without_a_wanted_interval_a_checkpoint_is_written_at_the_end(tmp_path: Path):
    run(tmp_path, plan=replace(PLAN, save_steps=0))
    assert json.loads((tmp_path / "last" / "state.json").read_text())["step"] == 8


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_fit import PLAN, start, window
from tunesmith.objectives import Instruct
from tunesmith.techniques import Full
from tests.bases import Hooks, fit

def record(entry):
    if entry["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

fit(start(Full()), Instruct(), window(), plan=PLAN, hooks=Hooks(Path(sys.argv[1]), record))
"""


@pytest.mark.long
def test_a_process_killed_in_the_middle_of_a_run_loses_only_the_steps_since_its_checkpoint(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "cut")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole, _, _ = run(tmp_path / "whole", technique=Full())
    resumed: list[int] = []
    again, _, records = run(tmp_path / "cut", technique=Full(), resumed=resumed.append)
    assert resumed == [3]
    assert [record["step"] for record in records] == [4, 5, 6, 7, 8]
    assert digest(again) == digest(whole)


def test_a_checkpoint_left_between_two_renames_is_gone_on_with(tmp_path: Path):
    whole, _, _ = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", stop=stop_after(4))
    (tmp_path / "cut" / "last").rename(tmp_path / "cut" / ".last.old")
    again, _, records = run(tmp_path / "cut")
    assert [record["step"] for record in records] == [5, 6, 7, 8]
    assert digest(again) == digest(whole)


@pytest.mark.parametrize("file", ["last/numbers.safetensors", "last/optimizer.safetensors", "last/state.json"])
def test_a_corrupted_checkpoint_is_refused(file: str, tmp_path: Path):
    with pytest.raises(Interrupted):
        run(tmp_path, stop=stop_after(2))
    bytes_ = bytearray((tmp_path / file).read_bytes())
    bytes_[-3] ^= 1
    (tmp_path / file).write_bytes(bytes_)
    with pytest.raises(CheckpointError, match=r"missing or changed since it was written; restore it or run again"):
        run(tmp_path)


def test_best_numbers_that_were_corrupted_or_lost_are_refused(tmp_path: Path):
    plan = TrainingPlan(steps=2, learning_rate=1e-2, eval_steps=1)
    run(tmp_path, plan=plan, validate=scores(2.0, 1.0))
    file = tmp_path / "best-2" / "numbers.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="missing or changed since it was written"):
        run(tmp_path, plan=plan)
    shutil.rmtree(tmp_path / "best-2")
    with pytest.raises(CheckpointError, match="no readable manifest"):
        run(tmp_path, plan=plan)
