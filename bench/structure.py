"""Measure the structure of the package: sizes, nesting of packages, helpers called once, class checks, docstrings.

python -m bench.structure [PACKAGE_DIRECTORY]
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

OBJECTIVES = {"Classify", "Domain", "Instruct", "Preference", "Reward", "Rl", "Multitask", "RewardModel"}
ARMS = {"Practice", "OnlineRLLearner", "ManyTasks", "MultitaskEvaluator"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield every function and method below a tree."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def class_checks(tree: ast.AST) -> int:
    """Count `isinstance` calls that name an objective's class."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            count += bool(names & (OBJECTIVES | ARMS))
    return count


def helpers(tree: ast.Module) -> tuple[int, int]:
    """Count the private functions of a module, and those that it names exactly once."""
    private = {node.name for node in tree.body if isinstance(node, Function) and node.name.startswith("_")}
    loads = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return len(private), sum(loads[name] == 1 for name in private)


def main() -> None:
    """Print one line per measure."""
    package = Path(sys.argv[1] if len(sys.argv) > 1 else "tunesmith")
    files = sorted(package.rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lengths = sorted(text.count("\n") for text in texts.values())
    sizes = [(f.end_lineno or f.lineno) - f.lineno + 1 for tree in trees.values() for f in functions(tree)]
    documented = [
        ast.get_docstring(node) or ""
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, Function | ast.ClassDef)
    ]
    docs = [text for text in documented if text]
    doc_lines = sum(
        (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node)
    )
    outside = {
        path: class_checks(tree)
        for path, tree in trees.items()
        if path.relative_to(package).parts[0] not in ("objectives", "recipe", "config")
    }
    private = [helpers(tree) for tree in trees.values()]
    found = sum(
        isinstance(node, ast.Name) and node.id == "found" and isinstance(node.ctx, ast.Store)
        for tree in trees.values()
        for node in ast.walk(tree)
    )
    flat = Counter(path.parent for path in files)
    largest, count = flat.most_common(1)[0]
    riddles = sum(bool(re.match(r"(What|Whether|How|Which|Where|Who|Nothing|Nobody)\b", text)) for text in docs)
    sections = sum(bool(re.search(r"^\s*(Args|Returns|Raises|Yields):", text, re.M)) for text in docs)
    code = sum(lengths) - doc_lines
    print(f"files, lines                         {len(files)}, {sum(lengths):,} ({code:,} without docstrings)")
    print(f"file length, median and 90th pct.    {statistics.median(lengths):g}, {lengths[int(0.9 * len(lengths))]}")
    print(f"functions of five lines or fewer     {sum(size <= 5 for size in sizes) / len(sizes):.1%} of {len(sizes):,}")
    print(f"top-level packages                   {sum((path / '__init__.py').exists() for path in package.iterdir())}")
    print(f"largest flat folder                  {largest} ({count})")
    print(f"private functions called once        {sum(once for _, once in private)} of {sum(n for n, _ in private):,}")
    print(f"isinstance on objectives, outside    {sum(outside.values())} in {sum(map(bool, outside.values()))} files")
    print(f"assignments to `found`               {found}")
    print(f"docstrings: all, riddles, sections   {len(docs):,}, {riddles}, {sections}")


if __name__ == "__main__":
    main()
