"""Conversion of many files in worker processes that may crash or hang without harm."""

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

from tunesmith.data.cpu_count import cores
from tunesmith.data.documents.document import Document, from_json

# Seconds without a result after which a worker is considered stuck.
SILENCE = 90.0
PACKAGE = Path(__file__).resolve().parents[3]
# Environment variables that Python and the parsers need. Keys and tokens are kept from processes that open untrusted
# files.
PASSED = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "HOME", "VIRTUAL_ENV"),
    *("SYSTEMROOT", "TEMP", "TMP", "USERPROFILE", "APPDATA", "LOCALAPPDATA"),  # of Windows
)


@dataclass(frozen=True, slots=True)
class Converted:
    """The result for one file: a document or an error."""

    path: Path
    document: Document | None
    error: str = ""  # `problem; fix`


def convert_all(
    paths: Sequence[Path], *, on_page: Callable[[Path, int], None] = lambda path, page: None, silence: float = SILENCE
) -> Iterator[Converted]:
    """Convert files in up to four worker processes, and yield the result of each in the order of completion.

    Args:
        paths: the files.
        on_page: called with the path and the page number after each page of a PDF.
        silence: seconds without a result after which a worker is stopped and its file fails.
    """
    count = max(1, min(len(paths), cores(), 4))
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker(silence) for _ in range(count)]
    for worker in workers:
        idle.put(worker)

    def work(path: Path) -> Converted:
        worker = idle.get()
        try:
            return worker.convert(path, on_page)
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
    """A worker process, started when it is first needed and again after a crash."""

    def __init__(self, silence: float) -> None:
        self.silence = silence
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopped = False

    def convert(self, path: Path, on_page: Callable[[Path, int], None]) -> Converted:
        """Convert one file."""
        if self._stopped:
            return Converted(path, None, "not converted: the command was stopped; run it again")
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(str(path.resolve())) + "\n")
            process.stdin.flush()
        except OSError:
            return self._failed(path, "the worker process ended before it started; run the command again")
        while True:
            try:
                line = self._lines.get(timeout=self.silence)
            except queue.Empty:
                return self._failed(path, f"no result within {self.silence:.0f} s; split it or save it as text")
            if not line:
                return self._failed(path, "the worker process crashed on this file; open it and save it again")
            message: dict[str, Any] = json.loads(line)
            if "page" in message:
                on_page(path, message["page"])
            elif "document" in message:
                return Converted(path, from_json(message["document"]))
            else:
                return Converted(path, None, message["error"])

    def _start(self) -> None:
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        # -P: a file in the working folder must not shadow a library.
        command = [sys.executable, "-P", "-m", "tunesmith.data.documents.worker"]
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

    def _failed(self, path: Path, error: str) -> Converted:
        self._end()
        return Converted(path, None, error)

    def _end(self) -> None:
        process = self._process
        self._process = None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # closing flushes what is still buffered, but the process has ended
                    pipe.close()

    def stop(self) -> None:
        """End the process."""
        self._stopped = True
        self._end()


def _read(pipe: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Put the lines of a pipe into a queue, and an empty one at the end."""
    try:
        for line in pipe:
            lines.put(line)
    except (OSError, ValueError):
        pass  # closed by `stop` during the read
    lines.put("")
