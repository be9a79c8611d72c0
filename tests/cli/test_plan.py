"""The command that plans: a table for people, one document for programs, and no run left behind."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.cli.conftest import PLAIN, Command
from tunesmith.config.checks import SHARDING_TORCH


def test_the_table_ends_with_the_technique_to_take(command: Command, review_file: Path, tiny_bert: Path):
    done = command("plan", review_file, "--quick", "--model", tiny_bert, *PLAIN)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{tiny_bert}, classify on ")
    assert lines[lines.index("recommended: full") + 1].startswith("  - a small encoder")
    assert "p-tuning" in done.out
    table = lines[1 : next(i for i, line in enumerate(lines) if "of memory available" in line)]
    assert max(map(len, table)) <= 100


def test_programs_get_the_shape_that_is_printed(
    command: Command, review_file: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done = command("plan", review_file, "--model", tiny_llama, "--json", *PLAIN)
    assert done.code == 0
    document = json.loads(done.out)
    assert set(document) == set(json.loads(command("plan", "--schema").out)["properties"])
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.jsonl"]


def test_models_are_listed_next_to_techniques_and_both_are_recommended(
    command: Command, review_file: Path, tiny_bert: Path
):
    words = ("plan", review_file, "--quick", "--model", tiny_bert, *PLAIN)
    document = json.loads(command(*words, "--json").out)
    assert [part["name"] for part in document["candidates"]] == ["tf-idf", "minilm-l6", "smollm2-135m"]
    assert (document["recommended_model"], document["recommendation"]["technique"]) == ("minilm-l6", "full")
    lines = command(*words).out.splitlines()
    assert lines.index("recommended: full") < lines.index("recommended model: minilm-l6")


def test_where_nothing_fits_the_code_says_so(
    command: Command, review_file: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.pipelines.plan.profile.process_memory", lambda device: (1e9, 1e6))
    done = command("plan", review_file, "--quick", "--model", tiny_bert, *PLAIN)
    assert done.code == 1
    assert "no technique fits into memory; use a smaller model" in done.out


@pytest.mark.skipif(Version(version("torch")) < Version(SHARDING_TORCH), reason="plans no divided weights")
def test_gpus_that_are_not_here_are_planned_on_paper(
    command: Command, review_file: Path, tiny_llama: Path, tmp_path: Path
):
    folder = tmp_path / "big"
    folder.mkdir()
    config = json.loads((tiny_llama / "config.json").read_text())
    config |= {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 8,
        "num_attention_heads": 64,
        "head_dim": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = ("plan", review_file, "--model", folder, "--gpu", "h100", "--gpus", "1", "--gpus", "8")
    done = command(*words)
    assert done.code == 0
    assert "no: 2 GPUs" in done.out
    assert "lora*" in done.out
    assert done.out.endswith("lora: fits on 1, 8 GPUs\n")
    assert "not run on a GPU yet" in done.out
    document = json.loads(command(*words, "--json").out)
    assert [(part["gpus"], part["technique"]) for part in document["paper"]] == [
        (gpus, technique) for gpus in (1, 8) for technique in ("full", "lora", "qlora")
    ]
    full = command(*words[:4], "--gpu", "H100", "--gpus", "1", "--technique", "full")
    assert full.code == 1
    assert full.out.endswith("full: does not fit; use 2 GPUs\n")
    assert command("plan", review_file, "--model", folder, "--gpu", "h1000").err.endswith(
        "error: --gpu h1000: unknown, did you mean 'h100'?\n"
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--gpu", "H1000"), "--gpu H1000: unknown, did you mean 'h100'?"),
        (("--gpu", "h100", "--gpus", "0"), "--gpus: expected an integer >= 1, got 0; give 1 or more"),
        (("--gpu", "h100", "--machines", "0"), "--machines: expected an integer >= 1, got 0; give 1 or more"),
        (("--gpu", "h100", "--processes", "2"), "--processes 2: counts processes of this machine; give --gpus instead"),
        (("--gpus", "8"), "--gpus: counts GPUs that are not here; add their name, for example --gpu h100"),
        (("--machines", "2"), "--machines: counts GPUs that are not here; add their name, for example --gpu h100"),
        (("--render", "slurm", "--machines", "0"), "--machines: expected an integer >= 1, got 0; give 1 or more"),
    ],
)
def test_a_wrong_gpu_or_number_is_named_before_rows_are_read(command: Command, words, problem: str, review_file: Path):
    rows = review_file if "--render" in words else "missing.jsonl"
    done = command("plan", rows, *words)
    assert (done.code, done.err.splitlines()[-1]) == (2, f"error: {problem}")


def test_the_help_names_every_technique(command: Command):
    assert "dora, rslora, qlora" in " ".join(command("plan", "--help").out.split())


def test_several_processes_of_this_machine_are_planned(command: Command, review_file: Path, tiny_llama: Path):
    words = ("plan", review_file, "--quick", "--model", tiny_llama, "--json", *PLAIN)
    one, two = (json.loads(command(*words, "--processes", n).out) for n in (1, 2))
    costs = [page["options"][0]["prediction"]["memory"]["expected"] for page in (one, two)]
    assert costs[0] != costs[1]
    assert command(*words, "--processes", 0).code == 2


def test_a_cluster_file_is_printed_or_written(command: Command, review_file: Path, tiny_bert: Path, tmp_path: Path):
    words = ("plan", review_file, "--model", tiny_bert, "--render", "slurm", "--machines", "2", "--gpus", "4")
    done = command(*words, "--set", "schedule.epochs=2")
    assert done.code == 0
    assert done.out.startswith("#!/bin/bash\n")
    assert "--nnodes=2 --nproc-per-node=4" in done.out
    assert f"'--set=model=\"{tiny_bert}\"'" in done.out or f"--set=model={tiny_bert}" in done.out
    assert "--set=schedule.epochs=2 &" in done.out
    file = tmp_path / "tune.sbatch"
    assert command(*words, "--out", file).out == f"written: {file}\n"
    assert file.read_text(encoding="utf-8").startswith("#!/bin/bash\n")
    assert command("plan", review_file, "--model", tiny_bert, "--render", "pbs").code == 2
