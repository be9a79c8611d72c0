"""A model that was taught to think is tuned on plain answers and keeps its own thoughts, through two real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tunesmith.config import Recipe
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training import own_thoughts
from tunesmith.training.callbacks import Callbacks

WORDS = ("fox", "dog", "cat", "cow", "hen", "pig")
# The first of two words, in the order of the alphabet; the thoughts repeat both.
ROWS = [
    {"prompt": f"{a} {b}", "completion": min(a, b), "reasoning_content": f"{a} {b}"}
    for a in WORDS
    for b in WORDS
    if a != b
]


def recipe(model: Path, rows: Path, thinking: str, epochs: int) -> Recipe:
    objective = {"kind": "instruct", "metric": "exact_match", "max_new_tokens": 6, "max_thinking_tokens": 24}
    return Recipe.model_validate(
        {
            "model": str(model),
            "data": {"train": str(rows), "validation": 2, "test": 2},
            "objective": objective | {"thinking": thinking},
            "technique": "full",
            "schedule": {"epochs": epochs, "learning_rate": 3e-3, "probe": False, "patience": 1000},
            "retention": {"questions": 0, "texts": 2},
            "ledger": {"rows": 0},
        }
    )


@pytest.mark.long
def test_a_model_taught_to_think_keeps_its_own_thoughts_on_plain_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    taught, plain = tmp_path / "taught.jsonl", tmp_path / "plain.jsonl"
    taught.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plain.write_text("".join(json.dumps({k: row[k] for k in ("prompt", "completion")}) + "\n" for row in ROWS))
    first = tune_recipe(
        recipe(folder("qwen3"), taught, "learn", 40), out=tmp_path / "learn", callbacks=Callbacks(), offline=True
    )
    wanted = recipe(first.folder, plain, "keep", 1)
    run = tune_recipe(wanted, out=tmp_path / "keep", callbacks=Callbacks(), offline=True)

    (line,) = (run.folder / "thoughts.jsonl").read_text().splitlines()
    kept = [own for own in json.loads(line)["call"] if own["thoughts"]]
    (note,) = [note for note in run.report.data.notes if "own thoughts lead to the answer" in note]
    held_out = 2
    assert len(kept) - held_out <= int(note.split(" in ")[1].split(" of ")[0]) <= len(kept)
    assert len(kept) >= 5  # it solves what it was taught
    assert {own["how"] for own in kept} <= {"sampled", "hinted"}

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a resumed run must not think again")

    monkeypatch.setattr(own_thoughts, "sample", never)
    (run.folder / "report.json").unlink()
    again = tune_recipe(wanted, out=tmp_path / "keep", callbacks=Callbacks(), offline=True)
    assert note in again.report.data.notes
