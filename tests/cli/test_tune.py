from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import EAGER, PLAIN, Command, reviews, write_rows
from tunesmith.training import fit


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_alone_are_enough_and_the_result_is_told(command: Command, review_file: Path, tiny_llama: Path):
    done = command("tune", review_file.name, "--model", tiny_llama, *PLAIN, *EAGER)
    assert done.code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("reviews-classify-lora-llama-")
    for said in (
        "detected text_label: text -> input text, label -> target",
        "rows with the same 'group' stay in one split",
        "60 rows: train 42, validation 6, test 12",
        "cpu with 1 thread",
        "validation loss",
        "evaluating the tuned model",
    ):
        assert said in done.err
    for said in ("accuracy", "macro F1", f"in {folder}:", f'tunesmith ask {folder} "..."'):
        assert said in done.out


def test_a_broken_gate_exits_1_on_every_call(command: Command, review_file: Path, tiny_bert: Path):
    words = ("--model", tiny_bert, "--technique", "full", "--out", "run", *PLAIN, *EAGER)
    for _ in range(2):
        done = command("tune", review_file, *words, "--set", "gates.min_delta=0.9")
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith("error: run: min_delta: accuracy changed by ")
    assert (Path("run") / "model").is_dir()


def test_the_dry_run_shows_rows_as_the_loss_sees_them_and_writes_nothing(
    command: Command, review_file: Path, tiny_llama: Path
):
    done = command("tune", review_file, "--model", tiny_llama, *PLAIN, "--dry-run")
    assert done.code == 0
    assert "[[positive" in done.out
    assert written(review_file.parent) == ["reviews.jsonl"]


def test_json_is_the_report_and_where_the_run_lies(command: Command, encoder_run: Path, tiny_bert: Path):
    data = encoder_run.parent / "rows.jsonl"
    words = ("--model", tiny_bert, "--technique", "full", "--out", encoder_run)
    done = command("tune", data, *words, *PLAIN, *EAGER, "--json")
    document = json.loads(done.out)
    assert document.pop("already_finished") is True
    assert document.pop("folder") == str(encoder_run)
    assert document == json.loads((encoder_run / "report.json").read_text())


def test_the_schema_is_printed_without_a_recipe(command: Command):
    done = command("tune", "--schema")
    assert done.code == 0
    assert {"task", "tasks", "baselines", "speed", "data"} <= set(json.loads(done.out)["properties"])


def test_a_finished_run_is_left_as_it_is_and_said_so(command: Command, encoder_run: Path, tiny_bert: Path):
    before = (encoder_run / "report.json").stat().st_mtime_ns
    words = ("--model", tiny_bert, "--technique", "full", "--out", encoder_run)
    done = command("tune", encoder_run.parent / "rows.jsonl", *words, *PLAIN, *EAGER)
    assert done.code == 0
    assert "use --force to tune again" in done.out.splitlines()[0]
    assert (encoder_run / "report.json").stat().st_mtime_ns == before


def test_names_from_other_tools_are_told_with_what_they_became(command: Command, review_file: Path, tiny_llama: Path):
    recipe = review_file.with_name("recipe.yaml")
    recipe.write_text(f"model_name_or_path: {tiny_llama}\ntrain_file: reviews.jsonl\nobjective: classify\nlora_r: 2\n")
    done = command("tune", recipe, "--out", "run", "--set", "lr=0.01", *PLAIN, *EAGER, "--json")
    assert done.code == 0
    for note in ("lora_r -> technique.rank: 2", "train_file -> data.train: ", "lr -> schedule.learning_rate"):
        assert note in done.err
    saved = (Path("run") / "recipe.yaml").read_text()
    assert "rank: 2" in saved


