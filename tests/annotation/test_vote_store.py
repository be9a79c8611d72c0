"""The store of votes: only added to, shared, and refused where it is not one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tunesmith.annotation.vote_store import Entry, Unwritten, VoteStore, Who
from tunesmith.errors import DataError

ANA, BO = Who("Ana", "tab-a"), Who("Bo", "tab-b")


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> VoteStore:
    return VoteStore(tmp_path / "votes.db", what="labels", clock=clock)


def test_an_event_is_there_for_another_process_as_soon_as_append_returns(store: VoteStore):
    store.append(Entry("Ana", "vote", "x", {"label": "Größe"}))
    code = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select body from events').fetchall())"
    read = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True)
    assert "Größe" in read.stdout


def test_a_commit_waits_for_the_disk(store: VoteStore):
    assert store._db.execute("pragma journal_mode").fetchone() == ("wal",)
    assert store._db.execute("pragma synchronous").fetchone() == (2,)  # FULL


def test_events_come_back_in_order_with_their_time(store: VoteStore, clock: Clock):
    store.append(Entry("Ana", "vote", "x", {"label": "a"}), Entry("Ana", "skip", "y"))
    clock.now = 107.0
    store.append(Entry("Bo", "vote", "x", {"label": "b"}))
    found = store.since()
    assert [(e.number, e.at, e.rater, e.kind, e.item, e.body) for e in found] == [
        (1, 100.0, "Ana", "vote", "x", {"label": "a"}),
        (2, 100.0, "Ana", "skip", "y", {}),
        (3, 107.0, "Bo", "vote", "x", {"label": "b"}),
    ]
    assert store.since(2) == found[2:]


@pytest.mark.parametrize("line", ["update events set rater = 'Eve'", "delete from events"])
def test_no_program_changes_or_deletes_an_event(store: VoteStore, line: str):
    store.append(Entry("Ana", "vote", "x", {"label": "a"}))
    with pytest.raises(sqlite3.IntegrityError, match="only added"):
        sqlite3.connect(store.path).execute(line)


def test_entries_that_are_appended_together_are_all_there_or_none(store: VoteStore):
    with pytest.raises(TypeError):
        store.append(Entry("Ana", "vote", "x", {"label": "a"}), Entry("Ana", "vote", "y", {"label": object()}))
    assert store.since() == []
    store.append(Entry("Ana", "vote", "x", {"label": "a"}))  # the store goes on
    assert len(store.since()) == 1


def test_two_tabs_never_hold_the_same_item(store: VoteStore):
    assert store.lease("x", ANA, places=1, seconds=60)
    assert not store.lease("x", BO, places=1, seconds=60)
    assert store.leases() == {"x": [ANA]}


def test_with_two_places_two_people_may_hold_an_item_but_never_one_person_twice(store: VoteStore):
    assert store.lease("x", ANA, places=2, seconds=60)
    assert not store.lease("x", Who("Ana", "tab-c"), places=2, seconds=60)
    assert store.lease("x", BO, places=2, seconds=60)
    assert not store.lease("x", Who("Cy", "tab-d"), places=2, seconds=60)


def test_a_tab_lets_go_of_one_item_when_it_takes_another(store: VoteStore):
    store.lease("x", ANA, places=1, seconds=60)
    store.lease("y", ANA, places=1, seconds=60)
    assert store.lease("x", BO, places=1, seconds=60)


def test_a_lease_runs_out(store: VoteStore, clock: Clock):
    store.lease("x", ANA, places=1, seconds=60)
    clock.now += 61
    assert store.leases() == {}
    assert store.lease("x", BO, places=1, seconds=60)


def test_a_renewed_lease_lasts_longer_and_one_that_ran_out_is_not_renewed(store: VoteStore, clock: Clock):
    store.lease("x", ANA, places=1, seconds=60)
    clock.now += 50
    assert store.renew("x", ANA, seconds=60)
    assert not store.renew("x", BO, seconds=60)
    assert not store.renew("y", ANA, seconds=60)
    clock.now += 50
    assert store.leases() == {"x": [ANA]}
    clock.now += 11
    assert not store.renew("x", ANA, seconds=60)


def test_thirty_threads_that_want_one_item_get_it_once(store: VoteStore):
    got: list[bool] = []
    wanting = [
        threading.Thread(target=lambda n=n: got.append(store.lease("x", Who("Ana", f"tab-{n}"), places=1, seconds=60)))
        for n in range(30)
    ]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert sorted(got) == [False] * 29 + [True]


def test_two_stores_on_one_file_see_each_other(store: VoteStore, clock: Clock):
    other = VoteStore(store.path, what="labels", clock=clock)
    other.append(Entry("Bo", "vote", "x", {"label": "b"}))
    assert [event.rater for event in store.since()] == ["Bo"]
    assert store.lease("x", ANA, places=1, seconds=60)
    assert not other.lease("x", BO, places=1, seconds=60)


@pytest.mark.parametrize("content", [b"text,label\nhello,good\n" * 60, b"x"])
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a vote store; give one written by"):
        VoteStore(path, what="labels")
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(tmp_path: Path):
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("create table notes (text)")
    other.close()
    with pytest.raises(DataError, match="another program"):
        VoteStore(path, what="labels")


def test_votes_on_pairs_are_not_opened_as_labels(tmp_path: Path):
    VoteStore(tmp_path / "votes.db", what="pairs").close()
    with pytest.raises(DataError, match="expected votes on labels, got votes on pairs"):
        VoteStore(tmp_path / "votes.db", what="labels")


def test_a_store_that_is_refused_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    VoteStore(tmp_path / "votes.db", what="pairs").close()
    opened, connect = [], sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **more: opened.append(connect(*args, **more)) or opened[-1])
    with pytest.raises(DataError, match="expected votes on labels, got votes on pairs"):
        VoteStore(tmp_path / "votes.db", what="labels")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("select 1")


def test_a_store_of_a_newer_version_is_refused(store: VoteStore):
    store.close()
    sqlite3.connect(store.path).execute("pragma user_version = 2")
    with pytest.raises(DataError, match="newer tunesmith"):
        VoteStore(store.path, what="labels")


@pytest.mark.parametrize(
    ("kind", "body", "finding"),
    [
        ("vote", "{", "event 1: Expecting property name"),
        ("vote", "{}", "event 1, vote: missing label"),
        ("item", "[]", "event 1, item: missing answers, by, gold, turns"),
    ],
)
def test_an_event_that_is_not_what_was_written_is_told_with_its_number(
    store: VoteStore, kind: str, body: str, finding: str
):
    store._db.execute("insert into events (at, rater, kind, item, body) values (1, 'A', ?, 'x', ?)", (kind, body))
    with pytest.raises(DataError, match=rf"votes.db: damaged vote store \({finding}.*; restore a backup"):
        store.since()


def test_a_store_whose_pages_are_damaged_is_said_to_be_damaged(store: VoteStore):
    store.append(Entry("Ana", "vote", "x", {"label": "a"}))
    store.close()
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    with pytest.raises(DataError, match=r"votes.db: damaged vote store \(database disk image is malformed\)"):
        VoteStore(store.path, what="labels")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(DataError, match="cannot store votes"):
        VoteStore(tmp_path / "nowhere" / "votes.db", what="labels")


def test_a_file_that_another_program_holds_is_told_with_its_place_and_the_vote_can_be_cast_again(
    store: VoteStore, tmp_path: Path
):
    store._db.execute("pragma busy_timeout = 50")
    other = sqlite3.connect(tmp_path / "votes.db", isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(
        Unwritten, match=r"votes.db: not writable \(database is locked\); stop the process that locks it"
    ):
        store.append(Entry("Ana", "vote", "x", {"label": "a"}))
    other.execute("rollback")
    other.close()
    store.append(Entry("Ana", "vote", "x", {"label": "a"}))
    assert len(store.since()) == 1


def test_a_store_is_read_without_a_change_to_its_folder_and_with_votes_that_are_only_in_the_log(store: VoteStore):
    def folder() -> dict[str, int]:
        return {place.name: place.stat().st_mtime_ns for place in (store.path.parent, *store.path.parent.iterdir())}

    def raters() -> list[str]:
        assert VoteStore.kind(store.path) == "labels"
        assert VoteStore.has_events(store.path)
        with closing(VoteStore(store.path, what="labels", read_only=True)) as opened:
            return [event.rater for event in opened.since()]

    store.append(Entry("Ana", "vote", "x", {"label": "a"}))
    assert raters() == ["Ana"]
    (store.path.parent / "links").mkdir()
    (link := store.path.parent / "links" / "votes.db").symlink_to(store.path)
    assert VoteStore.has_events(link)
    store.close()
    before = folder()
    assert raters() == ["Ana"]
    assert folder() == before
    with pytest.raises(DataError, match="expected votes on pairs, got votes on labels"):
        VoteStore(store.path, what="pairs", read_only=True)
    with pytest.raises(DataError, match="cannot read votes"):
        VoteStore(store.path.with_name("none.db"), what="labels", read_only=True)
