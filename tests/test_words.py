"""No word of the old dialect occurs in messages, templates, docs, docstrings or comments.

Each pattern stands for a habit that made readers stop, see `CONTRIBUTING.md`. It is applied line by line, ignoring
case. Text that a model or a user reads as data is exempt; so are the lines of ALLOWED, each with its reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tunesmith"

PATTERNS = (
    r"\btold\b",
    r"\btells?\b(?! you)",
    r"\bworth\b(?! (it|reading|checking)\b)",
    r"\bbeside\b",
    r"\b(go|goes|going|gone|went) on\b",
    r"\bstands?\b(?! (for|out)\b)",
    r"\b(lies?|lay|lying)\b",
    r"\b(no|some|any)body\b",
    r"\bso (many|few|long)\b(?! as)",
    r"\bfore(tells?|told|sees?|seen)\b",
    r"\b(numbers? (that |which )?moved?|moves \{\} numbers|which numbers move)\b",
    r"(?<!version )(?<!random )\bnumbers\b(?! (from|of) )",
    r"\b(came|comes?|coming) (out|of it|of them|to nothing)\b",
    r"\bamounts? to\b|\bdealt\b",
    r"\bcheap(er)? ways?\b|\bhouse rules?\b",
    r"\buntuned\b|\bas it is\b",
    r"\b(to|from|over|against|since|than) the start\b",
    r"\bmend(s|ed|ing)?\b|\bcure[sd]?\b",
    r"\banew\b|\bbegun\b",
    r"\bof (which|whom)\b",
    r"\bbrought\b|\bwould (bring|buy)\b",
    r"\b(data|gate|rows?|recipe|file|report|page|library|journal)s? says?\b|\bsays? (no|nothing)\b",
    r"\bsurely\b",
    r"\bby heart\b|\bgrave\b|\bpaid\b(?![ -](model|server|answer|one)s?\b| \d)",
    r"(?<!there )\b(is|are|holds) no (?!longer\b|more\b|effect\b)[a-z]+",
    r"\bfaults?\b",
    r"\b(draw|draws|drawn|drew)\b",
    r"\brooms?\b(?! for)",
    r"\b(yardsticks?|shelf|slab|lessons?|pursuit|contest)\b",
    r"\blet go\b|\b(takes? (it|them) back)\b",
)
FORBIDDEN = re.compile("|".join(f"(?:{pattern})" for pattern in PATTERNS), re.IGNORECASE)
# Docstrings and help texts start with a verb or a noun.
RIDDLE = re.compile(r"(What|Whether|How|Where|Which|Who|Nothing|Nobody)\b")

# Text that a model or a user reads as data: prompts, shipped rows, word lists.
EXEMPT = {
    "data/documents/synthetic_prompts.py",
    "data/documents/grounding.py",
    "metrics/style.py",
    "pipelines/demo.py",
}
# (file, fragment of the line): reason. Keys of stored JSON and of HTTP APIs are contracts.
ALLOWED = {
    ("docs/how-to/audit.md", '"cure"'): "key of `audit --json`",
    ("docs/tutorial.md", "nobody answers my mails"): "a review that a model labels",
    ("cli/commands/doctor.py", "called `cure`"): "key of `doctor --json`",
    ("data/audit/findings.py", "in JSON is `cure`"): "key of `audit --json`",
    ("web/static/desk.js", "item.beside"): "key of the label page's API",
}
Line = tuple[str, int, str]


DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def is_key(text: str) -> bool:
    """A single word is a key, a name or an enumeration value, not a sentence."""
    return " " not in text.strip()


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the string nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            found.add(id(node.body[0].value))  # type: ignore[attr-defined]
    return found


def doc_lines() -> Iterator[Line]:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
    pages += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "reports" not in page.parts]
    for page in pages:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            yield str(page.relative_to(ROOT)), number, line


def comment_lines() -> Iterator[Line]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:", "# fmt")):
                yield str(path.relative_to(PACKAGE)), token.start[0], token.string


def string_lines(*, in_docstrings: bool) -> Iterator[Line]:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = docstrings(tree)
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            if (id(node) in documented) == in_docstrings and (in_docstrings or not is_key(node.value)):
                for offset, line in enumerate(node.value.splitlines()):
                    yield str(path.relative_to(PACKAGE)), node.lineno + offset, line


def template_lines() -> Iterator[Line]:
    for path in sorted([*PACKAGE.rglob("*.jinja"), *(PACKAGE / "web" / "static").glob("*.js")]):
        text = re.sub(r"\{[{%].*?[%}]\}|<style>.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for number, line in enumerate(text.splitlines(), 1):
            yield str(path.relative_to(PACKAGE)), number, line


SURFACES: dict[str, Callable[[], Iterator[Line]]] = {
    "messages": lambda: chain(string_lines(in_docstrings=False), template_lines()),
    "docs": doc_lines,
    "docstrings": lambda: string_lines(in_docstrings=True),
    "comments": comment_lines,
}


def violations(surface: str) -> list[str]:
    found = []
    for name, number, line in SURFACES[surface]():
        if name in EXEMPT and surface != "docstrings":
            continue
        if any(name == file and fragment in line for file, fragment in ALLOWED):
            continue
        if match := FORBIDDEN.search(line):
            found.append(f"{name}:{number}: {match[0]!r} in {line.strip()[:100]!r}")
    return found


@pytest.mark.parametrize("surface", SURFACES)
def test_no_word_of_the_old_dialect_occurs(surface: str):
    found = violations(surface)
    assert not found, f"{len(found)} lines:\n" + "\n".join(found)


def test_no_docstring_starts_with_a_question_word():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, DOCUMENTED):
                text = ast.get_docstring(node) or ""
                if RIDDLE.match(text):
                    found.append(f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}")
    assert not found, f"{len(found)} docstrings:\n" + "\n".join(found)


def test_a_planted_word_is_found():
    assert FORBIDDEN.search("The rows are told of it.")
    assert not FORBIDDEN.search("A version number is not one of these; there is no effect.")
