"""Seconds until Tunesmith has started: `python -m bench.startup RECIPE RUN [TIMES]`, each time in a new process.

Prints the medians on the clock and of the processor: of `--help`, of `tunesmith.load`, of the first answer of `ask`,
and of `tune` from its start to its first step. RUN is the finished run of RECIPE: a copy without what training wrote
has the scores of the base, and begins with step 1.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TUNESMITH = [sys.executable, "-m", "tunesmith"]
# What a run writes from its first step on.
TRAINED = ("checkpoint*", "journal.jsonl", "probe.json", "model", "predictions.jsonl", "report.*", "README.md")
LOAD = "import sys, tunesmith; tunesmith.load(sys.argv[1], offline=True)"


def until(command: list[str], line: str = "") -> tuple[float, float]:
    """Run a command to its end, or until it prints a line that begins so: seconds on the clock and of the processor."""
    began, before = time.perf_counter(), os.times()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        assert run.stdout is not None
        printed = ""
        for text in run.stdout:
            printed += text
            if line and text.startswith(line):
                break
        seconds = time.perf_counter() - began
        if line:
            run.kill()
    if (line and f"\n{line}" not in printed) or (not line and run.returncode):
        sys.exit(f"{' '.join(command)}:\n{printed}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def main(recipe: str, folder: str, times: str = "5") -> None:
    """Measure and print a table."""
    run = Path(folder)
    ask = [*TUNESMITH, "ask", folder, "a great film", "--offline"]
    measured: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for time_ in range(int(times)):
            again = Path(name, str(time_))
            shutil.copytree(run, again, ignore=shutil.ignore_patterns(*TRAINED))
            tune = [*TUNESMITH, "tune", recipe, "--offline", "--out", str(again)]
            for what, command, line in (
                ("tunesmith --help", [*TUNESMITH, "--help"], ""),
                ("tunesmith.load(RUN)", [sys.executable, "-c", LOAD, folder], ""),
                ("tunesmith ask RUN TEXT", ask, ""),
                ("tunesmith tune, to its first step", tune, "step 1/"),
            ):
                measured.setdefault(what, []).append(until(command, line))
    print("| | on the clock | of the processor |\n|---|---|---|")
    for what, seconds in measured.items():
        clock, processor = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"| {what} | {clock:.2f} s | {processor:.2f} s |")


if __name__ == "__main__":
    main(*sys.argv[1:])
