"""Completion in a shell, and help in colours in a terminal only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tunesmith.cli.completion import SHELLS, recipe_keys

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_tunesmith tunesmith "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" 2>/dev/null
echo "${COMPREPLY[*]}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("tu", "tune"),
        ("nee", ""),  # a former name
        ("tune --mod", "--model"),
        ("tune --set technique.r", "technique.rank= technique.router= technique.rslora="),
        ("tune fol", "folder"),
        ("export fol", "folder"),
        ("export --format g", "gguf"),
    ],
)
def test_bash_completes(command: Command, tmp_path: Path, typed: str, completed: str):
    script = tmp_path / "script"
    script.write_text(command("--print-completion", "bash").out)
    (tmp_path / "folder").mkdir()
    words = ["bash", "-c", ASK, "bash", str(script), "tunesmith", *typed.split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == completed


# What a shell is asked once it has read the script `$1`, and a line of its answer.
OTHERS = {
    "zsh": ('autoload -U compinit; compinit -u -D; eval "$(cat $1)"; print $_comps[tunesmith]', "_shtab_tunesmith"),
    "fish": ("source $argv[1]; complete -C 'tunesmith export --format '", "gguf\texport format (default: merged)"),
    "tcsh": ("source $1; complete tunesmith", "tune"),
}


@pytest.mark.parametrize("shell", OTHERS)
def test_other_shells_read_their_script_and_complete(command: Command, tmp_path: Path, shell: str):
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    script = tmp_path / "script"
    script.write_text(command("--print-completion", shell).out)
    question, answer = OTHERS[shell]
    options = {"zsh": ["-f", "-c", question, "zsh"], "fish": ["--no-config", "-c", question]}
    words = options.get(shell, ["-f", "-c", question.replace("$1", str(script))])
    done = subprocess.run([shell, *words, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert answer in done.stdout.split("\n" if shell != "tcsh" else None)


def test_every_shell_gets_a_script_and_another_one_is_refused(command: Command):
    assert all("tunesmith" in command("--print-completion", shell).out for shell in SHELLS)
    assert "did you mean 'bash'?" in command("--print-completion", "bush").err


def test_completed_keys_are_keys_of_a_recipe():
    keys = recipe_keys()
    assert {"model=", "data.train=", "technique=", "technique.rank=", "schedule.epochs="} <= set(keys)


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
def test_help_has_colours_in_a_terminal_only(command: Command):
    import pty

    assert "\x1b" not in command("tune", "--help").out
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-m", "tunesmith", "--help"], stdout=theirs, env=environment, check=True)
    assert b"\x1b[" in os.read(ours, 4096)
