"""Commands on a simulated Windows: a process that has imported everything and forks for each of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONSOLE = "cp1252"
LONGEST = 300.0  # seconds of one command
Requests = Sequence[tuple[str, Any]]  # path, and the body or None; KEY is the item that was shown last


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    words: str
    code: int
    out: str
    err: str
    refused: list[str]  # operations on files that Windows refuses, also where the program expects it
    answers: list[Any]


class Session:
    """A working folder with tiny models, as a user of Windows has it.

    Args:
        place: an empty folder.
    """

    def __init__(self, place: Path) -> None:
        self.box = place / "Eigene Dateien \N{LATIN SMALL LETTER U WITH DIAERESIS}"
        self.box.mkdir()
        env = {**os.environ, "TUNESMITH_CACHE": str(self.box / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.box), "MPLCONFIGDIR": str(place)}
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(place), str(self.box)]
        self._server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *words: str, requests: Requests = (), typed: str = "", kill_at: str = "") -> Ended:
        """Run a command in the folder.

        Args:
            words: the command line; `-c` and Python code runs that as a module of ours.
            requests: what the server that it starts is asked; then it gets Ctrl-C.
            typed: its stdin.
            kill_at: it is killed where something is renamed to a path with this end.
        """
        assert self._server.stdin
        assert self._server.stdout
        wish = {"words": words, "requests": requests, "typed": typed, "kill_at": kill_at}
        self._server.stdin.write(json.dumps(wish) + "\n")
        self._server.stdin.flush()
        return Ended(" ".join(words), **json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()


def _serve(place: Path, box: Path) -> None:
    """Answer the requests on stdin."""
    import filelock  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import pytest
    import torch
    import transformers  # noqa: F401
    import uvicorn  # noqa: F401

    from tests.systems.windows import install

    torch.set_num_threads(1)
    notes = place / "refused"
    disk = install(box, notes)
    furnish = import_module("tests.golden.commands").furnish
    small = import_module("tests.golden.conftest")
    import_module("tunesmith.cli.main")
    import_module("tests.glance").only_a_glance(pytest.MonkeyPatch())
    torch.mm = small._small_products(torch.mm)
    furnish(box)
    for pattern in ("*.jsonl", "*.yaml", "manual/*.md", "manual/*.txt"):
        for file in box.glob(pattern):  # as editors of Windows write them
            file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    os.chdir(box)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        wish = json.loads(line)
        _import(place / "modules")
        notes.unlink(missing_ok=True)
        if not (pid := os.fork()):
            disk.kill_at = wish["kill_at"]
            _work(place, wish)
        code = _wait(pid)
        texts = {name: (place / name).read_text(CONSOLE) for name in ("out", "err")}
        refused = notes.read_text("utf-8").splitlines() if notes.exists() else []
        said = json.loads((place / "answers").read_text("utf-8")) if wish["requests"] and code == 0 else []
        print(json.dumps({"code": code, **texts, "refused": refused, "answers": said}), file=answers, flush=True)


def _import(file: Path) -> None:
    """Import what earlier commands have imported, so that the next forks need not."""
    for name in file.read_text("utf-8").split() if file.exists() else ():
        if name not in sys.modules:
            with suppress(Exception):
                import_module(name)


def _wait(pid: int) -> int:
    end = time.monotonic() + LONGEST
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def _work(place: Path, wish: Mapping[str, Any]) -> None:
    """Run a command in this process and end it."""
    main = import_module("tunesmith.cli.main").main
    (place / "in").write_text(wish["typed"], "utf-8")
    os.dup2(os.open(place / "in", os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place / name[3:], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
        setattr(sys, name, os.fdopen(number, "w", encoding=CONSOLE, errors="strict"))
    if wish["requests"]:
        Path("url.json").unlink(missing_ok=True)
        threading.Thread(target=_ask, args=(wish["requests"], place / "answers"), daemon=True).start()
    code = 99
    try:
        if wish["words"][0] == "-c":
            exec(wish["words"][1], {"__name__": "tunesmith.script"})
            code = 0
        else:
            code = main(wish["words"])
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 2
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    (place / "modules").write_text("\n".join(sorted(sys.modules)), "utf-8")
    os._exit(code)


def _ask(requests: Requests, notes: Path) -> None:
    """Ask the server that starts in this process, then send it Ctrl-C."""
    answers: list[Any] = []
    try:
        url = json.loads(_text_of(Path("url.json")))["url"].partition("?")[0].rstrip("/")
        key = ""
        for path, body in requests:
            answer = _answer(url + path, None if body is None else json.dumps(body).replace("KEY", key))
            key = (answer.get("item") or {}).get("key", key) if isinstance(answer, dict) else key
            answers.append(answer)
    except BaseException:
        answers.append(traceback.format_exc())
    notes.write_text(json.dumps(answers), "utf-8")
    os.kill(os.getpid(), signal.SIGINT)


def _answer(url: str, body: str | None) -> Any:
    form = body is not None and body.startswith('"')  # a text is a form
    kind = "application/x-www-form-urlencoded" if form else "application/json"
    data = None if body is None else (json.loads(body) if form else body).encode()
    request = urllib.request.Request(url, data, {"content-type": kind, "x-tunesmith": "1"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = f"{error.code} {error.read().decode()}"
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text_of(path: Path, ready: Callable[[Path], bool] = lambda path: path.exists() and path.stat().st_size > 0) -> str:
    end = time.monotonic() + 60
    while not ready(path):
        assert time.monotonic() < end, path
        time.sleep(0.02)
    return path.read_text("utf-8")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
