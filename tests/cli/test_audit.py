"""`tunesmith audit` as people and programs meet it, and the gate before `tunesmith tune`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

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


def test_a_file_of_prompts_alone_is_audited_and_its_copy_is_for_rl(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say the number {n} in words."} for n in range(30)])
    done = command("audit", rows, "--fix", tmp_path / "copy.jsonl", "--offline")
    assert done.code == 0, done.err
    assert "detected prompts: prompt -> user turn" in done.err
    assert done.err.endswith(f"next: tunesmith tune {tmp_path / 'copy.jsonl'} --set objective.kind=rl --dry-run\n")
    write_rows(rows, [{"prompt": f"Say the number {n} in words.", "completion": None} for n in range(30)])
    assert "no known format has the columns ['prompt', 'completion']" in command("audit", rows, "--offline").err


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_prompts_written_as_turns_are_audited_as_rl_reads_them(command: Command, tmp_path: Path, column: str) -> None:
    asked = [{column: [{"role": "user", "content": f"Say the number {n} in words."}]} for n in range(30)]
    rows = write_rows(tmp_path / "prompts.jsonl", asked)
    assert command("audit", rows, "--offline").code == 0
    assert command("audit", rows, "--set", "objective.kind=rl", "--offline").code == 0


def test_a_blocking_fault_exits_with_1_and_is_shown_with_its_line(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), SECRET])
    done = command("audit", rows, "--offline")
    assert done.code == 1
    assert "rows.jsonl:61: (1 of 20 characters) the key is <secret>" in done.out
    assert f"error: {rows}: secret; run `tunesmith audit {rows} --fix {tmp_path / 'rows-clean.jsonl'}`" in done.err


def test_a_fault_that_no_copy_can_fix_is_left_to_the_user(command: Command, tmp_path: Path) -> None:
    same = [{**row, "label": "spam"} for row in reviews()]
    rows = write_rows(tmp_path / "rows.jsonl", same)
    alone = command("audit", rows, "--offline")
    assert alone.code == 1
    assert alone.err.endswith(f"error: {rows}: one_class; add rows with other labels\n")
    fixed = command("audit", rows, "--fix", tmp_path / "copy.jsonl", "--offline")
    assert (fixed.code, fixed.err.splitlines()[-1]) == (1, alone.err.splitlines()[-1])
    write_rows(rows, [*same, {**SECRET, "label": "spam"}])
    both = command("audit", rows, "--offline")
    assert both.code == 1
    command_of_copy = f"run `tunesmith audit {rows} --fix {tmp_path / 'rows-clean.jsonl'}`, or correct the rows"
    assert both.err.endswith(f"error: {rows}: secret, one_class; {command_of_copy}, and add rows with other labels\n")


def test_the_page_is_one_file_and_escapes_what_rows_hold(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), {**SECRET, "text": f"<script>x</script> {SECRET['text']}"}])
    page = tmp_path / "audit.html"
    command("audit", rows, "--html", page, "--offline")
    html = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;x&lt;/script&gt;" in html
    assert "<script" not in html
    assert "http" not in html.split("</style>")[1]


@pytest.mark.parametrize("option", ["--out", "--html", "--fix"])
def test_no_file_that_is_read_is_written_over(command: Command, tmp_path: Path, option: str) -> None:
    rows, test = write_rows(tmp_path / "rows.jsonl", reviews()), write_rows(tmp_path / "test.jsonl", reviews(3))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {train: rows.jsonl, test: test.jsonl}\nobjective: classify\n")
    (tmp_path / "link.jsonl").symlink_to(rows)
    before = {path: path.read_bytes() for path in (rows, test, recipe)}
    for out in (rows, test, tmp_path / "link.jsonl", tmp_path / "nowhere" / ".." / "rows.jsonl"):
        for source in ((rows, "--against", test), (recipe,)):
            done = command("audit", *source, option, out, "--offline")
            assert done.code == 2, done.out
            assert done.err.count("\n") <= 2
    if option != "--fix":
        done = command("audit", recipe, option, recipe, "--offline")
        assert f"error: {recipe}: this audit also reads or writes this file; choose another path" in done.err
    assert {path: path.read_bytes() for path in before} == before


def test_two_files_of_one_name_are_refused(command: Command, tmp_path: Path) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", [*reviews(), SECRET]), tmp_path / "clean.jsonl"
    for words in (
        ("--fix", out, "--out", out),
        ("--html", out, "--out", out),
        ("--fix", out, "--html", f"{out}.log.jsonl"),
    ):
        assert command("audit", rows, *words, "--offline").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("option", ["--out", "--html", "--fix"])
def test_a_folder_that_is_not_there_is_told_before_the_audit(
    command: Command, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.pipelines.audit.audit", None)  # not called, or the command breaks
    rows = write_rows(tmp_path / "rows.jsonl", reviews())
    done = command("audit", rows, option, tmp_path / "gone" / "x.jsonl", "--offline")
    assert done.code == 2
    assert "x.jsonl: the folder does not exist; create it or give a file in another one" in done.err


def test_a_file_without_rows_is_told_by_its_lines(command: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("text\n[1]\n")
    done = command("audit", tmp_path / "broken.jsonl", "--offline")
    assert done.code == 2
    assert "error: broken.jsonl:1: invalid JSON (Expecting value at column 1); write one JSON object" in done.err
    assert "broken.jsonl:2: expected an object, got list; " in done.err


def test_an_audit_that_wrote_a_copy_succeeds_and_names_the_next_command(command: Command, tmp_path: Path) -> None:
    half, out = tmp_path / "half.jsonl", tmp_path / "ok.jsonl"
    write_rows(half, reviews())
    half.write_text(half.read_text() + "{broken\n")
    blocked = command("audit", half, "--offline")
    assert blocked.code == 1
    assert f"unreadable; run `tunesmith audit {half} --fix {tmp_path / 'half-clean.jsonl'}`" in blocked.err
    done = command("audit", half, "--fix", out, "--offline")
    assert done.code == 0
    assert "error" not in done.err
    assert done.err.endswith(f"next: tunesmith tune {out} --dry-run\n")


def test_a_table_with_blank_cells_and_unknown_columns_goes_from_file_to_run(
    command: Command, tmp_path: Path, tiny_llama: Path
) -> None:
    lines = [f"{i},message number {i} about the {('bill', 'lid')[i % 2]},{('a', 'b')[i % 2]}" for i in range(40)]
    lines[4], lines[9] = "4,message number 4,", "9,,b"
    (tmp_path / "blank cells.csv").write_text("\n".join(["nr,remarks,queue", *lines]) + "\n")
    done = command("audit", tmp_path / "blank cells.csv", "--offline")
    assert done.code == 0, done.err
    assert "guessed from column names and values; check it: remarks -> text, queue -> label" in done.err
    recipe = tmp_path / "recipe.yaml"
    made = command("init", tmp_path / "blank cells.csv", "--out", recipe, "--offline")
    assert made.code == 0, made.err
    assert "1 of 40 rows skipped, 'queue' is blank" in made.out
    assert command("tune", recipe, "--model", tiny_llama, "--dry-run", *PLAIN).code == 0
    assert command("audit", recipe, "--offline").code == 0


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


def test_the_suggested_copy_drops_the_leaks_that_were_found(command: Command, tmp_path: Path) -> None:
    rows, test = write_rows(tmp_path / "rows.jsonl", reviews()), write_rows(tmp_path / "test.jsonl", reviews()[:2])
    blocked = command("audit", rows, "--against", test, "--offline")
    words = shlex.split(re.findall(r"`tunesmith (audit [^`]*)`", blocked.err)[-1])
    assert words == ["audit", str(rows), "--against", str(test), "--fix", str(tmp_path / "rows-clean.jsonl")]
    assert command(*words, "--offline").code == 0
    kept = (tmp_path / "rows-clean.jsonl").read_text()
    assert not any(str(row["text"]) in kept for row in reviews()[:2])


def test_the_suggested_copy_is_checked_by_the_same_model(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.pipelines.audit.model_tools", lambda name, **_: {})
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), SECRET])
    done = command("audit", rows, "--model", "my model", "--offline")
    assert f"run `tunesmith audit {rows} --model 'my model' --fix" in done.err


def test_tune_suggests_a_copy_without_near_copies_of_the_test_file(
    command: Command, tmp_path: Path, tiny_bert: Path
) -> None:
    texts = [f"the delivery of order {i} to town {i * 7} was a day late and nobody wrote to us" for i in range(60)]
    labels = ["positive" if i % 2 else "negative" for i in range(60)]
    train = [{"text": f"{text} at all", "label": label} for text, label in zip(texts, labels, strict=True)]
    test = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    rows, held = write_rows(tmp_path / "rows.jsonl", train), write_rows(tmp_path / "test.jsonl", test)
    words = ("--set", f"data.test={held}", "--model", tiny_bert, "--technique", "full", "--dry-run", *PLAIN)
    stopped = command("tune", rows, *words)
    assert stopped.code == 1
    assert f"--against {held} --fix {tmp_path / 'rows-clean.jsonl'}`" in stopped.err


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


def test_one_named_column_is_laid_over_those_that_were_detected(command: Command, tmp_path: Path) -> None:
    blank = [{"text": "", "body": row["text"], "label": row["label"], "queue": row["label"]} for row in reviews()]
    named = [{**row, "text": row["body"], "body": ""} for row in blank]
    rows, other = write_rows(tmp_path / "rows.jsonl", named), write_rows(tmp_path / "b.jsonl", blank)
    assert command("audit", rows, "--offline").code == 0
    worse = command("audit", rows, "--set", "objective.text=body", "--offline")
    assert worse.code == 1
    assert "body -> input text, label -> target" in worse.err
    assert command("audit", other, "--set", "objective.text=body", "--offline").code == 0
    label = command("audit", rows, "--set", "objective.label=queue", "--offline")
    assert "text -> input text, queue -> target" in label.err
    gone = command("audit", rows, "--set", "objective.text=bdy", "--offline")
    assert gone.code == 2
    assert "no column 'bdy'; did you mean 'body'?" in gone.err


def test_a_named_column_that_fits_no_part_of_the_rows_is_refused(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "why?", "answer": f"since {i}", "x": "y"} for i in range(9)])
    done = command("audit", rows, "--set", "objective.text=x", "--offline")
    assert done.code == 2
    assert "rows.jsonl: no column for label next to objective.text; detected prompt_completion rows; name" in done.err


def test_tune_stops_at_a_secret_and_force_goes_on(command: Command, tmp_path: Path, tiny_bert: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl", [{**row, "text": f"{row['text']} AKIAIOSFODNN7EXAMPLE"} for row in reviews()]
    )
    words = ("tune", rows, "--model", tiny_bert, "--technique", "full", "--dry-run", *PLAIN)
    stopped = command(*words)
    assert stopped.code == 1
    assert "training rows (rows.jsonl:" in stopped.err
    assert "continue with `--set data.audit=note`" in stopped.err
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


def test_a_folder_is_sent_to_collect(command: Command, tmp_path: Path) -> None:
    (tmp_path / "manuals").mkdir()
    (tmp_path / "manuals" / "a.txt").write_text("words")
    said = command("audit", tmp_path / "manuals")
    assert said.code == 2
    assert "a folder" in said.err
    assert "tunesmith collect" in said.err


def test_a_recipe_of_several_tasks_is_asked_for_the_file_of_one(command: Command, tmp_path: Path) -> None:
    rows, recipe = write_rows(tmp_path / "rows.jsonl", reviews()), tmp_path / "two.yaml"
    task = "{objective: classify, data: {train: rows.jsonl}}"
    recipe.write_text(f"objective: {{kind: multitask, tasks: {{one: {task}, two: {task}}}}}\n", encoding="utf-8")
    said = command("audit", recipe)
    assert said.code == 2
    finding = "a recipe of 2 tasks, each with its own rows; name the file of one task, such as that of one"
    assert f"error: {recipe}: {finding}: `tunesmith audit {rows}`" in said.err


def test_a_copy_that_the_disk_refuses_is_one_line_and_no_traceback(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tunesmith.data.audit.fix._open", refuse)
    rows = write_rows(tmp_path / "rows.jsonl", [*reviews(), SECRET])
    done = command("audit", rows, "--fix", tmp_path / "clean.jsonl", "--offline")
    assert done.code == 2
    assert "clean.jsonl: cannot be written (Permission denied); give a path in an existing, writable folder" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_columns_beside_those_that_are_named_are_audited_too(command: Command, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Why is it {word} {i}?", "answer": f"Since {word} {i}."} for i in range(8) for word in "ab"]
    systems = ("Be brief.", "Be formal, key AKIAIOSFODNN7EXAMPL0.")
    rows = write_rows(tmp_path / "rows.jsonl", [{"system": said, **pair} for said in systems for pair in pairs])
    named = ["--set", "objective={kind: instruct, prompt: prompt, answer: answer}"]
    done = command("audit", rows, *named, "--fix", tmp_path / "out.jsonl", "--offline")
    kept = (tmp_path / "out.jsonl").read_text()
    assert "Be brief." in kept
    assert "Be formal, key <secret>." in kept
    assert "secret" in done.err + done.out


def test_a_judgement_of_which_one_part_is_named_is_audited(command: Command, tmp_path: Path) -> None:
    rows = [{"prompt": f"Why {i}?", "chosen": f"Since {i}.", "rejected": f"No {i}."} for i in range(20)]
    place = write_rows(tmp_path / "rows.jsonl", rows)
    named = ["--set", "objective={kind: preference, prompt: prompt, chosen: chosen}"]
    assert command("audit", place, *named, "--offline").code == 0


def test_a_recipe_in_json_is_audited_as_one(command: Command, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", reviews())
    page = tmp_path / "recipe.json"
    page.write_text(json.dumps({"data": rows.name, "objective": "classify"}))
    assert command("audit", page, "--offline").code == 0


def test_secrets_in_the_parts_of_a_content_are_masked(command: Command, tmp_path: Path) -> None:
    def turns(i: int) -> list[dict[str, object]]:
        said = f"The key {i} is AKIAIOSFODNN7EXAMPL0."
        return [
            {"role": "user", "content": [{"type": "text", "text": said}]},
            {"role": "assistant", "content": f"Thank you, {i}."},
        ]

    place = write_rows(tmp_path / "rows.jsonl", [{"messages": turns(i)} for i in range(20)])
    command("audit", place, "--fix", tmp_path / "out.jsonl", "--offline")
    assert "AKIA" not in (tmp_path / "out.jsonl").read_text()
    assert command("audit", tmp_path / "out.jsonl", "--offline").code == 0
