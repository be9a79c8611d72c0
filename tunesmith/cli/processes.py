"""The processes of one run on this machine: starting them, and what each of them prints.

The processes are the same command with the variables that `torchrun` sets, so that a cluster can start them instead.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from tunesmith.cli.signals import NUMBERS
from tunesmith.cli.terminal import log
from tunesmith.data.cpu_count import cores
from tunesmith.models.world import RENDEZVOUS, current_world, started_as

# Seconds in which processes have to end after a failure, and after SIGTERM; the first may be copying the run elsewhere.
GRACE = 10.0
SAVING = 600.0
INTERVAL = 0.05
LOOPBACK = {"darwin": "lo0", "win32": ""}.get(sys.platform, "lo")  # by no fixed name on Windows, where gloo finds it


def launch(count: int, words: Sequence[str]) -> int:
    """Run a command in processes of this machine, over the loopback interface; return the code of the first to fail."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        shared = {
            **os.environ,
            RENDEZVOUS: f"file:///{Path(folder, 'rendezvous').as_posix().lstrip('/')}",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores() // count or 1)),
            **({"GLOO_SOCKET_IFNAME": LOOPBACK, "NCCL_SOCKET_IFNAME": LOOPBACK} if LOOPBACK else {}),
        }
        # -P: a file in the working folder must not shadow a library.
        command = [sys.executable, "-P", "-m", "tunesmith", *words]
        children = list[subprocess.Popen[bytes]]()
        with _forwarding(children):
            try:
                for rank in map(str, range(count)):
                    own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
                    children.append(subprocess.Popen(command, env=own, process_group=0))
                return _first_failure(children)
            finally:
                for child in children:
                    if child.poll() is None:
                        child.kill()


def _first_failure(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes; return the exit code of the first that failed, after which the others are ended."""
    failed, since, announced = 0, math.inf, False
    ends = iter((signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)))  # Windows has no SIGKILL
    while running := [child for child in children if child.poll() is None]:
        if not failed and (failed := _failed(children)):
            since = time.monotonic()
        waited, saving = time.monotonic() - since, running[0] is children[0]
        if saving and waited > GRACE and not announced:
            announced = True
            log(f"a process has ended; the first one has {SAVING / 60:.0f} minutes to save the run, Ctrl-C ends it")
        if waited > (SAVING if saving else GRACE) and (number := next(ends, None)):
            since = time.monotonic()
            for child in running:
                child.send_signal(number)
        time.sleep(INTERVAL)
    failed = failed or _failed(children)
    return 128 - failed if failed < 0 else failed


def _failed(children: Sequence[subprocess.Popen[bytes]]) -> int:
    return next((child.returncode for child in children if child.returncode), 0)


@contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM on to the processes, which decide when to stop."""

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            with suppress(ValueError):  # Windows sends Ctrl-C to all of them by itself
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def silence_followers() -> TextIO | None:
    """Send the output of every process but the first to nowhere; return the former stderr, None for the first."""
    if started_as()[0] == 0:
        return None
    kept = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    return kept


def reports_error() -> bool:
    """Return whether this process reports the error that ends it: of several, the first one to ask."""
    rank, _ = started_as()
    if rank:
        time.sleep(1.0)  # a lead for the first process, because most errors are the same in all of them
    return current_world().claim("error") if current_world().size > 1 else rank == 0


def tell_agent(message: str) -> None:
    """Write an error where `torchrun` looks for the reason why a process has ended."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")
