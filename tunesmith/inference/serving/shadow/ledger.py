"""The folder of a shadow: figures of every request, decisions, and rows with consent, in files that only grow."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from tunesmith.data.audit.checks.secrets import masked
from tunesmith.data.files import write_whole, writing
from tunesmith.data.record_lines import line_of, records_of
from tunesmith.errors import CheckpointError, DataError
from tunesmith.inference.serving.shadow.decision import Row, State

JOURNAL, ROWS = "journal.jsonl", "rows.jsonl"
MOST_BYTES = 16 * 2**20  # of the journal; then a new one begins with the state
MOST_ROW_BYTES = 64 * 2**20  # of the rows; the file before is kept, older ones are deleted


class Ledger:
    """The state of a shadow and its files. Thread-safe; one process per folder.

    A row or an event is in the file when the method returns, so a killed process loses nothing that it reported.

    Args:
        folder: the folder, created if missing.
        identity: both models and what is measured; with another one than before, everything has to be shown again.
        margin: agreement that may be missing, as a fraction.
        clock: current Unix time in seconds.

    Raises:
        DataError: another server uses the folder.
        CheckpointError: the journal was changed.
        StorageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: str, margin: float, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._mutex = Lock()
        self._journal, self._rows = folder / JOURNAL, folder / ROWS
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock", blocking=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise DataError(f"{folder}: used by another server; stop it, or give another --shadow-folder") from None
        try:
            for path in (self._journal, self._rows):
                _drop_torn_line(path)
            self.state = read_state(folder)
            if self.state.identity != identity:
                self._event({"kind": "start", "identity": identity, "margin": margin})
        except BaseException:
            self.close()
            raise

    def record(self, row: Row) -> None:
        """Write the figures of a request, count them, and change the share if they call for it."""
        with self._mutex:
            at = round(self._clock(), 3)
            self._write({"kind": "row", "at": at, **row.plain()})
            self.state.count(row, at=at)
            if row.agreement is not None and (event := self.state.due()):
                self._event(event)

    def keep(self, messages: Sequence[Mapping[str, str]], values: Mapping[str, Any]) -> None:
        """Write a row with texts, after masking personal data and secrets.

        Args:
            messages: role and content of each turn, the paid answer last.
            values: further values, such as the answer of the tuned model.
        """
        turns = [{"role": turn["role"], "content": masked(turn["content"])[0]} for turn in messages]
        values = {key: masked(value)[0] if isinstance(value, str) else value for key, value in values.items()}
        with self._mutex:
            if _size(self._rows) > MOST_ROW_BYTES:
                os.replace(self._rows, self._rows.with_name("rows.1.jsonl"))
            _append(self._rows, json.dumps({"messages": turns, **values}, ensure_ascii=False) + "\n")

    def restart(self, why: str) -> None:
        """Begin again without a share."""
        with self._mutex:
            self._event({"kind": "restart", "why": why})

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.release()

    def _event(self, event: Mapping[str, Any]) -> None:
        event = {**event, "at": round(self._clock(), 3)}
        self._write(event)
        _follow(self.state, event)

    def _write(self, record: Mapping[str, Any]) -> None:
        if _size(self._journal) > MOST_BYTES:
            # Killed between the two, the next start reads the old file, which has everything.
            os.replace(self._journal, self._journal.with_name("journal.1.jsonl"))
            write_whole(self._journal, line_of({"kind": "state", "state": self.state.model_dump()}))
        _append(self._journal, line_of(record))


def read_state(folder: Path) -> State:
    """Return the state of a folder, empty if there is none; raise CheckpointError if its journal was changed."""
    path = folder / JOURNAL
    path = path if path.exists() else folder / "journal.1.jsonl"
    state = State()
    for record in records_of(path, "kind"):
        try:
            if record["kind"] == "state":
                state = State.model_validate(record["state"])
            else:
                _follow(state, record)
        except (ValidationError, KeyError, TypeError, IndexError) as error:
            problem = f"not a journal of a shadow ({type(error).__name__})"
            raise CheckpointError(f"{path}: {problem}; give another --shadow-folder") from None
    return state


def _follow(state: State, record: Mapping[str, Any]) -> None:
    """Apply a record of the journal to a state."""
    if record["kind"] == "row":
        state.count(Row(**{key: value for key, value in record.items() if key not in ("kind", "at")}), at=record["at"])
        return
    if record["kind"] != "start" or state.identity:
        state.apply(record)
    if record["kind"] == "start":
        state.identity, state.margin = record["identity"], record["margin"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, line: str) -> None:
    """Append a line to a file that only its owner reads, whole or not at all."""
    with writing(path):
        path.touch(mode=0o600)
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            content = line.encode(errors="replace")  # halves of surrogate pairs
            try:
                written = file.write(content)
                if written < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed process left of its last line, so that the next one begins a line."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        with writing(path):
            os.truncate(path, content.rfind(b"\n") + 1)
