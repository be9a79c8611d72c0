"""The bench of the plan: what it foretells of one set knows nothing of the others, and only what was foretold runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import plan as bench
from tests.pipelines.conftest import recipe, reviews
from tunesmith.config.resolve import ResolvedRecipe

FORETOLD = {"memory": {"expected": 2.0}, "seconds": {"expected": 3.0}, "trainable": 4}
CAME = {"memory": 2.1, "seconds": 3.3, "trainable": 4}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were given to processes of their own, over two sets of which one has no qlora."""
    commands: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        said = CAME if command[3] == "one" else {"lora": FORETOLD, "full": FORETOLD}
        return subprocess.CompletedProcess(command, 0, f"a warning\n{json.dumps(said)}\n")

    monkeypatch.setattr(bench, "PAGE", tmp_path / "PLAN.json")
    monkeypatch.setattr(bench, "TABLE", tmp_path / "PLAN.md")
    monkeypatch.setattr(bench, "SETS", {"a": ("a.yaml", (), ("lora", "qlora")), "b c": ("b.yaml", (), ("full",))})
    monkeypatch.setattr(subprocess, "run", answer)
    return commands


def test_each_set_is_foretold_by_a_process_that_holds_no_other_model(asked: list[list[str]]):
    bench.predict()
    start = [sys.executable, "-m", "bench.plan", "foretell"]
    assert asked == [[*start, "a"], [*start, "b c"]]
    assert json.loads(bench.PAGE.read_text()) == {
        "a/lora": {"predicted": FORETOLD},
        "b c/full": {"predicted": FORETOLD},
    }


def test_a_case_that_was_not_foretold_is_not_run(asked: list[list[str]]):
    bench.predict()
    bench.run()
    bench.run()
    assert [command[4] for command in asked if command[3] == "one"] == ["a/lora", "b c/full"]
    assert json.loads(bench.PAGE.read_text())["a/lora"]["outcome"] == CAME


@pytest.mark.usefixtures("small_world")
def test_a_set_is_foretold_on_one_line_for_each_technique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made = recipe(tmp_path, reviews(), "llama")
    monkeypatch.setattr(bench, "resolve_recipe", lambda *_, **__: ResolvedRecipe(made, []))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as without bitsandbytes
    bench.foretell("reviews")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"full", "lora", "ia3"} <= found.keys()
    assert "qlora" not in found
    assert found["lora"]["memory"]["expected"] > 0
