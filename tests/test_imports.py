"""What importing needs and costs: the core dependencies are enough, and the front is quick."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tunesmith"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# It stands before all finders and answers None: then a name looks *not installed*. A finder that raised would
# also break the libraries that politely ask `find_spec` first.
HIDE = """
import sys
class Without:
    def __init__(self, finders, hidden):
        self.finders, self.hidden = finders, hidden
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        asked = (f.find_spec(name, path, target) for f in self.finders if hasattr(f, "find_spec"))
        return next((spec for spec in asked if spec is not None), None)
    def find_distributions(self, *context):
        for finder in self.finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*context)
    def invalidate_caches(self):
        pass
sys.meta_path[:] = [Without(list(sys.meta_path), set(sys.argv[1].split()))]
"""
IMPORT_ALL = """
import importlib, traceback
for name in sys.argv[2].split():
    try:
        importlib.import_module(name)
    except BaseException:
        print(f"{name}: {traceback.format_exc(limit=-1).splitlines()[-1]}")
"""


def module_names() -> list[str]:
    """Every module of the package but `__main__`, whose import is its run."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if path.stem != "__main__")
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]


def plain(requirement: str) -> str:
    """The distribution that a requirement names: `mlflow-skinny>=3.5` is `mlflow-skinny`."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def extras() -> dict[str, set[str]]:
    """The distributions of each extra that users install."""
    listed = PROJECT["optional-dependencies"]
    return {name: {plain(r) for r in rs} - {"tunesmith"} for name, rs in listed.items() if name != "dev"}


def modules_of(distributions: set[str]) -> set[str]:
    """The top-level modules that these distributions bring."""
    return {
        module for module, names in packages_distributions().items() if {plain(name) for name in names} & distributions
    }


def third_party(tree: ast.AST) -> set[str]:
    """The top-level modules that a file imports from outside Python and this package, at any level."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"tunesmith"}


def least_cpu(command: Sequence[str]) -> float:
    """The least processor seconds of five runs: other work disturbs them less than seconds on the clock.

    Compiled code is kept, as it is for a user, whatever the environment of the tests says.
    """
    resource = pytest.importorskip("resource")  # not on Windows
    times, keeping = [], {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, env=keeping, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return float(min(times))


def test_every_module_imports_without_any_extra():
    hidden = modules_of(set().union(*extras().values()))
    done = subprocess.run(
        [sys.executable, "-c", HIDE + IMPORT_ALL, " ".join(sorted(hidden)), " ".join(module_names())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout, done.stdout


def test_a_hidden_module_looks_uninstalled_to_import_and_to_find_spec():
    code = HIDE + "import importlib.util\nprint(importlib.util.find_spec('yaml'))\nimport yaml"
    done = subprocess.run([sys.executable, "-c", code, "yaml"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "None"
    assert "ModuleNotFoundError: No module named 'yaml'" in done.stderr


def test_every_library_that_the_package_imports_is_declared():
    declared = {plain(r) for r in PROJECT["dependencies"]}.union(*extras().values())
    homes = packages_distributions()
    missing = set()
    # pydantic requires pydantic_core at one exact version; only the kernel of a notebook imports IPython.
    brought = {"pydantic_core", "IPython"}
    for path in sorted(PACKAGE.rglob("*.py")):
        for module in third_party(ast.parse(path.read_text(encoding="utf-8"))):
            if not {plain(name) for name in homes.get(module, [module])} & declared and module not in brought:
                missing.add(f"{path.relative_to(ROOT)}: {module}")
    assert not missing, "\n".join(sorted(missing))


def test_importing_tunesmith_takes_less_than_a_tenth_of_a_second():
    bare = least_cpu([sys.executable, "-c", "pass"])
    assert least_cpu([sys.executable, "-c", "import tunesmith"]) - bare < 0.1


def test_help_is_there_in_less_than_a_quarter_of_a_second():
    assert least_cpu([str(Path(sys.executable).with_name("tunesmith")), "--help"]) < 0.25


def test_tune_starts_without_libraries_that_it_needs_later_or_never():
    later = {"scipy.stats", "sklearn", "matplotlib", "pandas", "fastapi"}
    code = f"import sys, tunesmith.pipelines.tune.tune\nprint(*sorted({later} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


QUICK = """
import gc, sys
from contextlib import ExitStack
import tunesmith
from tunesmith import quick_imports
assert gc.isenabled() and sys.meta_path[0] is quick_imports.FINDER
collected = []
gc.callbacks.append(lambda phase, info: collected.append(phase))
import torch
assert len(collected) <= 2, "only once it is over"
gc.callbacks.clear()

import peft
assert "torch._inductor.compile_fx" not in sys.modules, "the compiler"

made = []
real = torch.compile = lambda function, **options: made.append(options) or function
with ExitStack() as stack:
    quick_imports.compile_later(stack)
    twice = torch.compile(lambda value: 2 * value, dynamic=True)
    @torch.compile(dynamic=False)
    def thrice(value):
        return 3 * value
assert torch.compile is real and not made
assert [twice(1), twice(2), thrice(1)] == [2, 4, 3] and made == [{"dynamic": True}, {"dynamic": False}]
assert gc.isenabled() and not gc.get_freeze_count()
quick_imports.FINDER.own = True
import sklearn.linear_model
assert gc.isenabled() and gc.get_freeze_count()
"""


def test_large_libraries_are_imported_without_collection_and_without_what_nobody_calls():
    done = subprocess.run([sys.executable, "-c", QUICK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_touches_what_windows_lacks_without_a_fallback():
    lacking = {"resource", "fcntl", "termios", "pwd", "signal.SIGKILL", "signal.SIGPIPE", "os.killpg"}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not (imported | used) & lacking, path
