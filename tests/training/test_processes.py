"""A run in two processes is the run in one: steps, answers, checkpoints, and what is printed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file

from tests.training import processes
from tests.training.processes import CASES, EPSILON, RATE, STEPS, TIMEOUT
from tunesmith.cli import main

pytestmark = pytest.mark.timeout(2 * TIMEOUT)  # other tests may keep both cores busy
Taken: TypeAlias = tuple[dict[str, Any], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Both:
    """What two processes left in a folder, which is the working folder of the tests that read it."""

    folder: Path
    facts: dict[str, Any]
    codes: list[int]
    said: list[str]

    def taken(self, name: str) -> Taken:
        """The steps of a case, as `processes.three_steps` returns them."""
        return self.facts[name], load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Run all cases in two processes, once."""
    folder = tmp_path_factory.mktemp("processes")
    processes.write_rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        processes.resumable(folder / "1 to 2", stop=2)
        codes, said = processes.run(folder)
        assert (folder / "facts.json").exists(), said
        yield Both(folder, json.loads((folder / "facts.json").read_text(encoding="utf-8")), codes, said)


# Of the norm of a gradient. That of a reward model is the difference of two nearly equal sums, over chosen and rejected
# completions: one process with other micro-batches is 1.6e-6 off, too, and 3e-7 if it computes in float64.
GRADIENT = 1e-6
REWARD_GRADIENT = 3e-6
# Norm of what the parameters may be off after all steps, by the bound at EPSILON; gradients are clipped to norm 1.
PARAMETERS = STEPS * 2 * RATE / EPSILON * GRADIENT


def check_steps(name: str, own: Taken, theirs: Taken) -> None:
    """Assert that two runs took the same steps."""
    (facts, tensors), (others, found) = own, theirs
    assert found.keys() == tensors.keys()
    off = {key: found[key].double() - tensors[key].double() for key in tensors}
    goal = REWARD_GRADIENT if name.startswith("reward") else GRADIENT
    for step, (record, other) in enumerate(zip(facts["records"], others["records"], strict=True)):
        assert other["loss"] == pytest.approx(record["loss"], rel=1e-6, abs=1e-7)
        assert other["tokens"] == record["tokens"]
        gradients = [key for key in tensors if key.startswith(f"gradient {step} ")]
        length = norm(tensors[key] for key in gradients)
        assert 0 < length == pytest.approx(record["grad_norm"], rel=1e-5)
        assert norm(off[key] for key in gradients) <= goal * length, step
    assert norm(off[key] for key in tensors if not key.startswith("gradient ")) <= PARAMETERS
    assert others["validation"] == pytest.approx(facts["validation"], rel=1e-5)


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """The common norm of some tensors."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(name: str, both: Both, tmp_path: Path):
    check_steps(name, processes.three_steps(name, tmp_path), both.taken(name))
    counts = both.facts[name]["batches"]
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
    assert both.codes[0] == -9, both.said
    assert both.codes[1] != 0
    assert "ProcessError: another process of this run has ended; run the same command again to resume" in both.said[1]
    last = both.folder / "killed" / "checkpoints" / "last"
    assert json.loads((last / "state.json").read_text(encoding="utf-8"))["step"] == 2
    processes.resumable(both.folder / "killed")
    assert load_file(both.folder / "killed" / "end.safetensors").keys()
    assert (both.folder / "killed/end.safetensors").read_bytes() == (both.folder / "whole/end.safetensors").read_bytes()


def environment() -> dict[str, str]:
    """The environment of a command in the working folder."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TUNESMITH_CACHE": str(Path("cache").resolve())}


@pytest.mark.long
def test_the_command_runs_in_two_processes_and_only_the_first_one_prints(
    both: Both, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    recipe = {
        "model": "llama",
        "objective": processes.CHATS,
        "technique": processes.TECHNIQUES["lora"],
        "data": {"train": "answers.jsonl"},
        "schedule": {"epochs": 1, "learning_rate": 0.02, "batch_rows": 8, "probe": False},
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
        "retention": False,
    }
    (both.folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    monkeypatch.setenv("TUNESMITH_CACHE", str(both.folder / "cache"))
    shown, files = {}, {}
    for count in (1, 2):
        words = ["tune", "recipe.yaml", "--out", f"tuned {count}", "--offline", "--processes", str(count)]
        if count == 1:
            assert main(words) == 0
            shown[count], said = capfd.readouterr()
        else:
            command = [sys.executable, "-m", "tunesmith", *words]
            done = subprocess.run(
                command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
            assert done.returncode == 0, done.stderr
            shown[count], said = done.stdout, done.stderr
        run = both.folder / f"tuned {count}"
        files[count] = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        assert said.count("[1/5]") == 1
        lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        assert len([line for line in lines if '"loss"' in line]) == 4
    assert files[2] == files[1] - {"golden.json"}  # steps of several processes are not repeated by `replay`
    assert shown[2].splitlines()[0] == shown[1].splitlines()[0]


def test_an_error_of_several_processes_is_one_line(both: Both):
    command = [sys.executable, "-m", "tunesmith", "tune", "missing.yaml", "--processes", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: missing.yaml")


RESTARTED = """
import os, signal, sys
from tunesmith.cli import main
from tunesmith.models.world import join

world = join()
assert world.gather(world.rank) == [0, 1]
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    os.kill(os.getpid(), signal.SIGKILL if world.rank else 0)
    world.barrier()
sys.exit(main(["tune", "missing.yaml"]))
"""


@pytest.mark.long
def test_torchrun_starts_killed_processes_again_and_names_the_error_that_ends_them(both: Both):
    (both.folder / "restarted.py").write_text(RESTARTED, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [*command, "restarted.py"], env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert "ProcessError: cannot reach" not in done.stderr
    assert "exitcode  : 2" in done.stderr, done.stderr
    assert "Error: missing.yaml: no such file" in done.stderr.rpartition("traceback : ")[2]
