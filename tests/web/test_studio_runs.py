"""Tune and Runs in the studio: the queue, the live page of a run, its table and the comparison of several."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tunesmith.web.studio.jobs import STATE, Job, Jobs, State, process_mark


def queued(jobs: Jobs, name: str, state: State | None = None, *, is_queued: bool = True) -> Job:
    """A job in its folder without a process."""
    folder = jobs.folder / name
    folder.mkdir(parents=True)
    words = f'{{"words": ["tune"], "cwd": ".", "subject": "runs/{name}", "queued": {str(is_queued).lower()}}}'
    (folder / "command.json").write_text(words, "utf-8")
    if state:
        state.write(folder)
    return Job(folder)


def test_waiting_jobs_change_places_and_only_the_next_one_begins(tmp_path: Path):
    jobs, mark = Jobs(tmp_path / "jobs", tmp_path), process_mark()
    first = queued(jobs, "1", State("running", mark, 1.0))
    served = queued(jobs, "2", State("running", mark, 1.0), is_queued=False)
    a, b, c = (queued(jobs, name, State("waiting", mark)) for name in "345")
    assert jobs.active() == [first, served, a, b, c]
    jobs.move_up(c.name)
    jobs.move_up(c.name)
    jobs.move_up(c.name)  # is the next one already
    jobs.move_up(first.name)  # runs
    assert jobs.waiting() == [c, a, b]
    running = State("running", mark, 2.0)
    assert not jobs.begin(c, running)  # one runs
    State("finished", mark, 1.0, 2.0, 0).write(first.folder)
    assert not jobs.begin(a, running)
    assert jobs.begin(c, running)
    assert jobs.waiting() == [a, b]


def test_of_several_runners_that_ask_at_once_one_begins(tmp_path: Path):
    jobs, mark = Jobs(tmp_path / "jobs", tmp_path), process_mark()
    waiting = [queued(jobs, name, State("waiting", mark)) for name in "1234"]
    began: list[bool] = []  # one per job that began

    def ask(job: Job) -> None:
        own = Jobs(jobs.folder, tmp_path)
        for _ in range(5):
            if own.begin(job, State("running", mark, 1.0)):
                began.append(True)
                return

    threads = [threading.Thread(target=ask, args=(job,)) for job in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert began == [True]
    assert jobs.active()[0].state().name == "running"


@pytest.mark.parametrize("broken", [b"", b"\xff", b"{}"])
def test_a_damaged_job_does_not_hide_the_others(tmp_path: Path, broken: bytes):
    jobs = Jobs(tmp_path / "jobs", tmp_path)
    job = queued(jobs, "1", State("waiting", process_mark()))
    queued(jobs, "2", State("waiting", process_mark()))
    (job.folder / STATE).write_bytes(broken)
    assert [found.name for found in jobs.waiting()] == ["2"]
