"""The wheel: built here, installed in an environment of its own, used outside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ("reviews.jsonl", "general.jsonl", "README.md")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its error output is the failure's text."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
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


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_the_installed_command_does_the_whole_demo_outside_the_checkout(outside: Path, tmp_path: Path):
    page = json.loads(run(outside / "tunesmith", "demo", "--offline", "--json", cwd=tmp_path))
    assert [one["model"] for one in page["runs"]] == ["minilm-l6", "smollm2-135m"]
    assert all(one["task"]["verdict"] == "better" for one in page["runs"])
    assert len(page["answers"]) == 3
    for one in page["runs"]:
        assert (tmp_path / one["folder"] / "report.html").is_file()
