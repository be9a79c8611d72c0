"""A command in a separate process, which outlives the page that started it: `python -m ... JOB_FOLDER`.

The runner waits for its turn, runs the command, and records how it ended. It outlives the server of the page, and the
only way to reach it is a file in the folder of the job, which works on every system.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tunesmith.web.studio.jobs import (
    ERRORS,
    OUTPUT,
    STOP,
    Command,
    Job,
    Jobs,
    State,
    StateName,
    process_mark,
)

POLL = 0.2  # seconds
GRACE = 10.0  # seconds between the first Ctrl-C, the second, and the end by force
# On Windows a Ctrl-C that is sent reaches a whole group of processes; elsewhere 0.
NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
INTERRUPT = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)


def run(folder: Path) -> None:
    """Run the command of a job and record its state.

    Args:
        folder: the folder of the job.
    """
    job, jobs = Job(folder), Jobs(folder.parent, folder)
    command, mark = job.command, process_mark()
    State("waiting", runner=mark).write(folder)
    while not (folder / STOP).exists() and not command.orphaned:
        state = State("running", runner=mark, started=time.time())
        if not command.queued:
            state.write(folder)
        if not command.queued or jobs.begin(job, state):
            break
        time.sleep(POLL)
    else:
        State("stopped", runner=mark, ended=time.time(), code=130).write(folder)
        return
    with (folder / OUTPUT).open("ab") as out, (folder / ERRORS).open("ab") as errors:
        child = subprocess.Popen(  # -P: a file in the working folder must not shadow a library
            [sys.executable, "-P", "-m", "tunesmith", *command.words],
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            creationflags=NEW_GROUP,
        )
        code, asked = _wait(child, folder / STOP, command)
    stopped = code in (130, 143) or (code < 0 and asked)
    succeeded = code in (0, 1) and not job.error()  # 1: also a check that failed, whose result is printed
    name: StateName = "stopped" if stopped else "finished" if succeeded else "failed"
    State(name, runner=mark, started=state.started, ended=time.time(), code=code).write(folder)


def _wait(child: subprocess.Popen[bytes], stop: Path, command: Command) -> tuple[int, bool]:
    """Wait for a process; return its exit code, and whether it was asked to end.

    Each line in the file `stop` is one Ctrl-C: the first saves, the second stops at once. To a command with a limit of
    time or an owner both are sent in time, and at last it is killed with all that it started.
    """
    sent = 0
    begun = time.time()
    limited = bool(command.seconds or command.owner[0])
    grace = min(GRACE, command.seconds / 10 or GRACE)
    ending = begun + command.seconds - 2 * grace if command.seconds else math.inf  # time of the first Ctrl-C
    while True:
        try:
            return child.wait(timeout=POLL), bool(sent)
        except subprocess.TimeoutExpired:
            asked = len(stop.read_text(encoding="utf-8").splitlines()) if stop.exists() else 0
            now = time.time()
            if asked or command.orphaned:
                ending = min(ending, now)
            if limited and now >= ending:
                asked = max(asked, 1 + int((now - ending) / grace))
            if limited and asked > 2:
                _kill(child.pid)
            elif asked > sent:
                sent += 1
                child.send_signal(INTERRUPT)


def _kill(pid: int) -> None:
    """Kill a process and its descendants."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
