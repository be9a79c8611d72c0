"""requirements.lock: what `make setup` installs, by hash, and the page of licences made from it."""

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import licences

ROOT = Path(__file__).parents[1]


def test_every_locked_file_has_a_hash_and_torch_is_left_to_the_machine() -> None:
    entries = [entry for entry in (ROOT / "requirements.lock").read_text().split("\n") if not entry.startswith("#")]
    packages = [index for index, line in enumerate(entries) if line[:1].isalnum()]
    assert len(packages) > 100
    assert all(entries[index + 1].startswith("    --hash=sha256:") for index in packages)
    assert not any("://" in line or line.startswith(("torch=", "nvidia-", "-")) for line in entries)


def test_the_lock_holds_a_version_for_every_dependency_of_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {one.name: str(one.specifier).removeprefix("==") for one in licences.locked()}
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name, part in extras.items() if name != "ray" for line in part)]
    wanted = [one for one in map(Requirement, lines) if one.name not in ("torch", "tunesmith")]
    missing = [str(one) for one in wanted if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0"))]
    assert not missing, f"run `make lock` for {missing}"


@pytest.mark.skipif(sys.platform != "linux", reason="packages of other platforms have other rows")
def test_the_page_of_licences_is_that_of_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = licences.page()
    assert page == licences.PAGE.read_text(), "run `make licences`"
    assert "not stated" not in page
