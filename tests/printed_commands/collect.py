"""Collect the command lines in the source: string literals of the package, its templates and scripts of its pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tunesmith

PACKAGE = Path(tunesmith.__file__).parent
COMMANDS = sorted(
    [
        *(path.stem.replace("_", "-") for path in (PACKAGE / "cli" / "commands").glob("[a-z]*.py")),
        "ask",
        "models",
        "verify",
    ]
)
# A command with its arguments, up to the end of the sentence that contains it; or a setting to append to a command.
COMMAND = re.compile(rf"tunesmith (?:{'|'.join(COMMANDS)})\b(?![-\w])[^`\n;<]*")
SETTING = re.compile(r"--set [^`\n;)]*")
# Text that is read by models or shown as sample data.
EXEMPT = ("shipped_data/",)


class Printed(NamedTuple):
    """A command line in the source; parts that are computed are written {}."""

    file: str
    command: str


def printed() -> list[Printed]:
    """Return all command lines of the package, each once per file."""
    found: dict[Printed, None] = {}
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(EXEMPT) or path.suffix not in (".py", ".jinja", ".js"):
            continue
        source = path.read_text(encoding="utf-8")
        for text in strings(ast.parse(source)) if path.suffix == ".py" else [_text_of(source)]:
            for pattern in (COMMAND, SETTING):
                for match in pattern.finditer(text):
                    command = match[0].strip().rstrip(".,:'\")").strip()
                    if pattern is COMMAND or not any(command in one.group() for one in COMMAND.finditer(text)):
                        found[Printed(name, command)] = None
    return list(found)


def strings(tree: ast.Module) -> Iterator[str]:
    """Yield the string literals that are not docstrings; of f-strings with {} for each value."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                inside.add(id(first.value))
        if isinstance(node, ast.JoinedStr):
            inside.update(id(part) for part in ast.walk(node) if part is not node)
            yield "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "{}"
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def _text_of(source: str) -> str:
    """Return a template or script with {} for each value; code tags become backticks, strings end their line."""
    text = re.sub(r"\{\{.*?\}\}|\$\{.*?\}", "{}", source)
    text = re.sub(r"<[^>]*>", " ", re.sub(r"</?code>", "`", text))
    return text.replace('"', "\n")
