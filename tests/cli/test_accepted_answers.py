"""Rows with several accepted answers and a split column, from the file to the predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import EAGER, PLAIN, Command, write_rows
from tunesmith.metrics.task_scores import PER_ROW
from tunesmith.report.predictions import read_predictions


def test_squad_rows_are_tuned_and_scored_by_the_best_accepted_answer(
    command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [
        {
            "question": f"What is number {i}?",
            "context": f"Passage {i}.",
            "answers": {"text": [f"it is {i % 3}", f"{i % 3}"] if i % 8 else [], "answer_start": []},
            "split": "train" if i < 32 else "test",
        }
        for i in range(40)
    ]
    data, out = write_rows(tmp_path / "squad.jsonl", rows), tmp_path / "run"
    words = ("--model", tiny_llama, "--set", "objective.max_new_tokens=8", *PLAIN, *EAGER)
    done = command("tune", data, "--out", out, *words)
    assert done.code == 0, done.err
    assert "split by the column 'split': train 32, test 8 rows" in done.err
    assert "35 of 40 rows have several accepted answers" in done.err
    assert "5 of 40 rows have no accepted answer" in done.err
    found = read_predictions(out)
    assert [row.accepted for row in found[:2]] == [(), ("it is 0", "0")]
    assert found[0].gold == "unanswerable"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    task = report["task"]
    scores = PER_ROW[task["metric"]]([row.reference for row in found], [row.tuned for row in found])
    assert task["tuned"] == pytest.approx(scores.mean())
    assert any("best of up to 2 accepted answers" in note for note in report["data"]["notes"])
