"""`tunesmith rlhf` as a person runs it: JSON out, and 1 while pairs wait for people."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Command

RULES = (
    "def short(attempt):\n    return -len(attempt.text)\n\ndef few(attempt):\n    return -sum(map(ord, attempt.text))\n"
)
RECIPE = """
model: {model}
data: {{train: rows.jsonl}}
objective: {{kind: preference, max_new_tokens: 5}}
schedule: {{epochs: 1, batch_rows: 8, learning_rate: 0.01, probe: false}}
machine: {{device: cpu, dtype: float32, threads: 1}}
loop: {{rounds: 1, prompts: 20, held_out: 5, judge: {judge}, final_judge: "rules:few"}}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(judge: str, model: Path) -> Path:
    """A recipe in the working folder, with its rows and its rules."""
    rows = [{"prompt": f"number {i}", "answer": f"it is {i}"} for i in range(50)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("rules.py").write_text(RULES, encoding="utf-8")
    Path("loop.yaml").write_text(RECIPE.format(model=model, judge=judge), encoding="utf-8")
    return Path("loop.yaml")


def test_a_loop_ends_with_one_json_document_and_with_1_where_a_run_broke_a_gate(command: Command, tiny_llama: Path):
    loop = ("rlhf", written('"rules:short"', tiny_llama), "--out", "loop", "--offline", "--set", "gates.min_delta=2")
    done = command(*loop, "--json")
    report = json.loads(done.out)
    assert report["simulated"]
    assert report["rounds"][0]["over_start"]["n"] == 5
    assert done.code == 1
    assert "error: loop: round 1, preference: min_delta: preference_accuracy changed by" in done.err
    assert "gate violated: round 1, preference: min_delta" in Path("loop/rlhf.html").read_text(encoding="utf-8")
    again = command(*loop)
    assert again.code == 1
    assert "judge of the rounds: rules.py:short (simulation)" in again.out


def test_a_dry_run_says_the_steps_and_those_done_and_writes_nothing(command: Command, tiny_llama: Path):
    loop = ("rlhf", written('"rules:short"', tiny_llama), "--out", "loop", "--offline")
    dry = command(*loop, "--dry-run")
    assert (dry.code, Path("loop").exists()) == (0, False)
    step = "round 1 of 1: 20 prompts, two answers each; rules.py:short judges (simulation); preference training"
    assert dry.out.splitlines()[:2] == ["35 training prompts, 5 held out", step]
    assert command(*loop).code == 0
    again = command(*loop, "--dry-run").out.splitlines()
    end = "end: base and final model answer 5 held-out prompts; rules.py:few judges (done)"
    assert again[1:] == [f"{step} (done)", end, "folder: loop"]
    assert json.loads(command(*loop, "--dry-run", "--json").out) == {
        "train": 35, "held_out": 5, "rounds": [{"number": 1, "state": "done"}], "done": True, "folder": "loop"
    }  # fmt: skip


def test_a_dry_run_of_rl_and_people_says_who_judges_and_what_learns(command: Command, tiny_llama: Path):
    written("page", tiny_llama)
    dry = command("rlhf", "loop.yaml", "--offline", "--dry-run", "--set", "objective={kind: rl, reward: votes}")
    assert dry.out.splitlines()[1:3] == [
        "round 1 of 1: 20 prompts, two answers each; human raters judge; a reward model is trained on the votes, then "
        "rl on the reward",
        "end: base and final model answer 5 held-out prompts; rules.py:few judges",
    ]


def test_while_pairs_wait_it_ends_with_1_and_says_how_to_open_the_page(command: Command, tiny_llama: Path):
    done = command("rlhf", written("page", tiny_llama), "--out", "waiting", "--offline", "--json")
    assert done.code == 1
    command_of_the_page = json.loads(done.out)["error"]["command"]
    assert command_of_the_page[:3] == ["tunesmith", "feedback", str(tiny_llama)]
    assert shlex.join(command_of_the_page) in done.err
    assert "tunesmith feedback" in done.err
    assert "then run the same command again" in done.err


def test_the_schema_of_its_report_is_told(command: Command):
    assert "rounds" in json.loads(command("rlhf", "--schema").out)["properties"]
