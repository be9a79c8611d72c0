"""The command `tunesmith`: which commands there are, and what every outcome exits with."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tunesmith import __version__
from tunesmith.cli.commands import (
    audit,
    chat,
    collect,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    feedback,
    init,
    label,
    learning_curve,
    plan,
    rlhf,
    runs,
    serve,
    tune,
    votes,
)
from tunesmith.cli.options import Parser
from tunesmith.cli.signals import Interruption, caught
from tunesmith.cli.terminal import emit, log
from tunesmith.errors import TunesmithError

# Every command there is, as `--help` shows them. None of these modules imports anything heavy.
MODULES = (
    demo,
    init,
    collect,
    audit,
    label,
    compare,
    learning_curve,
    plan,
    tune,
    evaluate,
    chat,
    export,
    serve,
    feedback,
    votes,
    rlhf,
    runs,
    doctor,
)

ABOUT = "Decide, tune, prove, ship: fit a language model to your own data, and know whether you should."
CODES = "exit codes: 0 good; 1 the data or a gate says no; 2 wrong input; 130/143 interrupted and saved; 70 our own bug"
BUG = 70
LOAD = Path("/proc/loadavg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal has no letters for is no fault
            stream.reconfigure(errors="backslashreplace")
    try:
        return _outcome(words)
    except BrokenPipeError:
        # Whoever read our output has gone. What Python flushes at its exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _outcome(words: Sequence[str]) -> int:
    """The exit code of a command; what went wrong is said. Raises BrokenPipeError."""
    wants_json = "--json" in words
    try:
        with caught():
            return _run(words)
    except TunesmithError as error:
        return _fail(type(error).__name__, str(error), code=error.exit_code, as_json=wants_json)
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interruption) else Interruption(signal.SIGINT)
        text = f"{stopped.text}; run the same command again to go on"
        return _fail("Interrupted", text, code=stopped.exit_code, as_json=wants_json)
    except BrokenPipeError:
        raise
    except Exception as error:  # whatever else is raised is our own bug: its traceback, and exit 70
        traceback.print_exc()
        return _fail(
            type(error).__name__,
            "a bug in tunesmith, please report the lines above",
            code=BUG,
            as_json=wants_json,
        )


def parser() -> Parser:
    """The whole command line."""
    top = Parser(prog="tunesmith", description=ABOUT, epilog=CODES)
    top.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in MODULES:
        module.add(commands)
    return top


def _let_threads_wait() -> None:
    """Threads that wait for work sleep, where nobody else works only after a moment; torch reads it on import.

    `docs/decisions/0013-idle-threads-sleep.md` has the seconds of both.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if _runnable() <= 1:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _runnable() -> int:
    """Threads of this machine that run or could, this one among them; 2 where the system does not say."""
    if not LOAD.exists():
        return 2
    seen = []
    for _ in range(3):  # whoever was awake just to start us is asleep by then
        seen.append(int(LOAD.read_text(encoding="ascii").split()[3].partition("/")[0]))
        time.sleep(0.001)
    return min(seen)


def _run(words: Sequence[str]) -> int:
    try:
        args = parser().parse_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    _let_threads_wait()
    return int(args.run(args))


def _fail(kind: str, message: str, *, code: int, as_json: bool) -> int:
    """Say what went wrong, each fault on a line of its own, and return the exit code."""
    lead = "interrupted" if kind == "Interrupted" else "error"
    for line in message.splitlines():
        log(f"{lead}: {line}")
    if as_json:
        emit({"error": {"kind": kind, "message": message, "exit_code": code}})
    return code
