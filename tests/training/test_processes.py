"""A run in two processes is the run in one: steps, answers, checkpoints, and what is printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training import processes
from tests.training.processes import CASES

TIMEOUT = 600


@dataclass(frozen=True)
class Both:
    """What two processes left in a folder, which is the working folder of the tests that read it."""

    folder: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Run all cases in two processes, once."""
    folder = tmp_path_factory.mktemp("processes")
    processes.write_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        processes.resumable(folder / "1 to 2", stop=2)
        children = processes.start(folder, "cases")
        said = [child.communicate(timeout=TIMEOUT) for child in children]
        assert [child.returncode for child in children] == [0, 0], said
        yield Both(folder, json.loads((folder / "facts.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(name: str, both: Both, tmp_path: Path):
    facts, tensors = processes.three_steps(name, tmp_path)
    theirs, found = both.facts[name], processes.read_tensors(both.folder, name)
    for own, other in zip(facts["records"], theirs["records"], strict=True):
        assert other["loss"] == pytest.approx(own["loss"], rel=1e-5, abs=1e-6)
        assert other["grad_norm"] == pytest.approx(own["grad_norm"], rel=1e-4, abs=1e-6)
        assert other["tokens"] == own["tokens"]
    assert theirs["records"][0]["loss"] == pytest.approx(facts["records"][0]["loss"], rel=1e-6, abs=1e-6)
    assert theirs["validation"] == pytest.approx(facts["validation"], rel=1e-4)
    assert found.keys() == tensors.keys()
    scale = max(1.0, facts["records"][0]["grad_norm"])
    gradients = [key for key in tensors if key.startswith("gradient ")]
    assert max(float((found[key] - tensors[key]).abs().max()) for key in gradients) < 1e-6 * scale
    assert any(float(tensors[key].abs().max()) > 0 for key in gradients)
    counts = theirs["batches"]
    assert (counts[1] == [0] * len(counts[1])) is name.startswith("a process without")


def test_memory_that_runs_out_in_one_process_limits_all_and_none_waits(both: Both):
    facts = both.facts["memory runs out in one"]
    assert facts["limits"][0] == facts["limits"][1] < 4096
    assert facts["batches"][1][0] > 1


def test_a_reward_that_fails_in_one_process_is_the_error_of_all_and_the_last_step_is_kept(both: Both):
    assert both.facts["reward fails"] == ["rules.py: failed; repair it"] * 2
    assert (both.folder / "reward/last/state.json").exists()


def test_answers_dealt_to_two_processes_are_those_of_one(both: Both):
    own, theirs = processes.answers(both.folder), both.facts["answers"]
    assert (theirs["greedy"], theirs["sampled"]) == (own["greedy"], own["sampled"])
    for name in ("options", "scores", "states"):
        assert torch.tensor(theirs[name]) == pytest.approx(torch.tensor(own[name]), rel=1e-5, abs=1e-5)


def test_a_run_is_resumed_by_any_number_of_processes_to_the_same_bytes(both: Both):
    processes.resumable(both.folder / "2 to 1")
    processes.resumable(both.folder / "one")
    ends = {
        name: (both.folder / name / "end.safetensors").read_bytes()
        for name in ("one", "whole", "2 to 2", "2 to 1", "1 to 2")
    }
    assert len(set(ends.values())) == 1, {name: hash(value) for name, value in ends.items()}
    steps = {name: len((both.folder / name / "journal.jsonl").read_text().splitlines()) for name in ends}
    assert len(set(steps.values())) == 1, steps


def test_a_process_that_is_killed_while_it_saves_loses_only_the_steps_since_the_checkpoint(both: Both):
    children = processes.start(both.folder, "killed")
    said = [child.communicate(timeout=TIMEOUT) for child in children]
    assert children[0].returncode == -9, said
    assert children[1].returncode != 0
    assert "ProcessError: another process of this run has ended; run the same command again to resume" in said[1][1]
    last = both.folder / "killed" / "checkpoints" / "last"
    assert json.loads((last / "state.json").read_text(encoding="utf-8"))["step"] == 2
    processes.resumable(both.folder / "killed")
    assert load_file(both.folder / "killed" / "end.safetensors").keys()
    assert (both.folder / "killed/end.safetensors").read_bytes() == (both.folder / "whole/end.safetensors").read_bytes()


def test_the_command_runs_in_two_processes_and_only_the_first_one_prints(both: Both):
    recipe = {
        "model": "llama",
        "objective": processes.CHATS,
        "technique": processes.TECHNIQUES["lora"],
        "data": {"train": "answers.jsonl"},
        "schedule": {"epochs": 1, "learning_rate": 0.02, "batch_rows": 8},
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
        "retention": False,
    }
    (both.folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TUNESMITH_CACHE": str(both.folder / "cache")}
    shown, files = {}, {}
    for count in (1, 2):
        shutil.rmtree(both.folder / "tuned", ignore_errors=True)
        command = [sys.executable, "-m", "tunesmith", "tune", "recipe.yaml", "--out", "tuned", "--offline"]
        command += ["--processes", str(count)]
        done = subprocess.run(
            command, cwd=both.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == 0, done.stderr
        shown[count] = done.stdout
        files[count] = {
            str(path.relative_to(both.folder / "tuned"))
            for path in (both.folder / "tuned").rglob("*")
            if path.is_file()
        }
        assert done.stderr.count("[1/5]") == 1
        lines = (both.folder / "tuned/journal.jsonl").read_text(encoding="utf-8").splitlines()
        assert len([line for line in lines if '"loss"' in line]) == 4
    assert files[2] == files[1]
    assert shown[2].splitlines()[0] == shown[1].splitlines()[0]


def test_an_error_of_several_processes_is_one_line(both: Both):
    command = [sys.executable, "-m", "tunesmith", "tune", "missing.yaml", "--processes", "2"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=both.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: missing.yaml")
