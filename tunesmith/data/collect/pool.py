"""Many files converted, each by a process of its own kind that may die or hang without harm."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.data.collect.document import Document, from_json
from tunesmith.data.cores import cores

# A page that takes longer than this never comes.
SILENCE = 90.0
PACKAGE = Path(__file__).resolve().parents[3]
# What Python and the parsers need to start. Keys and tokens stay outside the process that opens files of others.
PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "HOME", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a file: a document, or why there is none (`finding; cure`)."""

    path: Path
    document: Document | None
    error: str = ""


def convert_all(
    paths: Sequence[Path], *, heard: Callable[[Path, int], None] = lambda path, page: None, silence: float = SILENCE
) -> Iterator[Converted]:
    """Every file as it is ready, in no order; `heard` is told of each page of the longer ones."""
    count = max(1, min(len(paths), cores(), 4))
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker(silence) for _ in range(count)]
    for worker in workers:
        idle.put(worker)

    def work(path: Path) -> Converted:
        worker = idle.get()
        try:
            return worker.convert(path, heard)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(count) as threads:
        waiting: set[Future[Converted]] = {threads.submit(work, path) for path in paths}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()
            for worker in workers:
                worker.stop()


class _Worker:
    """One process, started when it is first needed and again after it died."""

    def __init__(self, silence: float) -> None:
        self.silence = silence
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopped = False

    def convert(self, path: Path, heard: Callable[[Path, int], None]) -> Converted:
        """The file as a document, or the reason why not."""
        if self._stopped:
            return Converted(path, None, "not converted, since the command was stopped; run it again")
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(str(path.resolve())) + "\n")
            process.stdin.flush()
        except OSError:
            return self._lost(path, "its reader ended before it began; run the command again")
        while True:
            try:
                line = self._lines.get(timeout=self.silence)
            except queue.Empty:
                return self._lost(path, f"nothing came out of it for {self.silence:.0f} s; split it or save it as text")
            if not line:
                return self._lost(path, "its reader broke down over it; open it and save it anew")
            said: dict[str, Any] = json.loads(line)
            if "page" in said:
                heard(path, said["page"])
            elif "document" in said:
                return Converted(path, from_json(said["document"]))
            else:
                return Converted(path, None, said["error"])

    def _start(self) -> None:
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        # -P: a file in the working folder must not be imported in a library's place.
        command = [sys.executable, "-P", "-m", "tunesmith.data.collect.worker"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**passed, "PYTHONPATH": str(PACKAGE), "PYTHONUTF8": "1"},
            text=True,
            encoding="utf-8",
        )
        self._lines = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()

    def _lost(self, path: Path, why: str) -> Converted:
        self._end()
        return Converted(path, None, why)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)

    def stop(self) -> None:
        """End the process."""
        self._stopped = True
        self._end()


def _read(pipe: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Pass lines on; an empty one says that there are no more."""
    try:
        for line in pipe:
            lines.put(line)
    except (OSError, ValueError):
        pass  # closed by `stop` while it was read
    lines.put("")


def _close(pipe: IO[str]) -> None:
    with suppress(OSError):  # the process is gone, and what was still to be written to it with it
        pipe.close()
