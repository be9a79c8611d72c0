"""The release: version and changelog, equal builds, and the files that other tools run and nobody runs here."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from scripts import release

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGELOG = """# Changelog

## [Unreleased]

Nothing has been released yet. Errors were
never in a release.

### Added

- A thing.
"""
OLDER = "\n## [0.1.0] - 2026-01-02\n\n- The first.\n"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert Path(project["tool"]["hatch"]["version"]["path"]) == release.VERSION_FILE
    assert release.set_version('a\n__version__ = "0.1.0"\nb\n', "0.2.0") == 'a\n__version__ = "0.2.0"\nb\n'


@pytest.mark.parametrize("version", ["0.0.9", "v0.2.0", "0.2", "0.2.0+mine", "0.2.0.dev1", "next"])
def test_a_version_that_is_older_or_not_in_its_normal_form_is_refused(version: str):
    if version == "0.2":
        assert '"0.2"' in release.set_version('__version__ = "0.1.0"\n', version)
        return
    with pytest.raises(SystemExit, match="VERSION="):
        release.set_version('__version__ = "0.1.0"\n', version)


@pytest.mark.parametrize("older", ["", OLDER])
def test_the_changelog_is_cut_where_a_new_empty_section_begins(older: str):
    cut = release.cut_changelog(CHANGELOG + older, "0.2.0", dt.date(2026, 11, 29))
    head = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-11-29\n\n### Added\n\n- A thing.\n"
    assert cut == head + older
    assert release.day_of(cut, "0.2.0") == dt.date(2026, 11, 29)
    with pytest.raises(SystemExit, match="section already"):
        release.cut_changelog(cut, "0.2.0", dt.date(2026, 11, 30))
    with pytest.raises(SystemExit, match="nothing to release"):
        release.cut_changelog(cut, "0.3.0", dt.date(2026, 11, 30))


def test_the_project_changelog_can_be_cut():
    cut = release.cut_changelog((ROOT / "CHANGELOG.md").read_text(), "99.0.0", dt.date(2026, 11, 29))
    assert "## [Unreleased]\n\n## [99.0.0] - 2026-11-29\n\n### " in cut


def test_a_version_whose_tag_exists_is_refused(tmp_path: Path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "x"], ["tag", "v0.2.0"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    release.refuse_tag(tmp_path, "0.2")
    release.refuse_tag(tmp_path, "0.2.1")
    with pytest.raises(SystemExit, match="the tag v0.2.0 exists"):
        release.refuse_tag(tmp_path, "0.2.0")


def test_a_release_changes_version_changelog_and_the_page_that_denies_it(tmp_path: Path):
    names = [release.VERSION_FILE, Path("CHANGELOG.md"), release.INSTALL_PAGE]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    release.write_version(tmp_path, "99.0.0", dt.date(2026, 11, 29))
    texts = [(tmp_path / name).read_text() for name in names]
    assert not any("Nothing has been released" in text for text in texts)
    assert "Linux, macOS or Windows.\n" in texts[2]


def test_two_builds_of_one_checkout_are_equal_and_a_changed_file_shows(tmp_path: Path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "tunesmith").mkdir()
    (tmp_path / "tunesmith" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("out*\n")
    wheel, sdist = sorted(release.build_twice(tmp_path, tmp_path / "out", 1_700_000_000), key=lambda one: one.suffix)[
        ::-1
    ]
    assert {one.date_time for one in ZipFile(wheel).infolist()} == {(2023, 11, 14, 22, 13, 20)}
    with tarfile.open(sdist) as archive:
        assert {one.mtime for one in archive} == {1_700_000_000}
    first = release.digest(wheel)
    (tmp_path / "tunesmith" / "__init__.py").write_text('__version__ = "0.1.0"\nMORE = 1\n')
    again = release.build_twice(tmp_path, tmp_path / "out2", 1_700_000_000)
    assert first not in map(release.digest, again)
    # What `make release` asks of both files before it names the commands of the upload.
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *again], check=True, capture_output=True)


def test_a_wheel_is_built_of_the_files_that_the_image_gets(tmp_path: Path):
    names = [line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")]
    files = subprocess.run(
        ["git", "ls-files", "-z", *names], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, files.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    built = set(ZipFile(next((tmp_path / "out").glob("*.whl"))).namelist())
    assert {name for name in files.split("\0") if name.startswith("tunesmith/")} <= built


@pytest.mark.long
def test_the_bill_of_materials_has_the_locked_core_with_hashes_and_no_extra(tmp_path: Path):
    document = json.loads(release.sbom(ROOT, tmp_path / "bom.json").read_text())
    parts = {one["name"]: one for one in document["components"]}
    assert document["bomFormat"] == "CycloneDX"
    assert {"torch", "transformers", "numpy", "pydantic-core"} <= set(parts)
    assert not {"pytest", "fastapi", "pyarrow"} & set(parts)
    assert all("version" in one for name, one in parts.items() if name != "torch")
    assert "SHA-256" in json.dumps(parts["transformers"])


def test_the_workflows_ask_for_no_more_rights_than_they_need_and_pin_what_they_use():
    assert [one.name for one in WORKFLOWS] == ["release.yml", "tests.yml"]
    for path in WORKFLOWS:
        flow = yaml.safe_load(path.read_text())
        assert flow["permissions"] == {"contents": "read"}
        used = [step["uses"] for job in flow["jobs"].values() for step in job.get("steps", []) if "uses" in step]
        assert used
        assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+(\.\d+)*", one) for one in used)
        assert all(job["timeout-minutes"] for job in flow["jobs"].values() if "steps" in job)


def test_the_workflow_of_tests_covers_every_system_and_python():
    matrix = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]


def test_only_the_job_that_publishes_can_ask_for_a_token_and_it_runs_nothing_else():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert jobs["build"]["needs"] == "tests"  # and they run the other workflow whole
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert jobs["publish"]["environment"] == "pypi"
    assert [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


def test_the_image_runs_without_rights_and_writes_to_one_volume_only():
    lines = (ROOT / "Containerfile").read_text().splitlines()
    final = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 10001:10001" in final
    assert "VOLUME /data" in final
    written = [value for line in final for value in re.findall(r"(?:HOME|TMPDIR|CACHE)=(\S+)", line)]
    assert written
    assert all(value.startswith("/data") for value in written)
    assert not any("pip" in line or "apt" in line for line in final)