def test_ctrl_c_saves_and_the_same_command_gives_the_run_that_was_never_stopped(
    command: Command, review_file: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
):
    def tune(out: str) -> Any:
        words = ("--model", tiny_bert, "--technique", "full", "--out", out, "--json")
        return command("tune", review_file, *words, *PLAIN, *EAGER, "--set", "schedule.epochs=4")

    whole = tune("whole")
    with monkeypatch.context() as patch:
        patch.setattr(fit, "accumulate_gradients", _pressing_ctrl_c(fit.accumulate_gradients, at=5))
        stopped = tune("again")
    assert stopped.code == 130
    assert "interrupted: stopped after step 5 of 12, progress saved; run the same command again" in stopped.err
    assert json.loads(stopped.out)["error"]["exit_code"] == 130
    assert not (Path("again") / "report.json").exists()
    again = tune("again")
    assert "float32, as at the start of this run" in again.err
    assert (whole.code, again.code) == (0, 0)
    same = [json.loads(done.out)["training"] for done in (whole, again)]
    for training in same:
        del training["probe_first"], training["probe_last"]
    assert same[0] == same[1]
    weights = [(Path(name) / "model" / "model.safetensors").read_bytes() for name in ("whole", "again")]
    assert weights[0] == weights[1]


def _pressing_ctrl_c(step: Callable[..., Any], *, at: int) -> Callable[..., Any]:
    """The training step, with SIGINT sent during its `at`th call."""
    calls = []

    def pressed(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **more)

    return pressed


def test_force_begins_again_in_a_folder_that_holds_another_run(
    command: Command, review_file: Path, encoder_run: Path, tiny_bert: Path
):
    shutil.copytree(encoder_run, "run")
    words = ("--model", tiny_bert, "--technique", "full", "--out", "run", *PLAIN, *EAGER)
    refused = command("tune", review_file, *words, "--set", "seed=1")
    assert refused.code == 2
    assert "holds a run of another recipe" in refused.err
    forced = command("tune", review_file, *words, "--set", "seed=1", "--force")
    assert forced.code == 0
    assert "deleted the run in run" in forced.err
    assert "seed: 1" in (Path("run") / "recipe.yaml").read_text()


def test_force_deletes_nothing_that_is_not_a_run(command: Command, review_file: Path):
    thesis = Path("thesis")
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    done = command("tune", review_file, "--out", thesis, "--force", *PLAIN)
    line = "error: thesis: not a run folder, not overwritten by --force; use another --out\n"
    assert done == (2, "", line)
    assert (thesis / "chapter.txt").read_text() == "years of work"


def _notes() -> str:
    """What is said of the review file before anything else."""
    return (
        "detected text_label: text -> input text, label -> target\n"
        "rows with the same 'group' stay in one split (--set data.group= for no groups)\n"
        "epochs: 5, about 14 steps (change with --set schedule.epochs=N)\n"
    )


def faulty(name: str) -> list[dict[str, object]]:
    """Reviews with one fault."""
    rows = reviews()
    if name == "fraction":
        rows[16]["label"] = 0.5
    elif name == "one class":
        for row in rows:
            row["label"] = "positive"
    elif name == "no label":
        for row in rows:
            del row["label"]
    return rows


@pytest.mark.parametrize(
    ("fault", "code", "place", "finding"),
    [
        ("fraction", 2, "reviews.jsonl:17", "column 'label' must be a word, a whole number or a list"),
        ("one class", 2, "reviews.jsonl", "only one label ('positive') in 60 rows"),
        ("no label", 2, "reviews.jsonl", "no column 'label'"),
    ],
)
def test_faulty_rows_are_one_line_and_nothing_is_written(
    command: Command, tmp_path: Path, fault: str, code: int, place: str, finding: str
):
    data = write_rows(tmp_path / "reviews.jsonl", faulty(fault))
    words = ("--set", "objective={kind: classify, text: text, label: label}", *PLAIN)
    done = command("tune", data, "--set", "data.group=", *words)
    assert_refused(done, code, place, finding)
    assert written(tmp_path) == ["reviews.jsonl"]


