"""The import rules of the package: leftwards only, no cycles, and no torch in `data` and `metrics`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tunesmith"

# A package may import packages of earlier lines and itself; packages on one line do not import each other.
ARROW = (
    {"errors", "display", "phases", "progress", "quick_imports"},
    {"plugins"},
    {"data"},
    {"events", "models", "metrics"},
    {"objectives", "techniques"},
    {"config"},
    {"inference", "retrieval", "annotation"},
    {"training"},
    {"evaluation"},
    {"report"},
    {"pipelines", "web"},
    {"cli"},
    {"notebook"},
    {"api"},
    {"api_data", "api_models", "api_training"},
)
POSITION = {package: position for position, packages in enumerate(ARROW) for package in packages}
# `tunesmith/__init__` imports lazily from anywhere, `python -m tunesmith` starts the command line, and `model` holds
# deprecated import paths.
UNRESTRICTED = {"__init__", "__main__", "model"}

# What every pipeline may use.
COMMON = {"requests", "many_runs"}
# Pipelines that may use another pipeline, after `tunesmith.pipelines.`.
PIPELINE_EDGES = {
    ("tune", "plan"),
    ("tune", "certify"),
    ("tune", "verify"),
    ("export", "verify"),
    ("demo", "tune"),
    ("compare", "tune"),
    ("compare", "collect"),
    ("feedback", "evaluate"),
    ("rlhf", "tune"),
    ("rlhf", "feedback"),
    ("rlhf", "compare"),
    ("learning_curve", "tune"),
    ("init", "plan"),
    ("replay", "tune"),
    ("rebase", "tune"),
}


def dotted(path: Path, package: Path = PACKAGE) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    return {dotted(path, package): path for path in sorted(package.rglob("*.py"))}


def imports(path: Path, module: str, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of the package in a file, lazy and type-only ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "tunesmith")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + (path.name == "__init__.py")]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            if base.split(".")[0] == "tunesmith":
                for alias in node.names:
                    submodule = f"{base}.{alias.name}"
                    package = base == "tunesmith" and alias.name in POSITION
                    yield node.lineno, submodule if submodule in known or package else base


def top_level(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def violations(package: Path) -> list[str]:
    """List every import to the right, sideways, or from a package that the arrow does not list."""
    known = modules(package)
    messages = []
    for module, path in known.items():
        source = top_level(module)
        if source in UNRESTRICTED:
            continue
        if source not in POSITION:
            messages.append(f"{path.name}: the package {source!r} is not in ARROW; add it")
            continue
        for line, target in imports(path, module, known):
            destination = top_level(target)
            if destination in POSITION and destination != source and POSITION[destination] >= POSITION[source]:
                messages.append(f"{module}:{line}: {source} imports {destination}")
    return messages


def graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Map each module to the modules it imports; a package's `__init__` re-exports and counts as its own node."""
    known = modules(package)
    return {
        module: {target for _, target in imports(path, module, known) if target in known and target != module}
        for module, path in known.items()
        if module != "tunesmith"
    }


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one member (Tarjan 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for neighbour in sorted(edges.get(node, ())):
            if neighbour not in index:
                visit(neighbour)
                lowest[node] = min(lowest[node], lowest[neighbour])
            elif neighbour in stack:
                lowest[node] = min(lowest[node], index[neighbour])
        if lowest[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in edges:
        if node not in index:
            visit(node)
    return components


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh Python holds after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_every_import_goes_leftwards():
    messages = violations(PACKAGE)
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("inference", "from tunesmith.training.fit import fit"),
        ("objectives", "def f():\n    import tunesmith.techniques.lora"),
        ("data", "from tunesmith import models"),
        ("models", "from ..cli import main"),
        (
            "objectives",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tunesmith.config import Recipe",
        ),
        ("attic", "import json"),
    ],
)
def test_an_import_to_the_right_or_sideways_is_caught(tmp_path: Path, package: str, line: str):
    folder = tmp_path / "tunesmith" / package
    folder.mkdir(parents=True)
    (folder / "planted.py").write_text(line)
    assert len(violations(tmp_path / "tunesmith")) == 1


def test_an_import_to_the_left_passes(tmp_path: Path):
    folder = tmp_path / "tunesmith" / "cli"
    folder.mkdir(parents=True)
    (folder / "planted.py").write_text(
        "from tunesmith import __version__\nfrom ..data.readers.read import read_rows\nfrom . import shared"
    )
    assert violations(tmp_path / "tunesmith") == []


def test_no_two_modules_import_each_other_directly_or_through_others():
    assert cycles(graph()) == []


def test_no_two_subpackages_import_each_other():
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, targets in graph().items():
        source = module if known[module].name == "__init__.py" else module.rpartition(".")[0]
        for target in targets:
            destination = target if known[target].name == "__init__.py" else target.rpartition(".")[0]
            # A package and its own sub-package are one unit here; the test above covers their files.
            nested = source.startswith(destination) or destination.startswith(source)
            if not nested:
                edges.setdefault(source, set()).add(destination)
    assert cycles(edges) == []


def test_a_planted_cycle_is_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_a_pipeline_uses_only_the_pipelines_it_may():
    messages = []
    for module, targets in graph().items():
        parts = module.split(".")
        if parts[1] != "pipelines" or len(parts) < 3:
            continue
        for target in targets:
            other = target.split(".")
            if other[1] != "pipelines" or len(other) < 3 or other[2] in {parts[2], *COMMON}:
                continue
            if (parts[2], other[2]) not in PIPELINE_EDGES:
                messages.append(f"{module} imports {target}")
    assert not messages, "\n".join(sorted(messages))


def test_importing_all_of_data_and_metrics_loads_neither_torch_nor_transformers():
    names = [name for name in modules() if top_level(name) in ("errors", "data", "metrics") and "worker" not in name]
    assert len(names) > 80
    assert loaded_by("\n".join(f"import {name}" for name in names)) & {"torch", "transformers"} == set()


def test_importing_tunesmith_loads_neither_torch_nor_transformers():
    assert loaded_by("import tunesmith") & {"torch", "transformers", "peft", "sklearn", "matplotlib"} == set()


def test_there_are_at_most_fifteen_packages_and_twenty_files_in_one_folder():
    packages = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(packages) <= 15
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        if folder != PACKAGE / "cli" / "commands":  # one command per file, so as many files as commands
            assert len(list(folder.glob("*.py"))) <= 20, folder
