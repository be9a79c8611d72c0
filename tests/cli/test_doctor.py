from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tunesmith.cli.commands import doctor
from tunesmith.cli.commands.doctor import FAIL, OK, WARN, disk, extras, libraries, models
from tunesmith.models.kept_answers import once
from tunesmith.models.loading import bundled_models as shipped


def test_the_machine_that_runs_the_tests_is_well(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "models", list)
    document = json.loads(command("doctor", "--json").out)
    states = {check["name"]: check["state"] for check in document["checks"]}
    assert document["ok"]
    assert states["python"] == states["libraries"] == states["machine"] == OK
    assert {"extra hub", "extra parquet"} <= set(states)


@pytest.fixture(autouse=True)
def environment_with_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that uv has made has none."""
    monkeypatch.setattr(doctor, "find_spec", lambda name: name)


def test_a_library_out_of_its_range_or_missing_fails_with_its_cure(monkeypatch: pytest.MonkeyPatch):
    have = {"torch": "2.9.1+cpu", "transformers": "6.0.0", "peft": "0.18", "rich": "13.9.0"}
    monkeypatch.setattr(doctor, "_version", have.get)
    wanted = ["torch>=2.10", "transformers<6,>=5.3", "peft>=0.18.0", "rich>=13.9", "jinja2>=3.1"]
    assert libraries(wanted) == [
        ("torch", FAIL, "2.9.1+cpu, supported: >=2.10", "pip install 'torch>=2.10'"),
        ("transformers", FAIL, "6.0.0, supported: <6", "pip install 'transformers<6,>=5.3'"),
        ("jinja2", FAIL, "not installed", "pip install 'jinja2>=3.1'"),
    ]


def test_libraries_in_their_ranges_are_one_line():
    (check,) = libraries(["torch>=2.10", "pyarrow>=21; extra == 'parquet'"])
    assert check.state == OK
    assert check.finding.startswith("1 libraries, all supported versions (torch 2.")


def test_an_extra_that_is_not_installed_is_well_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", {"datasets": "4.8"}.get)
    wanted = ["torch>=2", "datasets>=4.7; extra == 'hub'", "pyarrow>=21; extra == 'parquet'"]
    assert extras([*wanted, 'pytest>=9; extra == "dev"']) == [
        ("extra hub", OK, "installed", ""),
        (
            "extra parquet",
            OK,
            "not installed (missing pyarrow); optional",
            "pip install 'tunesmith[parquet]'",
        ),
    ]


def test_an_extra_with_a_library_out_of_its_range_warns_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", {"fastapi": "0.100", "uvicorn": "0.34"}.get)
    wanted = ["fastapi>=0.115; extra == 'serve'", "uvicorn>=0.34; extra == 'serve'", "lxml>=5; extra == 'serve'"]
    wanted.append("absent>=1; sys_platform == 'elsewhere' and extra == 'serve'")
    found = "not installed (missing lxml; fastapi 0.100, supported: >=0.115); optional"
    assert extras(wanted) == [("extra serve", WARN, found, "pip install 'tunesmith[serve]'")]


def test_an_environment_of_uv_gets_commands_of_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(doctor.sys, "executable", "/an env/bin/python")
    assert doctor.install("a>=1") == "uv pip install --python '/an env/bin/python' 'a>=1'"
    (tmp_path / "uv-receipt.toml").touch()
    assert doctor.install("a>=1") == "uv tool install --with 'a>=1' tunesmith"


@pytest.mark.parametrize(("free", "state"), [(600_000_000, FAIL), (2_000_000_000, WARN), (5_000_000_000, OK)])
def test_a_full_disk_fails_and_a_nearly_full_one_warns(free: int, state: str):
    found = disk(lambda path: free)
    assert [check.state for check in found] == [state, state]
    assert all(bool(check.fix) == (state != OK) for check in found)


def test_a_model_that_is_missing_warns_and_a_damaged_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    folder = shipped.folder_of("minilm-l6")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    files = {"config.json": {"size": 2, "sha256": "0" * 64}}
    (folder / shipped.MANIFEST).write_text(json.dumps({"files": files}))
    missing, damaged = models()
    assert (missing.state, missing.fix) == (WARN, "run `tunesmith models --fetch`")
    assert (damaged.state, damaged.finding) == (FAIL, "damaged: config.json")
    assert damaged.fix == f"delete {folder}, then run `tunesmith models --fetch`"


def test_doctor_exits_1_on_a_failure(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "all_checks", lambda: [doctor.DoctorCheck("x", FAIL, "broken", "repair it")])
    done = command("doctor")
    assert done.code == 1
    assert done.out.splitlines() == ["fail  x  broken", "         fix: repair it"]


def test_a_long_finding_is_wrapped_and_a_cure_stands_on_its_own_line_only_where_there_is_one(
    command: Command, monkeypatch: pytest.MonkeyPatch
):
    long = "12.3 GB free at " + " and ".join(["a/folder/of/some/depth"] * 6)
    checks = [
        doctor.DoctorCheck("disk for models", OK, long),
        doctor.DoctorCheck("x", WARN, "odd", "pip install 'odd>=2'"),
    ]
    monkeypatch.setattr(doctor, "all_checks", lambda: checks)
    lines = command("doctor").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.strip() for line in lines if "fix:" in line] == ["fix: pip install 'odd>=2'"]
    assert " ".join(" ".join(lines[:-2]).split()) == f"ok disk for models {long}"


def test_doctor_shows_what_runs_keep_and_clears_it(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr("tunesmith.models.kept_answers.cache_dir", lambda: tmp_path)
    monkeypatch.setattr(doctor, "all_checks", lambda: [*doctor.caches(), *doctor.python()])
    once("probes", abs, -1)
    for kind, name in (("tokens", "a"), ("tokens", "b"), ("models", "smollm2")):
        (tmp_path / kind / name).mkdir(parents=True)
    lines = command("doctor").out.splitlines()[:2]
    assert [line.split()[:3] for line in lines] == [["ok", "cache", "answers"], ["ok", "cache", "tokens"]]
    assert lines[0].endswith("1 probes")
    assert lines[1].endswith("2 entries")
    assert "cache" not in command("doctor", "--clear-cache").out
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert command("doctor", "--clear-cache").code == 0
