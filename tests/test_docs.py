"""Check the documentation against the code: recipes, keys, commands, options, Python names and links."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import tunesmith
from docs.site.recipe_keys import SECTIONS, row
from tunesmith.cli.main import parser
from tunesmith.config import Data, Gates, Recipe, Schedule, make_recipe
from tunesmith.config.aliases import ALIASES
from tunesmith.metrics.style import RULE_KINDS
from tunesmith.techniques import Lora

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in (
        *sorted(DOCS.rglob("*.md")),
        *sorted(ROOT.glob("*.md")),
        *sorted(ROOT.glob("examples/*.md")),
        *sorted(ROOT.glob("tunesmith/cli/mcp/*.md")),
    )
    if page.is_file()
]
FENCE = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEREDOC = re.compile(r"^python - <<'EOF'\n(.*?)^EOF$", re.MULTILINE | re.DOTALL)
# Calculations that load a model or a tokenizer are too slow to run here.
COSTLY = re.compile(r"transformers|from_pretrained|tunesmith\.model")
LINE_LANGUAGES = ("", "sh", "bash", "console", "text")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in one of the languages."""
    return [body for _, language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def spans(page: Path) -> list[str]:
    """Return the code spans of a page, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]


def cases(*languages: str) -> list[Any]:
    """Return the blocks of all pages as test cases, named by page and index."""
    return [
        pytest.param(block, id=f"{name_of(page)}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, *languages), 1)
    ]


# ------------------------------------------------------------------ recipes


def test_there_are_pages_with_recipes_and_commands():
    assert len(cases("yaml")) >= 5
    assert len(list(command_lines())) >= 20


@pytest.mark.parametrize("block", cases("yaml"))
def test_every_recipe_that_is_shown_is_a_recipe(block: str):
    make_recipe(yaml.safe_load(block), place="docs")


# ------------------------------------------------------------------ keys


def section(heading: str) -> str:
    """Return the text below a heading of the recipe page, up to the next heading."""
    text = (DOCS / "reference" / "recipe.md").read_text(encoding="utf-8")
    assert f"\n## {heading}\n" in text, f"docs/reference/recipe.md: no heading '## {heading}'"
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_in_its_table_with_its_default_and_bounds(heading: str):
    text = section(heading)
    expected = [row(field.alias or name, field) for name, field in SECTIONS[heading].model_fields.items()]
    missing = [line for line in expected if line not in text]
    assert not missing, f"docs/reference/recipe.md, under {heading!r}, lacks lines that begin with\n" + "\n".join(
        missing
    )


@pytest.mark.parametrize("heading", SECTIONS)
def test_no_key_is_described_that_does_not_exist(heading: str):
    described = re.findall(r"^\| `(\w+)` \|", section(heading), re.MULTILINE)
    assert set(described) <= {field.alias or name for name, field in SECTIONS[heading].model_fields.items()}


def test_every_name_from_another_tool_is_listed_with_its_key():
    listed = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", section("Names from other tools"), re.MULTILINE))
    assert listed == ALIASES


def test_every_kind_of_style_rule_is_described():
    assert set(re.findall(r"^\| `(\w+)` \|", section("`style`"), re.MULTILINE)) == set(RULE_KINDS)


@pytest.mark.parametrize(
    ("field", "cells"),
    [
        (("rank", Lora), "| `rank` | `16` | whole number, at least 1, at most 1024 | "),
        (("warmup", Schedule), "| `warmup` | `0.06` | number, at least 0, below 1 | "),
        (("learning_rate", Schedule), "| `learning_rate` | `auto` | number or `auto` | "),
        (("targets", Lora), "| `targets` | `all-linear` | text or list | "),
        (("group", Data), '| `group` | `""` | text | '),
        (("objective", Recipe), "| `objective` | needed | section | "),
        (("technique", Recipe), "| `technique` | `lora` | section | "),
        (("min_delta", Gates), "| `min_delta` | none | number or none | "),
    ],
)
def test_the_line_of_a_key_has_default_type_and_bounds(field: tuple[str, type[BaseModel]], cells: str):
    name, part = field
    assert row(name, part.model_fields[name]) == cells


# ------------------------------------------------------------------ commands


def command_lines() -> Iterator[tuple[Path, str]]:
    """Yield every `tunesmith ...` of a page, in a code span or at the start of a line of a block."""
    for page in PAGES:
        lines = [line for block in blocks(page, *LINE_LANGUAGES) for line in block.splitlines()]
        for line in (*spans(page), *lines):
            words = line.strip().removeprefix("$ ")
            if words.startswith("tunesmith "):
                yield page, words


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    (subparsers,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return subparsers.choices


def test_every_command_and_option_that_is_shown_exists():
    known = commands()
    wrong = []
    for page, line in command_lines():
        verb, *words = shlex.split(line, comments=True)[1:]
        if verb.startswith("-"):
            continue
        if verb not in known:
            wrong.append(f"{name_of(page)}: no command {verb!r} ({line})")
            continue
        options = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
        unknown = set(options) - set(known[verb]._option_string_actions)
        wrong += [f"{name_of(page)}: {verb} has no option {option} ({line})" for option in sorted(unknown)]
    assert not wrong, "\n".join(wrong)


def test_every_option_that_is_named_alone_is_one_of_some_command():
    known = {option for command in commands().values() for option in command._option_string_actions} | {"--version"}
    named = {span.split()[0].partition("=")[0] for page in PAGES for span in spans(page) if re.match(r"--[a-z]", span)}
    assert named <= known


def test_every_command_is_on_the_page_of_commands():
    shown = {line.split()[1] for page, line in command_lines() if page == DOCS / "reference" / "commands.md"}
    assert shown >= set(commands()) - {"need"}  # the old name of learning-curve


# ------------------------------------------------------------------ names in Python


@pytest.mark.parametrize("block", cases("python"))
def test_python_that_is_shown_names_what_exists(block: str):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tunesmith":
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tunesmith":
            assert node.attr in tunesmith.__all__


def calculations() -> Iterator[Any]:
    """Yield page and source of every `python -c "..."` and `python - <<'EOF'` that loads no model."""
    for page in PAGES:
        for block in blocks(page, *LINE_LANGUAGES):
            lines = (line for line in block.splitlines() if line.startswith("python -c "))
            for source in (*(shlex.split(line)[2] for line in lines), *HEREDOC.findall(block)):
                if not COSTLY.search(source):
                    yield pytest.param(page, source, id=f"{name_of(page)}-{source.strip()[:40]}")


def test_there_are_calculations():
    assert len(list(calculations())) >= 4


@pytest.mark.parametrize(("page", "source"), list(calculations()))
def test_the_output_of_a_calculation_is_on_its_page(page: Path, source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, name_of(page), "exec"), {})
    text = page.read_text(encoding="utf-8")
    lines = printed.getvalue().splitlines()
    assert lines
    assert [line for line in lines if line not in text] == []


# ------------------------------------------------------------------ links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_has_a_target(page: Path):
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_index():
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall((DOCS / "index.md").read_text())}
    assert {page for page in PAGES if DOCS in page.parents} - {DOCS / "index.md"} <= linked


def test_every_test_that_the_threat_model_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)`", (DOCS / "threat-model.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [name for name in named if not (DOCS.parent / name).is_file()] == []


def test_every_file_and_function_behind_a_number_exists():
    text = (DOCS / "explanation" / "formulas.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:metrics|evaluation|report|pipelines|annotation)/[\w/]+\.py)`", text))
    assert len(paths) >= 10
    assert [path for path in paths if not (ROOT / "tunesmith" / path).is_file()] == []
    named = re.findall(r"`((?:metrics|pipelines)/[\w/]+\.py)`, ((?:(?:class )?`\w+`,?\s*)+)", text)
    pairs = [(path, name) for path, names in named for name in re.findall(r"`(\w+)`", names)]
    assert len(pairs) >= 10
    source = {path: (ROOT / "tunesmith" / path).read_text("utf-8") for path, _ in pairs}
    assert [
        pair for pair in pairs if not re.search(rf"^(def|class) {pair[1]}\b|^{pair[1]} =", source[pair[0]], re.M)
    ] == []


def test_functions_that_other_packages_use_describe_their_arguments():
    """Three arguments or more: in an Args section, by name in the text, or as those of another function."""
    functions, used = {}, set()
    for path in sorted((ROOT / "tunesmith").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text("utf-8"))
        functions |= {(module, node.name): node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tunesmith."):
                other = str(node.module).split(".")[1] != module.split(".")[1]
                used |= {(str(node.module), alias.name) for alias in node.names if other}
    silent = []
    for name in sorted(used & set(functions)):
        given = functions[name].args
        names = [part.arg for part in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        text = ast.get_docstring(functions[name]) or ""
        named = "Args:" in text or "rguments as in" in text or all(f"`{word}`" in text for word in names)
        if len(names) >= 3 and not named:
            silent.append(".".join(name))
    assert not silent
