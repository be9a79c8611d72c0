"""`tunesmith init` as people and programs meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Command


def test_the_recipe_is_shown_and_lies_in_the_file(command: Command, review_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    done = command("init", review_file, "--out", out)
    assert done.code == 0, done.err
    assert out.read_text().strip() in done.out
    assert f"tunesmith tune {out} --dry-run" in done.out


def test_a_second_time_it_is_left_as_it_is(command: Command, review_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert command("init", review_file, "--out", out).code == 0
    before = out.read_text()
    again = command("init", review_file, "--out", out, "--technique", "full")
    assert (again.code, out.read_text()) == (2, before)
    assert "already exists and is not overwritten" in again.err


def test_programs_get_the_recipe_with_its_reasons(command: Command, review_file: Path, tmp_path: Path) -> None:
    done = command("init", review_file, "--out", tmp_path / "r.yaml", "--json", "--set", "data.test=0.3")
    page = json.loads(done.out)
    assert page["recipe"]["data"]["test"] == 0.3
    assert page["reasons"]["data.test"] == "set on the command line"
    assert page["left_out"] == {}


def test_the_written_recipe_runs_dry(command: Command, review_file: Path, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.yaml"
    assert command("init", review_file, "--out", out, "--model", tiny_llama).code == 0
    done = command("tune", out, "--dry-run", "--offline", "--set", "machine.threads=1")
    assert done.code == 0, done.err
    assert "[[positive<|im_end|>]]" in done.out


def test_the_choice_of_the_model_is_printed_in_json_too_and_loads_no_torch(review_file: Path, tmp_path: Path) -> None:
    words = ["init", str(review_file), "--quick", "--offline", "--out", str(tmp_path / "r.yaml"), "--json"]
    code = f"import sys; from tunesmith.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = json.loads(done.stdout)
    assert [part["name"] for part in page["candidates"]] == ["tf-idf", "minilm-l6", "smollm2-135m"]
    assert {"basis", "score", "seconds", "memory", "holds"} <= set(page["candidates"][0])
    assert page["recipe"]["model"] == "minilm-l6"
    assert page["reasons"]["model"].startswith("TF-IDF with logistic regression scores ")


def test_people_read_the_choice_above_the_recipe(command: Command, review_file: Path, tmp_path: Path) -> None:
    done = command("init", review_file, "--quick", "--offline", "--out", tmp_path / "r.yaml")
    lines = done.out.splitlines()
    assert lines[0].startswith("TF-IDF with logistic regression scores ")
    assert lines.index("recommended model: minilm-l6") < lines.index("model: minilm-l6")
    assert "--model smollm2-135m" in done.out


def test_keys_of_another_tool_that_are_left_out_are_said(command: Command, review_file: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "axolotl.yaml"
    foreign.write_text("base_model: smollm2-135m\nadapter: lora\nlora_r: 8\nflash_attention: true\n")
    done = command("init", review_file, "--from", foreign, "--out", tmp_path / "r.yaml", "--objective", "classify")
    assert done.code == 0, done.err
    assert "not converted: flash_attention:" in done.err
    assert "rank: 8" in done.out


def test_without_rows_or_a_file_there_is_nothing_to_look_at(command: Command) -> None:
    done = command("init")
    assert (done.code, done.out) == (2, "")


def test_test_rows_do_not_choose_the_model_and_what_would_stop_the_run_is_said(
    command: Command, tmp_path: Path
) -> None:
    rows = [
        {"text": f"the phone is {'good' if i % 2 else 'bad'} in number {i}", "label": "np"[i % 2]} for i in range(100)
    ]
    rows[3]["text"] += " AKIAIOSFODNN7EXAMPLE"
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = command("init", data, "--quick", "--offline", "--out", tmp_path / "r.yaml")
    assert done.code == 0
    assert "by cross-validation on 80 rows" in done.err
    assert "warning: `tunesmith tune` will stop:" in done.err
    assert "secret: 1 of " in done.err


def test_columns_of_unknown_names_are_guessed_for_the_objective_that_is_asked_for(
    command: Command, tmp_path: Path
) -> None:
    rows = [{"Nachricht": f"eine Nachricht an uns {i}", "Team": ("Technik", "Rechnung")[i % 2]} for i in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, asked in enumerate((("--objective", "classify"), ("--set", "objective=classify"))):
        done = command("init", data, "--out", tmp_path / f"{number}.yaml", "--quick", "--json", *asked)
        assert done.code == 0, done.err
        objective = json.loads(done.out)["recipe"]["objective"]
        assert (objective["kind"], objective["text"], objective["label"]) == ("classify", "Nachricht", "Team")
