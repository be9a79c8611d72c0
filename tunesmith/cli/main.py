"""The command `tunesmith`: its subcommands, and the exit code of every outcome."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from tunesmith import __version__, quick_imports
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
    rebase,
    replay,
    rlhf,
    runs,
    serve,
    studio,
    tune,
    verify,
    votes,
)
from tunesmith.cli.completion import SHELLS, PrintCompletion
from tunesmith.cli.mcp import command as mcp
from tunesmith.cli.options import Parser
from tunesmith.cli.processes import reports_error, silence_followers, tell_agent
from tunesmith.cli.signals import Interruption, Signals, caught
from tunesmith.cli.terminal import IN_ASCII, emit
from tunesmith.data.files import check_writable, storage_error
from tunesmith.data.remote import remote_url, without_network
from tunesmith.data.user_cache import cache_dir
from tunesmith.errors import TunesmithError
from tunesmith.models.world import started_as
from tunesmith.report.formatting import clean

# In the order of `--help`. These modules import heavy libraries inside functions only, so that `--help` is fast.
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
    replay,
    rebase,
    evaluate,
    verify,
    chat,
    export,
    serve,
    feedback,
    votes,
    rlhf,
    runs,
    doctor,
    studio,
    mcp,
)

ABOUT = "Fine-tune a language model on your own data and measure whether it helped."
CODES = (
    "exit codes: 0 success; 1 data check or quality gate failed; 2 invalid input; 130 or 143 interrupted, progress "
    "saved; 70 internal error"
)
INTERNAL_ERROR = 70
# What these commands have done is kept at once, so that nothing is left to resume.
NEVER_RESUMED = ("serve", "chat", "ask", "label", "feedback", "studio", "mcp", "replay")
LOAD = Path("/proc/loadavg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program name; default `sys.argv[1:]`, after which the process has to end.

    Returns:
        The exit code, see `CODES`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    quick_imports.FINDER.own = argv is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=IN_ASCII)
    former = silence_followers() if words[:1] == ["tune"] else None  # the one command of several processes
    try:
        with caught(last=argv is None) as signals:
            return _run_reporting_errors(words, former, signals)
    except OSError as error:
        if not _is_closed_pipe(error):
            raise
        # The reader of stdout has exited. Python flushes stdout at exit, which must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)  # Windows has no name for it


def _is_closed_pipe(error: Exception) -> bool:
    """Return whether the reader of our output has exited; for Windows that is an error without the name of a file."""
    if sys.platform != "win32" or not isinstance(error, OSError):
        return isinstance(error, BrokenPipeError)
    return error.errno in (errno.EPIPE, errno.EINVAL) and not error.filename


def parser() -> Parser:
    """Return the parser of the whole command line."""
    top = Parser(prog="tunesmith", description=ABOUT, epilog=CODES)
    top.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    text = "print a script that completes the command line in this shell, and exit"
    top.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, metavar="SHELL", help=text)
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in MODULES:
        module.add(commands)
    return top


def _run_reporting_errors(words: Sequence[str], former: TextIO | None, signals: Signals) -> int:
    """Run a command, report any error but a closed pipe, and return the exit code.

    A process whose output is silenced reports an error that it alone has to `former`. Once the command is over, no
    signal interrupts its report.
    """
    trace = ""
    fix: dict[str, object] = {}
    try:
        with caught():
            return _run(words)
    except TunesmithError as error:
        kind, message, code = type(error).__name__, str(error), error.exit_code
        fix = {"command": error.command} if error.command else {}
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interruption) else Interruption(signal.SIGINT)
        kind, code = "Interrupted", stopped.exit_code
        message = stopped.text
        if words and words[0] not in NEVER_RESUMED:
            message += "; run the same command again to resume"
        signals.received = signal.SIGINT
    except Exception as error:  # of a disk, or an internal error: printed with its traceback
        if _is_closed_pipe(error):
            raise
        found = storage_error(error)
        trace = "" if found else traceback.format_exc()
        kind, code = type(found or error).__name__, found.exit_code if found else INTERNAL_ERROR
        message = str(found or "internal error; please report it with the traceback above")
    finally:
        signals.over = True
    lead = "interrupted" if kind == "Interrupted" else "error"
    if reports_error():
        if former is not None:
            lead += f": process {started_as()[0]}"
        lines = [*trace.splitlines(), *(f"{lead}: {line}" for line in message.splitlines())]
        print(clean("\n".join(lines)), file=former or sys.stderr, flush=True)
    tell_agent(f"{kind}: {message}")
    if "--json" in words:
        emit({"error": {"kind": kind, "message": message, "exit_code": code, **fix}})
    return code


def _run(words: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    try:
        args = parser().parse_args(words or ["--help"])
    except SystemExit as done:  # --help, --version and --schema
        return int(done.code or 0)
    for path in (getattr(args, "out", None), getattr(args, "answers", None)):
        if isinstance(path, Path) and not remote_url(path):
            check_writable(path)  # before the work, not after it
    args.command_line = list(words)
    _set_thread_wait_policy()
    # Its list of fonts: it would stay in the home when Tunesmith and its cache are removed.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))
    with without_network(getattr(args, "offline", False)):
        return int(args.run(args))


def _set_thread_wait_policy() -> None:
    """Let idle OpenMP threads sleep; on an idle machine they spin shortly first. torch reads this on import.

    Measured in `docs/decisions/0013-idle-threads-sleep.md`.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if _runnable_threads() <= 1:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _runnable_threads() -> int:
    """Return the runnable threads of this machine, including this one; 2 if the system does not report them."""
    if not LOAD.exists():
        return 2
    counts = []
    for _ in range(3):  # the shell that started this process may still be awake at the first reading
        counts.append(int(LOAD.read_text(encoding="ascii").split()[3].partition("/")[0]))
        time.sleep(0.001)
    return min(counts)
