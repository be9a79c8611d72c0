"""One file of votes (SQLite): events are only ever added, and are on disk before `append` returns.

A vote, a skip and an undo are events; what stands is what the events amount to (`votes.py`). Beside them lie
leases, which say who looks at what: they keep two tabs from the same item, and losing one loses nothing.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

from tunesmith.errors import DataError

# "TSmV" in the header of the file tells it from anybody else's database.
APPLICATION, FORMAT = 0x54536D56, 1
HEADER = b"SQLite format 3\0"
BUSY_SECONDS = 10.0
# Kind of an event -> what its body holds.
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
    """The file cannot be written at the moment; the same may be tried again."""


class Who(NamedTuple):
    """A person by the name they gave, and the tab they sit at."""

    rater: str
    tab: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person did to an item; `at` in seconds since 1970, numbers grow by time."""

    number: int
    at: float
    rater: str
    kind: str
    item: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """An event before it is written."""

    rater: str
    kind: str
    item: str = ""
    body: Mapping[str, Any] | None = None


class VoteStore:
    """The events and leases of one file, made if it is not there; several threads and processes may share it.

    Raises DataError for a file that is not such a store, or that holds votes on something other than `what`.
    """

    def __init__(self, path: Path, *, what: str, clock: Callable[[], float] = time.time) -> None:
        self.path, self._clock, self._lock = path, clock, RLock()
        try:
            _check_header(path)
            self._db = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            try:
                self._open(what)
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise DataError(_damaged(path, str(error))) from error
            cure = "name a file of votes in a folder that can be written"
            raise DataError(f"{path}: cannot keep votes here ({error}); {cure}") from error

    def _open(self, what: str) -> None:
        found = self._pragma("application_id")
        if found != APPLICATION and self._db.execute("select 1 from sqlite_master limit 1").fetchone():
            raise DataError(f"{self.path}: a database of another program; name another file of votes")
        if self._pragma("user_version") > FORMAT:
            raise DataError(f"{self.path}: written by a newer tunesmith; pip install --upgrade tunesmith")
        # With the write-ahead log and FULL each commit waits for the disk: a vote outlives a crash of the machine.
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        with self._writing():
            for line in SCHEMA:
                self._db.execute(line)
            self._db.execute("insert or ignore into about values ('what', ?)", (what,))
        (held,) = self._db.execute("select value from about where key = 'what'").fetchone()
        if held != what:
            raise DataError(f"{self.path}: holds {held}, not {what}; name another file of votes")

    def append(self, *entries: Entry) -> list[Event]:
        """The entries as events, all of them on disk or none."""
        at, made = self._clock(), []
        with self._writing():
            for entry in entries:
                body = json.dumps(dict(entry.body or {}), ensure_ascii=False, sort_keys=True)
                values = (at, entry.rater, entry.kind, entry.item, body)
                done = self._db.execute(
                    "insert into events (at, rater, kind, item, body) values (?, ?, ?, ?, ?)", values
                )
                made.append(Event(done.lastrowid or 0, at, entry.rater, entry.kind, entry.item, entry.body or {}))
        return made

    def since(self, after: int = 0) -> list[Event]:
        """The events after that number, in the order in which they happened. Raises DataError for damaged ones."""
        try:
            with self._lock:
                found = self._db.execute("select * from events where number > ? order by number", (after,)).fetchall()
        except sqlite3.DatabaseError as error:
            raise DataError(_damaged(self.path, str(error))) from error
        return [
            Event(number, at, rater, kind, item, self._body(number, kind, body))
            for number, at, rater, kind, item, body in found
        ]

    def _body(self, number: int, kind: str, body: str) -> dict[str, Any]:
        """What an event says. Raises DataError where it is not what was written."""
        try:
            found = json.loads(body)
        except (ValueError, TypeError) as error:
            raise DataError(_damaged(self.path, f"event {number}: {error}")) from error
        lacks = HOLDS.get(kind, set()) - set(found if isinstance(found, dict) else ())
        if lacks or not isinstance(found, dict):
            raise DataError(_damaged(self.path, f"event {number}, {kind}, lacks {', '.join(sorted(lacks))}"))
        return found

    def lease(self, item: str, who: Who, *, places: int, seconds: float) -> bool:
        """Whether the tab may look at the item now, with at most `places` people at it; it lets go of any other.

        The same person never gets an item in two tabs.
        """
        now = self._clock()
        with self._writing():
            self._db.execute("delete from leases where until <= ? or tab = ?", (now, who.tab))
            others = self._db.execute("select rater from leases where item = ?", (item,)).fetchall()
            if len(others) >= places or (who.rater,) in others:
                return False
            self._db.execute("insert into leases values (?, ?, ?, ?)", (who.tab, who.rater, item, now + seconds))
        return True

    def leases(self) -> dict[str, list[Who]]:
        """Item -> who looks at it now."""
        found: dict[str, list[Who]] = {}
        with self._lock:
            query = "select item, rater, tab from leases where until > ?"
            for item, rater, tab in self._db.execute(query, (self._clock(),)):
                found.setdefault(item, []).append(Who(rater, tab))
        return found

    def release(self, who: Who) -> None:
        """Let go of what the tab looks at."""
        with self._writing():
            self._db.execute("delete from leases where tab = ? and rater = ?", (who.tab, who.rater))

    def close(self) -> None:
        """Write the log back into the one file and let go of it."""
        with self._lock:
            self._db.close()

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"pragma {name}").fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that no other thread or process writes beside. Raises Unwritten."""
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
                cure = "end what holds it or make room, then try again"
                raise Unwritten(f"{self.path}: cannot be written ({error}); {cure}") from error


def _damaged(path: Path, finding: str) -> str:
    return f"{path}: damaged inside ({finding}); go on with a copy from before, or name another file of votes"


def _check_header(path: Path) -> None:
    """Refuse what is no database before SQLite sees it: it takes a file of a few bytes for an empty one."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        begins = file.read(len(HEADER))
    if begins and begins != HEADER:
        raise DataError(f"{path}: not a file of votes; name one that `tunesmith feedback` or `label` wrote")
