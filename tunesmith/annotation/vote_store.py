"""Append-only store of votes in one SQLite file; events are on disk before `append` returns.

Votes, skips and undos are events; `votes.py` computes the current state from them. A second table holds leases, which
reserve an item for a browser tab so that two tabs do not show the same item. Losing a lease loses no data.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from tunesmith.errors import DataError

APPLICATION = 0x54536D56  # "TSmV", SQLite's application_id of these files
FORMAT = 1
HEADER = b"SQLite format 3\0"
BUSY_SECONDS = 10.0  # wait for a lock of another process
# Kind of an event -> required keys of its body.
HOLDS = {
    "vote": {"label"}, "word": {"label"}, "undo": {"of"},
    "item": {"turns", "answers", "by", "gold"}, "answer": {"text", "by", "weights", "drawing"},
}  # fmt: skip
SCHEMA = (
    "create table if not exists about (key text primary key, value text not null)",
    """create table if not exists events (
         number integer primary key autoincrement, at real not null, rater text not null,
         kind text not null, item text not null, body text not null)""",
    """create table if not exists leases (
         tab text primary key, rater text not null, item text not null, until real not null)""",
    "create index if not exists leases_by_item on leases (item)",
    """create trigger if not exists events_stay before delete on events
         begin select raise(abort, 'events are only added'); end""",
    """create trigger if not exists events_keep before update on events
         begin select raise(abort, 'events are only added'); end""",
    f"pragma application_id = {APPLICATION}",
    f"pragma user_version = {FORMAT}",
)


class Unwritten(DataError):
    """The store is temporarily not writable; the operation may be retried."""


class Who(NamedTuple):
    """A rater and the browser tab they use."""

    rater: str
    tab: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A stored action of a rater on an item."""

    number: int  # increases with time
    at: float  # Unix time in seconds
    rater: str
    kind: str
    item: str  # key of the item
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """An event to append."""

    rater: str
    kind: str
    item: str = ""
    body: Mapping[str, Any] | None = None


