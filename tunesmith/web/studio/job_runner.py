"""A command in a separate process, which outlives the page that started it: `python -m ... JOB_FOLDER`.

The runner waits for its turn, runs the command, and records how it ended. It outlives the server of the page, and the
only way to reach it is a file in the folder of the job, which works on every system.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from tunesmith.web.studio.jobs import (
    ERRORS,
    OUTPUT,
    STOP,
    Job,
    Jobs,
    State,
    StateName,
    process_mark,
)

POLL = 0.2  # seconds
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
    while not (folder / STOP).exists():
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
        child = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", *command.words],
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            creationflags=NEW_GROUP,
        )
        code = _wait(child, folder / STOP)
    stopped = code in (130, 143) or (code < 0 and (folder / STOP).exists())
    succeeded = code in (0, 1) and not job.error()  # 1: also a check that failed, whose result is printed
    name: StateName = "stopped" if stopped else "finished" if succeeded else "failed"
    State(name, runner=mark, started=state.started, ended=time.time(), code=code).write(folder)


def _wait(child: subprocess.Popen[bytes], stop: Path) -> int:
    """Wait for a process; each line in the file `stop` is one Ctrl-C: the first saves, the second stops at once."""
    sent = 0
    while True:
        try:
            return child.wait(timeout=POLL)
        except subprocess.TimeoutExpired:
            asked = len(stop.read_text(encoding="utf-8").splitlines()) if stop.exists() else 0
            if asked > sent:
                sent += 1
                child.send_signal(INTERRUPT)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
