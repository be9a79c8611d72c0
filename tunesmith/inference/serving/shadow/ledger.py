"""The folder of a shadow: figures of every request, decisions, and rows with consent, in files that only grow."""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout

from tunesmith.data.audit.checks.secrets import masked
from tunesmith.data.files import move, writing
from tunesmith.data.record_lines import line_of, records_of
from tunesmith.errors import CheckpointError, DataError
from tunesmith.inference.serving.shadow.decision import Comparison, Row, State

JOURNAL, ROWS, KEY_FILE = "journal.jsonl", "rows.jsonl", "key"
OLDER = "journal.1.jsonl"
MOST_BYTES = 16 * 2**20  # of the journal; then a new one begins with the state
MOST_ROW_BYTES = 256 * 2**20  # of the rows; no more are kept until the file is moved


class Ledger:
    """The state of a shadow and its files, all readable by their owner only. Thread-safe; one process per folder.

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
        self._reloaded = False  # since the last event that is stored
        self._journal, self._rows = folder / JOURNAL, folder / ROWS
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock", blocking=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise DataError(f"{folder}: used by another server; stop it, or give another --shadow-folder") from None
        try:
            for path in (self._journal, self._rows):
                _drop_torn_line(path)
            self._key = _key_of(folder / KEY_FILE)
            self.state = read_state(folder)
            if self.state.identity != identity:
                self._event({"kind": "start", "identity": identity, "margin": margin})
        except BaseException:
            self.close()
            raise

    def allows(self, confidence: float) -> bool:
        """Return whether the tuned model may answer alone; never waits for the disk."""
        return not self._reloaded and self.state.allows(confidence)

    def record(self, row: Row) -> None:
        """Write the figures of a reply and count them."""
        with self._mutex:
            self._follow(row)

    def compare(self, row: Comparison) -> None:
        """Write the figures of a comparison, count them, and change the share if they call for it."""
        with self._mutex:
            if self._reloaded or row.attempt != self.state.attempt:
                return  # about a model that is not there any more
            self._follow(row)
            if event := self.state.due():
                self._event(event)

    def digest(self, text: str) -> str:
        """Return the digest by which a repeated text is known. Its key is in the folder."""
        return blake2b(text.encode(errors="replace"), key=self._key, digest_size=12).hexdigest()

    def keep(self, row: Mapping[str, Any]) -> None:
        """Write a row with texts, after masking personal data and secrets. Raises DataError if the file is full."""
        line = json.dumps(_masked(row), ensure_ascii=False) + "\n"
        with self._mutex:
            if _size(self._rows) > MOST_ROW_BYTES:
                size = f"{MOST_ROW_BYTES / 2**20:.0f} MiB of rows are kept"
                raise DataError(f"{self._rows}: {size}, and no more; move the file, and a new one begins")
            _append(self._rows, line)

    def reloaded(self) -> None:
        """Take the share away at once: the model is another one. `restart` stores it."""
        self._reloaded = True

    def restart(self, why: str) -> None:
        """Begin again without a share. Until that is stored, nothing is compared. Raises StorageError."""
        self._reloaded = True
        with self._mutex:
            self._event({"kind": "restart", "why": why})
            self._reloaded = False

    def summary(self) -> dict[str, Any]:
        """Return what reports show, of one moment."""
        with self._mutex:
            return self.state.summary()

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.release()

    def _follow(self, row: Row | Comparison) -> None:
        values = {key: value for key, value in asdict(row).items() if value not in (None, "")}
        self._event({"kind": "row" if isinstance(row, Row) else "compared", **values})

    def _event(self, event: Mapping[str, Any]) -> None:
        event = {**event, "at": round(self._clock(), 3)}
        if not 0 < _size(self._journal) <= MOST_BYTES and self.state.identity:
            self._begin_journal()
        _append(self._journal, line_of(event))
        _follow(self.state, event)

    def _begin_journal(self) -> None:
        """Begin a journal with the state. One is there at every moment; the one before is kept where links exist."""
        half, older = self._journal.with_name(f".{JOURNAL}.half"), self._journal.with_name(OLDER)
        with writing(self._journal):
            half.unlink(missing_ok=True)
            _append(half, line_of({"kind": "state", "state": self.state.model_dump()}))
            with suppress(OSError):
                older.unlink(missing_ok=True)
                os.link(self._journal, older)
            move(half, self._journal)


def read_state(folder: Path) -> State:
    """Return the state of a folder, empty if there is none; raise CheckpointError if its journal was changed."""
    path = folder / JOURNAL
    path = path if _size(path) else folder / OLDER
    state = State()
    for record in records_of(path, "kind"):
        try:
            if record["kind"] == "state":
                state = State.model_validate(record["state"])
            else:
                _follow(state, record)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            problem = f"not a journal of a shadow ({type(error).__name__})"
            raise CheckpointError(f"{path}: {problem}; give another --shadow-folder") from None
    return state


def _follow(state: State, record: Mapping[str, Any]) -> None:
    """Apply a record of the journal to a state."""
    kind, at = record["kind"], record["at"]
    values = {key: value for key, value in record.items() if key not in ("kind", "at")}
    if kind == "row":
        state.count(Row(**values), at=at)
    elif kind == "compared":
        state.compare(Comparison(**values), at=at)
    elif kind != "start" or state.identity:
        state.apply(record)
    if kind == "start":
        state.identity, state.margin = record["identity"], record["margin"]


def _masked(value: Any) -> Any:
    """Return a JSON value with placeholders for personal data in its texts and integers."""
    if isinstance(value, Mapping):
        return {masked(key)[0]: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    if isinstance(value, str):
        return masked(value)[0]
    if isinstance(value, int) and not isinstance(value, bool):  # a telephone number
        text, found = masked(str(value))
        return text if found else value
    return value


def _key_of(path: Path) -> bytes:
    """Return the key of the digests, created if the file has none."""
    with writing(path):
        if _size(path) != 32:
            path.unlink(missing_ok=True)
            _append(path, secrets.token_hex(16))
        return path.read_bytes()


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