class VoteStore:
    """The events and leases of one file, created if missing; threads and processes may share it.

    Args:
        path: the file.
        what: kind of the items; a store of another kind is refused.
        clock: current Unix time in seconds.
        empty: other kinds; a store of one of them that has no events becomes one of this kind.
        read_only: nothing is written, so that the folder need not be writable; the file must be there.

    Raises:
        DataError: the file is not a vote store, is of another kind, damaged, or cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        clock: Callable[[], float] = time.time,
        empty: Collection[str] = (),
        read_only: bool = False,
    ) -> None:
        self.path = path
        self._what = what
        self._clock = clock
        self._lock = RLock()
        try:
            if path.is_file():  # checked before SQLite, which treats a file of a few bytes as an empty database
                with path.open("rb") as file:
                    header = file.read(len(HEADER))
                if header and header != HEADER:
                    fix = "give one written by `tunesmith feedback` or `tunesmith label`"
                    raise DataError(f"{path}: not a vote store; {fix}")
            self._db = (
                _reader(path)
                if read_only
                else sqlite3.connect(
                    path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
                )
            )
            try:
                self._check_program()
                if read_only:
                    self._check_kind()
                else:
                    self._open(what, empty)
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise DataError(_damaged(path, str(error))) from error
            problem = "cannot read" if read_only else "cannot store"
            raise DataError(f"{path}: {problem} votes ({error}); give a file in a writable folder") from error

    def _check_program(self) -> None:
        application = self._pragma("application_id")
        if application != APPLICATION and self._db.execute("select 1 from sqlite_master limit 1").fetchone():
            raise DataError(f"{self.path}: database of another program; give another vote store")
        if self._pragma("user_version") > FORMAT:
            raise DataError(f"{self.path}: written by a newer tunesmith; pip install --upgrade tunesmith")

    def _open(self, what: str, empty: Collection[str]) -> None:
        # With the write-ahead log and FULL, each commit waits for the disk: a vote survives a power failure.
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        with self._writing():
            for statement in SCHEMA:
                self._db.execute(statement)
            self._db.execute("insert or ignore into about values ('what', ?)", (what,))
            for kind in empty:
                change = "update about set value = ? where value = ? and not exists (select 1 from events)"
                self._db.execute(change, (what, kind))
            self._check_kind()

    def _check_kind(self) -> None:
        (stored,) = self._db.execute("select value from about where key = 'what'").fetchone()
        if stored != self._what:
            problem = f"expected votes on {self._what}, got votes on {stored}"
            raise DataError(f"{self.path}: {problem}; give another vote store")

    @staticmethod
    def kind(path: Path) -> str:
        """Return the kind of the items of a store; empty if the file is none or cannot be read."""
        try:
            with closing(_reader(path)) as db:
                return str(db.execute("select value from about where key = 'what'").fetchone()[0])
        except (sqlite3.Error, TypeError):
            return ""

    @staticmethod
    def has_events(path: Path) -> bool:
        """Return whether a file is a store with any event."""
        try:
            with closing(_reader(path)) as db:
                return db.execute("select 1 from events limit 1").fetchone() is not None
        except sqlite3.Error:
            return False

    def append(self, *entries: Entry) -> list[Event]:
        """Write the entries in one transaction and return them as events; raise Unwritten if that fails now."""
        at = self._clock()
        events = []
        with self._writing():
            self._check_kind()  # another process may have opened the store while it was empty
            for entry in entries:
                body = json.dumps(dict(entry.body or {}), ensure_ascii=False, sort_keys=True)
                values = (at, entry.rater, entry.kind, entry.item, body)
                cursor = self._db.execute(
                    "insert into events (at, rater, kind, item, body) values (?, ?, ?, ?, ?)", values
                )
                events.append(Event(cursor.lastrowid or 0, at, entry.rater, entry.kind, entry.item, entry.body or {}))
        return events

    def since(self, after: int = 0) -> list[Event]:
        """Return the events with a number above `after`, in order. Raises DataError if the store is damaged."""
        try:
            with self._lock:
                rows = self._db.execute("select * from events where number > ? order by number", (after,)).fetchall()
        except sqlite3.DatabaseError as error:
            raise DataError(_damaged(self.path, str(error))) from error
        return [
            Event(number, at, rater, kind, item, self._body(number, kind, body))
            for number, at, rater, kind, item, body in rows
        ]

    def _body(self, number: int, kind: str, body: str) -> dict[str, Any]:
        """Parse and check the body of an event."""
        try:
            parsed = json.loads(body)
        except (ValueError, TypeError) as error:
            raise DataError(_damaged(self.path, f"event {number}: {error}")) from error
        missing = HOLDS.get(kind, set()) - set(parsed if isinstance(parsed, dict) else ())
        if missing or not isinstance(parsed, dict):
            raise DataError(_damaged(self.path, f"event {number}, {kind}: missing {', '.join(sorted(missing))}"))
        return parsed

    def lease(self, item: str, who: Who, *, places: int, seconds: float) -> bool:
        """Reserve an item for a tab for some seconds, and release its other leases.

        Returns False if the item is held by `places` others, or by the same rater in another tab; raises Unwritten.
        """
        now = self._clock()
        with self._writing():
            self._db.execute("delete from leases where until <= ? or tab = ?", (now, who.tab))
            others = self._db.execute("select rater from leases where item = ?", (item,)).fetchall()
            if len(others) >= places or (who.rater,) in others:
                return False
            self._db.execute("insert into leases values (?, ?, ?, ?)", (who.tab, who.rater, item, now + seconds))
        return True

    def renew(self, item: str, who: Who, *, seconds: float) -> bool:
        """Reserve an item that the tab holds for some more seconds; False if it does not hold it; raises Unwritten."""
        now = self._clock()
        with self._writing():
            renewed = self._db.execute(
                "update leases set until = ? where tab = ? and rater = ? and item = ? and until > ?",
                (now + seconds, who.tab, who.rater, item, now),
            )
        return renewed.rowcount > 0

    def leases(self) -> dict[str, list[Who]]:
        """Return the current holders of each leased item."""
        holders: dict[str, list[Who]] = {}
        with self._lock:
            query = "select item, rater, tab from leases where until > ?"
            for item, rater, tab in self._db.execute(query, (self._clock(),)):
                holders.setdefault(item, []).append(Who(rater, tab))
        return holders

    def release(self, who: Who) -> None:
        """Delete the lease of the tab."""
        with self._writing():
            self._db.execute("delete from leases where tab = ? and rater = ?", (who.tab, who.rater))

    def close(self) -> None:
        """Merge the write-ahead log into the file and close it."""
        with self._lock:
            self._db.close()

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"pragma {name}").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Open an exclusive write transaction; raise Unwritten if another process holds the lock."""
        with self._lock:
            try:
                self._db.execute("begin immediate")
                try:
                    yield
                    self._db.execute("commit")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("rollback")
                    raise
            except sqlite3.OperationalError as error:
                fix = "stop the process that locks it or free disk space, then try again"
                raise Unwritten(f"{self.path}: not writable ({error}); {fix}") from error


def _reader(path: Path) -> sqlite3.Connection:
    """Connect to an existing file without writing next to it; no process writes if there is no write-ahead log."""
    file = Path(os.path.realpath(path))  # SQLite writes the log next to the file, not next to a link to it
    try:
        logged = file.with_name(f"{file.name}-wal").stat().st_size > 0
    except OSError:  # another process may remove it at any time
        logged = False
    options = "mode=ro" if logged else "mode=ro&immutable=1"
    return sqlite3.connect(f"{file.as_uri()}?{options}", uri=True, check_same_thread=False)


def _damaged(path: Path, problem: str) -> str:
    return f"{path}: damaged vote store ({problem}); restore a backup or give another vote store"
