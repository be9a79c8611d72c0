"""The benchmarks for GPUs run from start to end on a tiny model, so that they cannot rot; figures mean nothing here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.gpu import ours
from bench.gpu.__main__ import main
from bench.gpu.job import BENCHMARKS, Job


@pytest.mark.parametrize("name", ["lora", "dpo", "grpo", "score"])
def test_a_benchmark_runs_on_a_tiny_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ours, "gemm_gflops", lambda *_: 1.0)  # two seconds of products otherwise
    found = main([name, "--tiny", "--out", str(tmp_path / "out.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == found
    assert [line["benchmark"] for line in lines] == [name] * (2 if name == "lora" else 1)
    for line in lines:
        figures = [value for value in line.values() if isinstance(value, float)]
        assert figures
        assert all(math.isfinite(value) and value > 0 for value in figures)
    if name == "lora":  # recomputed activations change no number
        assert lines[0]["held_out_loss"] == lines[1]["held_out_loss"]


def test_a_written_job_is_read_back_with_the_same_rows(tmp_path: Path):
    (job,) = (one.tiny("somewhere") for one in BENCHMARKS["dpo"][:1])
    read, windows = Job.read(job.write(tmp_path))
    assert read == job
    assert windows == job.windows()
    assert len(windows) == job.steps + 1
    assert {len(row["rejected"]) for window in windows for row in window} == {job.answer}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_of_a_job_has_the_ids_that_all_rows_share(name: str):
    for job in BENCHMARKS[name]:
        (window,) = Job.windows(job.tiny("somewhere"))[:1]
        shared = window[0]["prompt"][: job.tiny("").shared]
        assert all(row["prompt"][: len(shared)] == shared for row in window)
