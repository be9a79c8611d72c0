"""Every command line that a message, report or page prints works when pasted."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.printed_commands.check import helped, named, stale, uncovered
from tests.printed_commands.collect import COMMAND, PACKAGE, Printed, strings
from tests.printed_commands.lab import find, lab
from tests.printed_commands.scenarios import COVERED, SCENARIOS
from tunesmith.cli.main import parser
from tunesmith.config import Recipe
from tunesmith.objectives import OBJECTIVES
from tunesmith.techniques import TECHNIQUES


@pytest.mark.long
def test_every_printed_command_is_executed_by_a_scenario_or_is_only_a_name() -> None:
    assert uncovered() == []
    assert stale() == []


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_printed_commands_of_a_scenario_succeed(name: str, tmp_path: Path) -> None:
    with lab(tmp_path / "lab") as place:
        SCENARIOS[name](place)
    assert {one for one, scenario in COVERED.items() if scenario == name} == {
        result.printed for result in place.results
    }
    failed = [(result.pasted, result.code, result.errors) for result in place.results if result.code]
    assert not failed


@pytest.mark.parametrize(("printed", "words"), [pytest.param(*item, id=item[1]) for item in named().items()])
def test_a_named_command_exists(printed: Printed, words: str) -> None:
    result = helped(printed, words)
    assert result.code == 0, result.errors


def test_commands_are_collected_from_literals_and_not_from_docstrings() -> None:
    source = '"""Run `tunesmith tune X`."""\nword = f"run `tunesmith audit {path} --fix {out}`; or not"\n'
    found = [match[0] for text in strings(ast.parse(source)) for match in COMMAND.finditer(text)]
    assert found == ["tunesmith audit {} --fix {}"]


def test_a_command_is_found_as_a_user_copies_it() -> None:
    output = (
        "error: a.csv: blank; run `tunesmith audit 'a b.csv' --fix c.jsonl`, or not\nnext: tunesmith tune x --dry-run\n"
    )
    assert find(output, "tunesmith audit {} --fix {}") == "tunesmith audit 'a b.csv' --fix c.jsonl"
    assert find(output, "tunesmith tune {}") == "tunesmith tune x --dry-run"
    assert find("(change with --set schedule.epochs=N)", "--set schedule.epochs=N") == "--set schedule.epochs=N"
    assert find(output, "tunesmith plan {}") == ""


# Options of other programs, and files in which options are arguments of pip or colours of a chart.
OTHER_OPTIONS = {
    "--with",
    "--python",
    "--upgrade",
    "--private",
    "--include",
    "--decrypt",
    "--enable-lora",
    "--logprobs-mode",
    "--outfile",
}
OTHER_FILES = (
    "models/loading/bundled_models.py",
    "report/plots.py",
    "inference/engine_program.py",
    "pipelines/plan/render.py",
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
FILE_SUFFIXES = ("json", "jsonl", "html", "part")


def options(commands: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser and of its commands."""
    for action in commands._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)


def texts() -> Iterator[tuple[str, str]]:
    """Yield file and text of every string literal of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        yield from ((name, text) for text in strings(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_option_that_a_message_names_exists() -> None:
    known = {*options(parser()), *OTHER_OPTIONS}
    found = {(file, name) for file, text in texts() if file not in OTHER_FILES for name in OPTION.findall(text)}
    assert len(found) > 50
    assert [one for one in sorted(found) if one[1] not in known] == []


def test_every_recipe_key_that_a_message_names_exists() -> None:
    fields = {name: field.annotation for name, field in Recipe.model_fields.items()}
    known = {name: set(section.model_fields) for name, section in fields.items() if hasattr(section, "model_fields")}
    known["objective"] = {name for kind in OBJECTIVES for name in kind.model_fields}
    known["technique"] = {name for kind in TECHNIQUES for name in kind.model_fields}
    key = re.compile(rf"(?<![\w./*-])({'|'.join(known)})\.([a-z_]+)\b(?!\()")
    found = {(file, *match) for file, text in texts() if file != "config/aliases.py" for match in key.findall(text)}
    assert len(found) > 50
    found -= {("data/schema/formats.py", "data", "text")}  # a column of Label Studio
    unknown = [one for one in sorted(found) if one[2] not in {*known[one[1]], *FILE_SUFFIXES}]
    assert unknown == []