def assert_refused(done: Any, code: int, place: str, finding: str) -> None:
    """The last line of stderr is the only one that is an error, begins with the place and has the finding."""
    assert done.code == code
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert errors == done.err.splitlines()[-1:]
    assert errors[0].startswith(f"error: {place}")
    assert finding in errors[0]
    assert "; " in errors[0]


def test_broken_json_is_told_with_its_line(command: Command, tmp_path: Path):
    data = write_rows(tmp_path / "reviews.jsonl", reviews())
    lines = data.read_text().splitlines()
    lines[16] = '{"text": "cut short'
    data.write_text("\n".join(lines))
    assert_refused(command("tune", data, *PLAIN), 2, "reviews.jsonl:17", "invalid JSON")
    assert written(tmp_path) == ["reviews.jsonl"]


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("revews.jsonl", "no such file; did you mean 'reviews.jsonl'?"),
        ("recipe.yml", "no such file; did you mean 'recipe.yaml'?"),
    ],
)
def test_a_missing_file_is_told_with_the_nearest_name(command: Command, review_file: Path, source: str, finding: str):
    review_file.with_name("recipe.yaml").write_text("model: x\n")
    assert_refused(command("tune", source, *PLAIN), 2, source, finding)
    assert written(review_file.parent) == ["recipe.yaml", "reviews.jsonl"]


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("schedule.epocs=2", "unknown key 'schedule.epocs', did you mean 'epochs'?"),
        ("technique=lorra", "unknown kind 'lorra', did you mean 'lora'?"),
        ("technique.rank=0", "technique.rank"),
        (
            "objective.balance=no-idea",
            "objective.balance=no-idea: expected auto, true or false, got 'no-idea'; use auto, the default",
        ),
    ],
)
def test_a_wrong_key_or_value_of_the_recipe_is_told_with_the_nearest(
    command: Command, review_file: Path, change: str, finding: str
):
    done = command("tune", review_file, *PLAIN, "--set", change)
    assert done.code == 2
    assert finding in done.err
    assert len(done.err.splitlines()) == 1
    assert written(review_file.parent) == ["reviews.jsonl"]


def test_an_unknown_model_offline_is_refused_before_anything_is_written(command: Command, review_file: Path):
    done = command("tune", review_file, "--model", "nobody/nothing", *PLAIN)
    assert_refused(done, 2, "nobody/nothing", "offline")
    assert written(review_file.parent) == ["reviews.jsonl"]


def test_weights_that_could_run_code_are_refused(command: Command, review_file: Path, tiny_llama: Path):
    unsafe = review_file.with_name("unsafe")
    unsafe.mkdir()
    for path in tiny_llama.iterdir():
        if path.suffix == ".json":
            (unsafe / path.name).write_bytes(path.read_bytes())
    torch.save({}, unsafe / "pytorch_model.bin")
    done = command("tune", review_file, "--model", "./unsafe", *PLAIN)
    assert_refused(done, 2, "./unsafe", "safetensors")
    assert written(review_file.parent) == ["reviews.jsonl", "unsafe"]


def test_a_test_file_that_is_the_train_file_is_refused_with_exit_1(command: Command, review_file: Path):
    words = ("--set", f"data.test={review_file}", "--set", "data.group=")
    done = command("tune", review_file, *words, *PLAIN)
    assert_refused(done, 1, "reviews.jsonl", "60 of 60 test rows also appear in")
    assert written(review_file.parent) == ["reviews.jsonl"]


def test_an_encoder_is_refused_where_a_decoder_is_needed(command: Command, tmp_path: Path, tiny_bert: Path):
    rows: list[dict[str, object]] = [{"prompt": f"q {i}", "answer": f"a {i}"} for i in range(30)]
    data = write_rows(tmp_path / "qa.jsonl", rows)
    done = command("tune", data, "--model", tiny_bert, *PLAIN)
    assert_refused(done, 2, "objective instruct", "needs a decoder")
    assert written(tmp_path) == ["qa.jsonl"]
