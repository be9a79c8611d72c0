"""The command that plans: a table for people, one document for programs, and no run left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import PLAIN, Command


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
