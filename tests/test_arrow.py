"""The import arrow of DESIGN §3, read from the source: leftwards only, and no torch in `data`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tunesmith"

# Left to right as on the design's page: a room may import what stands in an earlier line, or itself.
ARROW = (
    {"errors"},
    {"data"},
    {"events"},
    {"model"},
    {"objectives", "techniques"},
    {"aliases"},
    {"recipe"},
    {"training", "inference", "evaluation"},
    {"decision", "feedback"},
    {"report"},
    {"workflows"},
    {"web"},
    {"cli"},
)
PLACE = {room: place for place, rooms in enumerate(ARROW) for room in rooms}
# The package's own front and `python -m tunesmith` stand outside: the front looks names up late, in any room.
OUTSIDE = {"__init__", "__main__"}


def room_of(parts: tuple[str, ...]) -> str:
    """`("tunesmith", "data", "rows")` lies in `data`; the front itself is `__init__`."""
    return parts[1] if len(parts) > 1 else "__init__"


def source_files(package: Path = PACKAGE) -> list[Path]:
    return sorted(package.rglob("*.py"))


def dotted(path: Path, package: Path) -> tuple[str, ...]:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(tree: ast.AST, module: tuple[str, ...], *, is_package: bool) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, dotted name) of every import below `tree`, wherever it stands, relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(alias.name.split("."))) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start: tuple[str, ...] = ()
            if node.level:
                start = module[: len(module) - node.level + is_package]
            base = (*start, *(node.module.split(".") if node.module else ()))
            yield from ((node.lineno, (*base, alias.name)) for alias in node.names)


def faults(package: Path) -> list[str]:
    """Every import that goes to the right, sideways, or from a room that the arrow does not know."""
    found = []
    for path in source_files(package):
        module = dotted(path, package)
        room = room_of(module)
        if room in OUTSIDE:
            continue
        if room not in PLACE:
            found.append(f"{path.name}: the room {room!r} is not on the arrow; give it a place in ARROW")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, target in imported(tree, module, is_package=path.name == "__init__.py"):
            if target[0] != "tunesmith" or room_of(target) not in PLACE:
                continue
            to = room_of(target)
            if to != room and PLACE[to] >= PLACE[room]:
                found.append(f"{'.'.join(module)}:{line}: {room} imports {to}")
    return found


def at_module_level(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions and without what only type checkers read."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST:
            named = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            return ast.Pass() if named else self.generic_visit(node)

    return Prune().visit(tree)


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh Python holds after running `code`."""
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
    found = faults(PACKAGE)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("inference", "from tunesmith.training.fit import fit"),
        ("objectives", "def f():\n    import tunesmith.techniques.lora"),
        ("data", "from tunesmith import model"),
        ("model", "from ..cli import main"),
        (
            "objectives",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tunesmith.recipe import Recipe",
        ),
        ("attic", "import json"),
    ],
)
def test_an_import_to_the_right_or_sideways_is_caught(tmp_path: Path, room: str, line: str):
    folder = tmp_path / "tunesmith" / room
    folder.mkdir(parents=True)
    (folder / "planted.py").write_text(line)
    assert len(faults(tmp_path / "tunesmith")) == 1


def test_an_import_to_the_left_passes(tmp_path: Path):
    folder = tmp_path / "tunesmith" / "cli"
    folder.mkdir(parents=True)
    (folder / "planted.py").write_text(
        "from tunesmith import __version__\nfrom ..data.rows import read_rows\nfrom . import shared"
    )
    assert faults(tmp_path / "tunesmith") == []


def test_data_names_neither_torch_nor_transformers_at_module_level():
    found = []
    for path in source_files():
        module = dotted(path, PACKAGE)
        if room_of(module) not in ("errors", "data"):
            continue
        tree = at_module_level(ast.parse(path.read_text(encoding="utf-8")))
        heavy = [name for _, name in imported(tree, module, is_package=False) if name[0] in ("torch", "transformers")]
        found += [f"{'.'.join(module)}: {'.'.join(name)}" for name in heavy]
    assert not found, "\n".join(found)


def test_importing_all_of_data_loads_neither_torch_nor_transformers():
    names = [".".join(dotted(path, PACKAGE)) for path in source_files() if path.parent == PACKAGE / "data"]
    assert loaded_by("\n".join(f"import {name}" for name in names)) & {"torch", "transformers"} == set()


def test_importing_tunesmith_loads_neither_torch_nor_transformers():
    assert loaded_by("import tunesmith") & {"torch", "transformers", "peft", "sklearn", "matplotlib"} == set()
