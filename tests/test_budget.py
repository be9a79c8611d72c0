"""The size of the code: a file is at most 300 lines, a function 40, its parameters five."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tunesmith"
FILE_LINES, FUNCTION_LINES, PARAMETERS = 300, 40, 5

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parameters(function: Function, *, in_class: bool) -> int:
    """How many parameters a caller has to know: `self` and `cls` are not among them."""
    given = function.args
    named = [*given.posonlyargs, *given.args]
    received = in_class and bool(named) and named[0].arg in ("self", "cls")
    starred = (given.vararg is not None) + (given.kwarg is not None)
    return len(named) - received + len(given.kwonlyargs) + starred


def functions(tree: ast.AST, *, in_class: bool = False) -> list[tuple[Function, bool]]:
    """Every function below `tree`, each with whether it is a method; a decorator counts as its first line."""
    found: list[tuple[Function, bool]] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            found.append((node, in_class))
        inside = in_class and not isinstance(node, Function) and not isinstance(node, ast.ClassDef)
        found += functions(node, in_class=isinstance(node, ast.ClassDef) or inside)
    return found


def over_budget(name: str, source: str) -> list[str]:
    """One line for each breach in one file."""
    lines = source.count("\n") + (not source.endswith("\n"))
    found = [f"{name}: {lines} lines, allowed {FILE_LINES}"] if lines > FILE_LINES else []
    for function, in_class in functions(ast.parse(source)):
        place = f"{name}:{function.lineno} {function.name}"
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES:
            found.append(f"{place}: {length} lines, allowed {FUNCTION_LINES}")
        if (count := parameters(function, in_class=in_class)) > PARAMETERS:
            found.append(f"{place}: {count} parameters, allowed {PARAMETERS}")
    return found


def test_the_package_is_within_its_budget():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += over_budget(str(path.relative_to(PACKAGE.parent)), path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("lines", "breaches"), [(300, 0), (301, 1)])
def test_a_file_may_have_three_hundred_lines(lines: int, breaches: int):
    assert len(over_budget("x.py", "a = 1\n" * lines)) == breaches


@pytest.mark.parametrize(("lines", "breaches"), [(40, 0), (41, 1)])
def test_a_function_may_have_forty_lines_with_its_signature(lines: int, breaches: int):
    assert len(over_budget("x.py", "async def f():\n" + "    a = 1\n" * (lines - 1))) == breaches


@pytest.mark.parametrize(
    ("source", "breaches"),
    [
        ("def f(a, b, /, c, *, d, e): ...", 0),
        ("def f(a, b, /, c, *, d, e, g): ...", 1),
        ("def f(a, b, c, d, *e, **g): ...", 1),
        ("class A:\n    def f(self, a, b, c, d, e): ...", 0),
        ("class A:\n    if True:\n        def f(cls, a, b, c, d, e, g): ...", 1),
        ("def f(self, a, b, c, d, e): ...", 1),
    ],
)
def test_a_function_may_have_five_parameters_beside_self(source: str, breaches: int):
    assert len(over_budget("x.py", source)) == breaches
