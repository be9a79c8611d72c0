"""`tunesmith audit` as people and programs meet it, and the gate before `tunesmith tune`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import PLAIN, Command, reviews, write_rows

SECRET = {"text": "the key is AKIAIOSFODNN7EXAMPLE", "label": "positive", "group": "source 99"}


def test_sound_rows_exit_with_0_and_programs_get_one_document(command: Command, review_file: Path) -> None:
    done = command("audit", review_file, "--json", "--offline")
    page = json.loads(done.out)
    assert done.code == 0, done.err
    assert page["rows"] == 60
    assert {"findings", "rows", "verdict"} <= set(page)
    for finding in page["findings"]:
        assert {"kind", "severity", "count", "rows", "cure"} <= set(finding)
        assert finding["count"] == len(finding["rows"])


def test_a_blocking_fault_exits_with_1_and_is_shown_with_its_line(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), SECRET])
    done = command("audit", rows, "--offline")
    assert done.code == 1
    assert "rows.jsonl:61: (1 of 20 characters) the key is <secret>" in done.out
    assert f"error: {rows}: secret; cure the rows, or use --fix OUT" in done.err


def test_the_page_is_one_file_and_escapes_what_rows_hold(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), {**SECRET, "text": f"<script>x</script> {SECRET['text']}"}])
    page = tmp_path / "audit.html"
    command("audit", rows, "--html", page, "--offline")
    html = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;x&lt;/script&gt;" in html
    assert "<script" not in html
    assert "http" not in html.split("</style>")[1]


def test_a_cleaned_copy_is_written_and_passes(command: Command, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", [*reviews(), SECRET]), tmp_path / "clean.jsonl"
    done = command("audit", rows, "--fix", out, "--offline")
    assert "rows kept" in done.out
    assert command("audit", out, "--offline").code == 0
    assert command("audit", rows, "--fix", out, "--offline").code == 2


def test_test_rows_in_the_data_are_leaks(command: Command, tmp_path: Path) -> None:
    rows, test = write_rows(tmp_path / "rows.jsonl", reviews()), write_rows(tmp_path / "test.jsonl", reviews()[:2])
    done = command("audit", rows, "--against", test, "--json", "--offline")
    leaks = next(f for f in json.loads(done.out)["findings"] if f["kind"] == "leak")
    assert done.code == 1
    assert {"rows.jsonl:1", "rows.jsonl:2"} <= set(leaks["rows"])


def test_columns_are_named_by_a_recipe_or_on_the_command_line(command: Command, tmp_path: Path) -> None:
    rows = [{"body": row["text"], "queue": row["label"]} for row in reviews()]
    write_rows(tmp_path / "rows.jsonl", rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: rows.jsonl\nobjective: {kind: classify, text: body, label: queue}\n")
    assert command("audit", recipe, "--offline").code == 0
    named = ("--set", "objective.text=body", "--set", "objective.label=queue")
    assert command("audit", tmp_path / "rows.jsonl", *named, "--offline").code == 0
    wrong = command("audit", tmp_path / "rows.jsonl", "--set", "objective.text=bdy", *named[2:], "--offline")
    assert wrong.code == 2
    assert "did you mean 'body'?" in wrong.err


def test_tune_stops_at_a_secret_and_force_goes_on(command: Command, tmp_path: Path, tiny_bert: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl", [{**row, "text": f"{row['text']} AKIAIOSFODNN7EXAMPLE"} for row in reviews()]
    )
    words = ("tune", rows, "--model", tiny_bert, "--technique", "full", "--dry-run", *PLAIN)
    stopped = command(*words)
    assert stopped.code == 1
    assert "training rows (rows.jsonl:" in stopped.err
    assert "--force goes on" in stopped.err
    assert command(*words, "--force").code == 0


def test_a_model_tells_rows_too_long_for_it_and_an_encoder_compares_meanings(
    command: Command, tmp_path: Path, tiny_bert: Path
) -> None:
    long = {"text": "the phone is good " * 200, "label": "positive"}
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), long])
    test = write_rows(tmp_path / "test.jsonl", [{"text": "nothing like it", "label": "negative"}])
    done = command("audit", rows, "--against", test, "--model", tiny_bert, "--json", "--offline")
    found = {finding["kind"]: finding["rows"] for finding in json.loads(done.out)["findings"]}
    assert found["truncated"] == ["rows.jsonl:61"]
