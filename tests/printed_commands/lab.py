"""A folder with tiny models in which a command is run, the commands that it prints are found, and executed."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.glance import only_a_glance
from tests.printed_commands.collect import Printed
from tests.tiny import tiny_decoder, tiny_encoder
from tunesmith.cli import main

# A tiny random model is slow to learn at the rates that fit a real one.
EAGER = ("--set", "schedule.learning_rate=0.01", "--set", "schedule.probe=false", "--set", "schedule.epochs=1")


class Result(NamedTuple):
    """An executed command: where it is printed, as written there and as pasted, and its exit code."""

    printed: Printed
    pasted: str
    code: int
    errors: str


@dataclass
class Lab:
    """A working folder. Commands run in this process, with the folder as the current one.

    Attributes:
        folder: the folder.
        llama: folder of a tiny decoder.
        bert: folder of a tiny encoder.
        results: what was pasted so far.
    """

    folder: Path
    llama: Path
    bert: Path
    results: list[Result] = field(default_factory=list)

    def run(self, *words: object) -> str:
        """Run a command and return what it printed, both streams together."""
        return self._call([str(word) for word in words])[1]

    def paste(self, output: str, file: str, command: str, **replaced: object) -> str:
        """Find a printed command in an output, execute it and record the result; return what it printed.

        Args:
            output: what a command or page printed.
            file: file of the package that contains the command.
            command: the command as the source has it, with {} for each value.
            **replaced: values for words in capitals that only the user knows, such as ROWS.
        """
        found = find(output, command)
        assert found, f"{command!r} is not printed in:\n{output}"
        for name, value in replaced.items():
            found = re.sub(rf"\b{name}\b", str(value), found)
        words = shlex.split(found)
        assert words[0] == "tunesmith", found
        code, text = self._call(words[1:])
        self.results.append(Result(Printed(file, command), found, code, "" if code == 0 else text[-600:]))
        return text

    def append(self, output: str, file: str, setting: str, before: Sequence[object], **replaced: object) -> str:
        """Find a printed `--set` option, append it to a command, execute it and record the result."""
        found = find(output, setting)
        assert found, f"{setting!r} is not printed in:\n{output}"
        for name, value in replaced.items():
            found = re.sub(rf"\b{name}\b", str(value), found)
        words = [*map(str, before), *shlex.split(found)]
        code, text = self._call(words)
        pasted = f"tunesmith {shlex.join(words)}"
        self.results.append(Result(Printed(file, setting), pasted, code, "" if code == 0 else text[-600:]))
        return text

    def code(self, card: str, folder: Path) -> int:
        """Execute the Python code of a model card in the run folder; return the number of its blocks."""
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        before = Path.cwd()
        os.chdir(folder)
        try:
            for block in blocks:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    exec(compile(block, "README.md", "exec"), {})
        finally:
            os.chdir(before)
        return len(blocks)

    def rows(self, name: str, rows: Sequence[Mapping[str, object]]) -> Path:
        """Write rows as JSON lines in the folder."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def _call(self, words: list[str]) -> tuple[int, str]:
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text):
            code = main(words)
        return code, text.getvalue()


def find(output: str, command: str) -> str:
    """Return the first command of an output with this form, as a user would copy it; empty if there is none."""
    pattern = r".+?".join(re.escape(part) for part in command.split("{}"))
    starts = re.search(pattern, output)
    if not starts:
        return ""
    rest = output[starts.start() :]
    quoted = output[: starts.start()].endswith("`")
    line = rest.split("`")[0] if quoted else rest.split("\n")[0]
    if command.startswith("--set") and not quoted:
        words = shlex.split(line.rstrip(")"), posix=True)
        return shlex.join(words[:2])
    return line.strip()


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Open a lab: tiny models, a cache of its own, few resamples, no page that stays, and no network."""
    (folder / "work").mkdir(parents=True)
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        patch.setattr("tunesmith.models.loading.device.cores", lambda: 1)
        patch.setattr("tunesmith.web.server.serve", lambda *words, **options: None)
        patch.setattr("builtins.input", _end_of_input)
        patch.setattr("sys.stdin", io.StringIO(""))
        only_a_glance(patch)
        os.chdir(folder / "work")
        try:
            yield Lab(folder / "work", tiny_decoder(folder / "llama"), tiny_encoder(folder / "bert"))
        finally:
            os.chdir(before)


def _end_of_input(prompt: str = "") -> str:
    raise EOFError(prompt)


Scenario = Callable[[Lab], None]
