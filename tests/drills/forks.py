"""A process that has imported everything and forks for each command: a start takes milliseconds instead of seconds.

Started with `faults.c` preloaded, so that every fork can have its own full or read-only disk, and with an end by
SIGKILL at any moment.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("faults.c")
FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LONGEST = 240.0  # seconds of one command


@dataclass(frozen=True)
class Ended:
    """How a command ended; a code below zero is the signal that ended it."""

    code: int
    out: str
    err: str
    seconds: float
    points: list[str]  # calls that changed something in the folder, without those that went on with the file before


class Forks:
    """Runs commands in `box`, a folder below a place of their own; their cache is in there too.

    Args:
        place: an empty folder.
        whole: each command measures the machine's speed, general ability and intervals as users' commands do, which
            takes half of its time and writes nothing more.
    """

    def __init__(self, place: Path, *, whole: bool = False) -> None:
        self.box, self._place = place / "box", place
        self.box.mkdir()
        (place / "tmp").mkdir()
        library = place / "faults.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        env = {**os.environ, "LD_PRELOAD": str(library), "TUNESMITH_CACHE": str(self.box / "cache")}
        env |= {
            "TMPDIR": str(place / "tmp"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str(place / "tmp"),
        }
        env["PYTHONPATH"] = str(SOURCE.parents[2])
        command = [sys.executable, "-m", __name__, str(place), *(["whole"] if whole else [])]
        self._server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, *words: str, at: int = 0, error: int = errno.ENOSPC, once: bool = False, client: str = "",
        kill: float = 0.0, alone: bool = False,
    ) -> Ended:  # fmt: skip
        """Run a command.

        Args:
            words: of the command line.
            at: the first point that fails; 0 for none.
            error: code of the error; with 0, its processes are killed at the point.
            once: only this point fails, or only the first process is killed.
        client: `MODULE:FUNCTION`, called in a thread beside the command.
            kill: seconds after which it is killed with all its processes; 0 for never.
            alone: kill only the first of its processes.
        """
        assert self._server.stdin
        assert self._server.stdout
        wish = {"words": words, "at": at, "error": error, "once": once, "client": client, "kill": kill, "alone": alone}
        self._server.stdin.write(json.dumps(wish) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._server.kill()
        self._server.communicate()


def _serve(place: Path, *, whole: bool) -> None:
    """Answer the requests on stdin."""
    import peft  # noqa: F401
    import pytest
    import torch
    import transformers  # noqa: F401

    import tunesmith.cli.main  # noqa: F401
    from tests.glance import only_a_glance
    from tunesmith.models.loading import device
    from tunesmith.report.html import environment

    torch.set_num_threads(1)
    for name in environment().list_templates(["jinja"]):
        environment().get_template(name)  # compiled once for all forks
    if not whole:
        device.gemm_gflops = lambda *_, **__: 100.0
        only_a_glance(pytest.MonkeyPatch())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        wish = json.loads(line)
        _import(place / "modules")
        files = {name: place / name for name in ("out", "err", "points")}
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            _work(place, wish, {name: os.open(file, FRESH) for name, file in files.items()})
        code = _wait(pid, kill=wish["kill"], alone=wish["alone"])
        seconds = time.monotonic() - began
        texts = {name: file.read_text("utf-8", "backslashreplace") for name, file in files.items()}
        points = texts.pop("points").splitlines()
        print(json.dumps({"code": code, "seconds": seconds, "points": points, **texts}), file=answers, flush=True)


def _import(file: Path) -> None:
    """Import what earlier commands have imported, so that the next forks need not."""
    for name in file.read_text().split() if file.exists() else ():
        if name not in sys.modules:
            with suppress(Exception):
                import_module(name)


def _wait(pid: int, *, kill: float, alone: bool) -> int:
    """Wait for a process, or kill it and its children after some seconds."""
    end = time.monotonic() + (kill or LONGEST)
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
            found = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    if not alone:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(found[1])


def _work(place: Path, wish: dict[str, Any], files: dict[str, int]) -> None:
    """Run a command in this process and end it."""
    from tunesmith.cli.main import main

    os.setsid()
    for number, name in ((0, os.devnull), (1, files["out"]), (2, files["err"])):
        os.dup2(os.open(name, os.O_RDONLY) if isinstance(name, str) else name, number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    os.chdir(place / "box")
    arm = ctypes.CDLL(None).faults_arm
    arm(str(place / "box").encode(), wish["at"], wish["error"], wish["once"], files["points"])
    code = 99
    if wish["client"]:
        module, _, name = wish["client"].partition(":")
        threading.Thread(target=getattr(import_module(module), name), daemon=True).start()
    try:
        code = main(wish["words"])
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 2
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    arm(b"none", 0, 0, 0, -1)
    (place / "modules").write_text("\n".join(sorted(sys.modules)))
    os._exit(code)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), whole="whole" in sys.argv)
