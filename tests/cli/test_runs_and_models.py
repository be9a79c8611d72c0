from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tunesmith.errors import ModelError
from tunesmith.models.loading import bundled_models as shipped


def test_runs_are_listed_with_what_they_brought(command: Command, encoder_run: Path, decoder_run: Path, tmp_path: Path):
    shutil.copytree(encoder_run, tmp_path / "a")
    shutil.copytree(decoder_run, tmp_path / "b")
    (tmp_path / "notes").mkdir()
    found = json.loads(command("runs", tmp_path, "--json").out)["runs"]
    assert {Path(line["run"]).name: line["report"]["task"]["metric"] for line in found} == {
        "a": "accuracy",
        "b": "rouge_l",
    }
    assert {line["state"] for line in found} == {"finished"}
    table = command("runs", tmp_path).out
    assert "classify, full" in table
    assert "instruct, lora" in table


def test_a_folder_that_is_itself_a_run_is_one_line(command: Command, encoder_run: Path):
    (line,) = json.loads(command("runs", encoder_run, "--json").out)["runs"]
    assert line["run"] == str(encoder_run)


def test_an_unfinished_run_is_shown_with_its_step(command: Command, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "journal.jsonl").write_text('{"step": 7, "steps": 20, "loss": 1.0}\n{"step": 7, "validation_loss": 1}\n')
    (line,) = json.loads(command("runs", tmp_path, "--json").out)["runs"]
    assert (line["state"], line["step"]) == ("unfinished, step 7 of 20", 7)
    assert "unfinished, step 7 of 20" in command("runs", tmp_path).out


def test_a_report_that_cannot_be_read_does_not_hide_the_others(command: Command, encoder_run: Path, tmp_path: Path):
    shutil.copytree(encoder_run, tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "report.json").write_text('{"name": 1}')
    done = command("runs", tmp_path, "--json")
    assert {Path(line["run"]).name: line["state"] for line in json.loads(done.out)["runs"]} == {
        "good": "finished",
        "bad": "unreadable",
    }
    assert done.err.startswith("warning: ")


def test_a_journal_that_was_damaged_does_not_hide_the_others(command: Command, encoder_run: Path, tmp_path: Path):
    shutil.copytree(encoder_run, tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{}")
    (tmp_path / "bad" / "journal.jsonl").write_text('{"step" 1}\n{"step": 2}\n')
    done = command("runs", tmp_path, "--json")
    assert {Path(line["run"]).name: line["state"] for line in json.loads(done.out)["runs"]} == {
        "good": "finished",
        "bad": "unreadable",
    }
    assert "journal.jsonl:1: changed since it was written" in done.err


def test_no_runs_yet_is_no_error_but_a_missing_folder_that_was_named_is(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert command("runs") == (0, "no runs in runs; `tunesmith tune RECIPE` creates one\n", "")
    assert command("runs", "none") == (2, "", "error: none: no such folder; name a folder with runs\n")


def test_models_that_are_not_in_the_cache_are_said_to_be_so(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    found = json.loads(command("models", "--json").out)["models"]
    assert [(line["alias"], line["in_cache"], line["bytes"]) for line in found] == [
        ("smollm2-135m", False, None),
        ("minilm-l6", False, None),
    ]
    assert "Apache-2.0" in command("models").out


def test_fetch_offline_without_a_cache_says_how_to_get_them(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    done = command("models", "--fetch", "--offline")
    assert done.code == 2
    assert "error: smollm2-135m: not in " in done.err


def test_fetch_gets_every_alias(command: Command, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(shipped, "fetch", lambda alias, *, offline: asked.append(alias))
    command("models", "--fetch")
    assert asked == ["smollm2-135m", "minilm-l6"]


def test_an_alias_that_fails_is_an_error_line(command: Command, monkeypatch: pytest.MonkeyPatch):
    def fail(alias: str, *, offline: bool) -> Path:
        raise ModelError(f"{alias}: no room; make some")

    monkeypatch.setattr(shipped, "fetch", fail)
    done = command("models", "--fetch")
    assert (done.code, done.err.splitlines()[-1]) == (2, "error: smollm2-135m: no room; make some")


def test_a_run_is_called_by_the_name_of_its_lora(command: Command, decoder_run: Path, tmp_path: Path):
    shutil.copytree(decoder_run, tmp_path / "run")
    page = tmp_path / "run" / "recipe.yaml"
    for options, name in (("dora: true", "dora"), ("quantize: nf4", "qlora"), ("dora: false", "lora")):
        page.write_text(f"technique:\n  kind: lora\n  targets: [a]\n  {options}\n")
        (line,) = json.loads(command("runs", tmp_path / "run", "--json").out)["runs"]
        assert line["report"]["what"].split(", ")[1] == name


@pytest.mark.parametrize("text", ["technique: lora\n", "", "a: [\n", "technique:\n- x\n"])
def test_a_recipe_that_somebody_edited_does_not_hide_the_runs(
    command: Command, decoder_run: Path, tmp_path: Path, text: str
):
    shutil.copytree(decoder_run, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(text)
    (line,) = json.loads(command("runs", tmp_path / "run", "--json").out)["runs"]
    assert line["report"]["what"].split(", ")[1] == "lora"


@pytest.mark.long
def test_a_model_is_checked_and_its_certificate_printed(
    command: Command, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    done = command("models", "check", tiny_llama)
    assert done.code == 0
    assert done.out.startswith(f"{tiny_llama}: llama, decoder, ")
    assert "claims hold" in done.out.splitlines()[-1]
    (kept,) = (tmp_path / "certificates").glob("*.json")
    certificate = json.loads(command("models", "check", tiny_llama, "--json").out)["certificate"]
    assert kept.stem == certificate["digest"]
    assert {check["outcome"] for check in certificate["checks"]} <= {"passed", "not measured"}


def test_a_claim_that_fails_exits_with_one(
    command: Command, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr("tunesmith.pipelines.certify.certify.difference", lambda found, expected: 1.0)
    done = command("models", "check", tiny_bert)
    assert done.code == 1
    assert "failed" in done.out


def test_a_model_that_cannot_be_loaded_is_one_line(command: Command, tiny_bert: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "brandnew"}))
    done = command("models", "check", folder)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith(f"error: {folder}: transformers ")
    assert "does not support the model type 'brandnew'; upgrade it" in done.err


@pytest.mark.parametrize("words", [("check",), ("chek", "m"), ("check", "a", "b")])
def test_other_words_after_models_are_refused(command: Command, words: tuple[str, ...]):
    done = command("models", *words)
    assert done.code == 2
    assert "expected `check MODEL`" in done.err
