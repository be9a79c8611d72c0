"""`tunesmith evaluate` as people and programs meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, write_rows

ROWS: list[dict[str, object]] = [
    {"text": f"camera {i} is {word}", "label": label}
    for i, (word, label) in enumerate([("good", "positive"), ("bad", "negative")] * 4)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "new.jsonl", ROWS)


def test_json_is_the_task_of_a_comparison(command: Command, encoder_run: Path, rows: Path) -> None:
    done = command("evaluate", encoder_run, "--data", rows, "--against", "base", "--json", "--offline")
    assert done.code == 0, done.err
    task = json.loads(done.out)
    assert (task["metric"], task["n"]) == ("accuracy", 8)
    assert task["delta"] == pytest.approx(task["tuned"] - task["base"])
    assert len(task["ci95"]) == 2


def test_the_file_is_given_by_position_or_by_option_and_only_once(
    command: Command, encoder_run: Path, rows: Path
) -> None:
    by_position = command("evaluate", encoder_run, rows, "--json", "--offline")
    by_option = command("evaluate", encoder_run, "--data", rows, "--json", "--offline")
    assert (by_position.code, by_position.out) == (0, by_option.out)
    both = command("evaluate", encoder_run, rows, "--data", "other.jsonl")
    assert both.code == 2
    assert both.err.strip().endswith(
        f"FILE {rows} and --data other.jsonl: two files of rows; give one of them, as in "
        f"`tunesmith evaluate {encoder_run} {rows}`"
    )
    neither = command("evaluate", encoder_run)
    assert neither.code == 2
    assert "no file of rows; give one of them" in neither.err


def test_people_see_a_table_and_programs_a_file(
    command: Command, encoder_run: Path, rows: Path, tmp_path: Path
) -> None:
    out, answers = tmp_path / "score.json", tmp_path / "answers.jsonl"
    done = command("evaluate", encoder_run, "--data", rows, "--offline", "--out", out, "--answers", answers)
    assert done.code == 0, done.err
    assert "macro_f1" in done.out
    assert json.loads(out.read_text())["n"] == 8
    assert [json.loads(line)["gold"] for line in answers.read_text().splitlines()] == [r["label"] for r in ROWS]


def test_the_sentence_of_a_comparison_is_shown(command: Command, encoder_run: Path, rows: Path) -> None:
    done = command("evaluate", encoder_run, "--data", rows, "--against", encoder_run, "--offline")
    assert "95 %" in done.out
    assert (
        "to detect a difference of 0.02, use about 300 test rows" in done.out
    )  # eight rows that are alike prove nothing
    assert f"inconclusive: {encoder_run} " in done.out  # neither is the tuned one
    assert "tuned" not in done.out.splitlines()[-1].replace(str(encoder_run), "")


def test_an_encoder_without_a_head_is_the_users_mistake(command: Command, tiny_bert: Path, rows: Path) -> None:
    done = command("evaluate", tiny_bert, "--data", rows, "--offline", "--json")
    assert done.code == 2
    assert json.loads(done.out)["error"]["kind"] == "RecipeError"
    assert done.err.count("\n") == 1 + done.err.count("evaluating")


def test_the_schema_needs_no_model(command: Command) -> None:
    done = command("evaluate", "--schema")
    assert done.code == 0
    assert "Compared" in json.loads(done.out)["$defs"]
