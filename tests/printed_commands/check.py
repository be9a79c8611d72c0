"""Execute the scenarios and the commands that are only named, and find those that no scenario covers."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from tests.printed_commands.collect import Printed, printed
from tests.printed_commands.lab import Result, lab
from tests.printed_commands.scenarios import COVERED, ECHOES, PROSE, SCENARIOS
from tunesmith.cli import main

# A command without a value, such as `tunesmith votes import`: a name, for which the help must exist.
NAME = re.compile(r"tunesmith [a-z-]+( [a-z]+)?( --[a-z-]+)*")


def named() -> dict[Printed, str]:
    """Return the commands that are only named, and how they are executed: their help is printed."""
    found = {}
    for one in printed():
        if one not in COVERED and one not in ECHOES and one not in PROSE and NAME.fullmatch(one.command):
            words = [word for word in one.command.split()[1:] if not word.startswith("-")]
            options = [word for word in one.command.split()[1:] if word.startswith("-") and word != "--help"]
            found[one] = shlex.join([*words[:1], *options, "--help"])
    return found | PROSE


def uncovered() -> list[Printed]:
    """Return the printed commands that no scenario executes and that are more than a name."""
    known = {*COVERED, *ECHOES, *named()}
    return [one for one in printed() if one not in known]


def stale() -> list[Printed]:
    """Return the registered commands that the source no longer contains."""
    present = set(printed())
    return [one for one in (*COVERED, *ECHOES, *PROSE) if one not in present]


def execute(folder: Path, names: Sequence[str] = ()) -> list[Result]:
    """Execute scenarios, all or the named ones, and without names the commands that are only named.

    Args:
        folder: an empty folder.
        names: names of scenarios.
    """
    results: list[Result] = []
    for name in names or SCENARIOS:
        with lab(folder / name) as place:
            SCENARIOS[name](place)
            results += place.results
    return results if names else [*results, *(helped(one, words) for one, words in named().items())]


def helped(one: Printed, words: str) -> Result:
    """Execute the help of a command that is only named."""
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(text):
        code = main(shlex.split(words))
    return Result(one, f"tunesmith {words}", code, "" if code == 0 else text.getvalue()[-600:])
