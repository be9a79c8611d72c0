"""Every command line that a message, report or page prints works when pasted."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.printed_commands.check import helped, named, stale, uncovered
from tests.printed_commands.collect import COMMAND, Printed, strings
from tests.printed_commands.lab import find, lab
from tests.printed_commands.scenarios import COVERED, SCENARIOS


def test_every_printed_command_is_executed_by_a_scenario_or_is_only_a_name() -> None:
    assert uncovered() == []
    assert stale() == []


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
