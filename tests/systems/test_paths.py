"""Paths, names and command lines of Windows, where our code tells them apart; and the time of an import."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.systems.windows import reserved
from tunesmith.cli.terminal import IN_ASCII
from tunesmith.config import make_recipe
from tunesmith.data import files
from tunesmith.data.files import command_line, function_in, move, portable, quoted, split_command, storage_error
from tunesmith.data.remote import remote_url
from tunesmith.display import model_label
from tunesmith.errors import ModelError, RecipeError
from tunesmith.models.loading.locate import check_hub_id
from tunesmith.objectives import multitask
from tunesmith.web.studio.workspace import Workspace, WorkspaceError, clean_name

DRIVES = (r"C:\rows.jsonl", "C:/rows.jsonl", r"\\server\share\rows.jsonl", r"..\rows.jsonl", "D:rows.jsonl")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch of Windows in the functions of `files`."""
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))


@pytest.mark.parametrize("path", DRIVES)
def test_a_path_of_windows_is_not_an_address_and_not_a_name_of_the_hub(path: str) -> None:
    assert remote_url(path) == ""
    with pytest.raises(ModelError, match="no such"):
        check_hub_id(path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("rules:short", ("rules", "short")),
        ("path/rules.py:short", ("path/rules.py", "short")),
        (r"C:\path\rules.py:short", (r"C:\path\rules.py", "short")),
        (r"C:\runs\reward", (r"C:\runs\reward", "")),
        ("C:/runs/reward", ("C:/runs/reward", "")),
        ("runs/reward", ("runs/reward", "")),
    ],
)
def test_the_colon_of_a_drive_begins_no_function(name: str, parts: tuple[str, str]) -> None:
    assert function_in(name) == parts


def test_a_reward_of_another_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text("", encoding="utf-8")
    raw = {"model": "m", "data": "rows.jsonl", "objective": {"kind": "rl", "reward": "rules:short"}}
    recipe, _ = make_recipe(raw, place="recipe", folder=tmp_path)
    assert recipe.objective.reward == f"{tmp_path / 'rules.py'}:short"


@pytest.mark.parametrize("path", [r"C:\models\bert", "C:/models/bert", r"models\bert"])
def test_reports_name_a_model_without_its_path(path: str) -> None:
    assert model_label(path) == ("bert" if path[1] == ":" else path)


@pytest.mark.usefixtures("windows")
def test_printed_commands_are_quoted_as_cmd_takes_them() -> None:
    words = ["tunesmith", "tune", r"C:\Eigene Dateien\rows.jsonl", r"C:\rows.jsonl", "a&b", 'say "hi"', ""]
    line = r'tunesmith tune "C:\Eigene Dateien\rows.jsonl" C:\rows.jsonl "a&b" "say \"hi\"" ""'
    assert command_line(words) == line
    assert quoted(Path("rows.jsonl")) == "rows.jsonl"
    engine = r'"C:\my env\vllm.exe" --dtype half'
    assert split_command(engine) == [r"C:\my env\vllm.exe", "--dtype", "half"]
    assert split_command(r'vllm --cache="C:\my env" --on') == ["vllm", r"--cache=C:\my env", "--on"]


def test_printed_commands_are_quoted_as_other_shells_take_them() -> None:
    assert command_line(["tunesmith", "a b"]) == "tunesmith 'a b'"
    assert split_command("'a b' c") == ["a b", "c"]


@pytest.mark.parametrize("name", ["con", "NUL.jsonl", "com1.csv", "aux.clean.jsonl", "rows.", "rows. "])
def test_names_that_windows_reserves_are_changed(name: str) -> None:
    assert not reserved(portable(name))
    assert portable(name).rstrip(". ") == portable(name)
    assert portable(portable(name)) == portable(name)


@pytest.mark.parametrize("names", [("mood", "Mood"), ("mood", "con")])
def test_tasks_have_folders_of_their_own_on_windows(names: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {name: {"objective": "classify", "data": {"train": "rows.jsonl"}} for name in names}
    raw = {"model": "m", "objective": {"kind": "multitask", "tasks": tasks}}
    assert list(make_recipe(raw, place="recipe")[0].tasks) == [*names]
    monkeypatch.setattr(multitask, "sys", SimpleNamespace(platform="win32"))
    with pytest.raises(RecipeError, match="rename one"):
        make_recipe(raw, place="recipe")


def test_the_studio_gives_no_file_a_name_that_windows_reserves() -> None:
    assert clean_name("con.csv") == "_con.csv"
    assert clean_name("rows.csv") == "rows.csv"
    for name in ("nul", "rows."):
        with pytest.raises(WorkspaceError):
            Workspace.new_name(name)


@pytest.mark.usefixtures("windows")
def test_a_rename_waits_until_a_virus_scanner_has_closed_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def replace(path: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "in use", str(path))

    monkeypatch.setattr(Path, "replace", replace)
    move(tmp_path / "a", tmp_path / "b")
    assert len(calls) == 3
    monkeypatch.setattr(files, "SCANNED", 0.1)
    calls[:] = []
    monkeypatch.setattr(files.time, "sleep", lambda seconds: calls.clear())
    with pytest.raises(PermissionError):
        move(tmp_path / "a", tmp_path / "b")


def test_errors_of_libraries_in_rust_keep_their_text() -> None:
    found = storage_error(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert "No space left on device" in str(found)
    assert "free some space" in str(found)


def test_a_console_without_an_arrow_gets_ascii(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="cp1252", errors=IN_ASCII) as out:
        out.write("0.5 \N{RIGHTWARDS ARROW} \N{MINUS SIGN}0.1, \N{CJK UNIFIED IDEOGRAPH-4E2D}, \N{POUND SIGN}")
    assert (tmp_path / "out").read_text("cp1252") == "0.5 -> -0.1, \\u4e2d, \N{POUND SIGN}"


def test_importing_the_package_takes_a_tenth_of_a_second() -> None:
    """Measured by processor time, of which a busy machine adds little; the best of three."""
    program = "import time; start = time.process_time(); import tunesmith; print(time.process_time() - start)"
    command = [sys.executable, "-c", program]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    times = [float(subprocess.run(command, env=env, capture_output=True, check=True).stdout) for _ in range(3)]
    assert min(times) <= 0.1
