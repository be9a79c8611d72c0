"""Wrong inputs are answered before torch is imported; `python -m bench.errors` measures how long that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import WRONG, write_files
from tunesmith.cli.main import main
from tunesmith.objectives import OBJECTIVES
from tunesmith.techniques import TECHNIQUES

ROOT = Path(__file__).parents[2]
# Runs every command line in one process, so that 80 of them take seconds, and says what was imported by then.
RUN_ALL = """
import contextlib, io, json, sys
from tunesmith.cli.main import main
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*line, "--json"] if "serve" != line[0] else line)
    heavy = [name for name in ("torch", "transformers", "peft", "sklearn") if name in sys.modules]
    print(json.dumps({"code": code, "err": err.getvalue(), "out": out.getvalue(), "heavy": heavy}), flush=True)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("wrong")
    write_files(folder)
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        input=json.dumps([wrong.words for wrong in WRONG]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_wrong_input_imports_torch(results: list[dict[str, object]]) -> None:
    first = next((wrong.line for wrong, got in zip(WRONG, results, strict=True) if got["heavy"]), "")
    assert first == "", "the first command line that imports torch, transformers, peft or scikit-learn"


@pytest.mark.parametrize("index", range(len(WRONG)), ids=[wrong.line for wrong in WRONG])
def test_a_wrong_input_ends_with_its_own_message(results: list[dict[str, object]], index: int) -> None:
    wrong, got = WRONG[index], results[index]
    lines = [line for line in str(got["err"]).splitlines() if line.startswith("error: ")]
    assert got["code"] == 2, got["err"]
    assert len(lines) == 1
    assert wrong.says in lines[0]
    assert "Input should be" not in lines[0]
    if got["out"]:
        error = json.loads(str(got["out"]))["error"]
        assert error["exit_code"] == 2
        assert lines[0] == f"error: {error['message']}"


def test_help_names_the_kinds_of_objectives_and_techniques(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["tune", "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
    assert {part.model_fields["kind"].default for part in (*OBJECTIVES, *TECHNIQUES)} <= set(words)
