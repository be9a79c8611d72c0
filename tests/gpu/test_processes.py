"""Two GPUs over NCCL have the losses of one. Not run on a GPU yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bases import folder

ANIMALS = ("fox", "dog", "battery", "phone", "review")
TECHNIQUES = {"lora": [], "full": ["technique.kind=full"], "qlora": ["technique.quantize=nf4"]}


def losses(rows: Path, out: Path, processes: int, settings: list[str]) -> list[float]:
    """The training loss of every step of a run."""
    fixed = [f"model={folder('llama')}", "objective.kind=instruct", "schedule.batch_rows=8"]
    sets = [word for setting in [*fixed, *settings] for word in ("--set", setting)]
    words = ["tune", str(rows), "--out", str(out), "--offline", "--processes", str(processes), *sets]
    done = subprocess.run([sys.executable, "-m", "tunesmith", *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = map(json.loads, (out / "journal.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.gpus(2)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_two_gpus_have_the_losses_of_one(technique: str, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    made = [{"prompt": f"{i} {ANIMALS[i % 5]} {i * 7 % 11}", "completion": ANIMALS[(i + 2) % 5]} for i in range(80)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    one, two = (losses(rows, tmp_path / f"run-{n}", n, TECHNIQUES[technique]) for n in (1, 2))
    assert len(one) > 3
    assert two == pytest.approx(one, rel=2e-2)
