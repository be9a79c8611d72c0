"""`track` and `measuring`: what is reported, and that nothing is lost on the way."""

from __future__ import annotations

import threading

import pytest

from tunesmith import progress
from tunesmith.progress import Progress, measuring, reporting, track


@pytest.fixture(autouse=True)
def every_item(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


def test_items_pass_unchanged_and_every_one_is_counted():
    received: list[Progress] = []
    with reporting(received.append):
        assert list(track(iter("abc"), "reading", unit="rows")) == ["a", "b", "c"]
    assert [(one.text, one.done, one.total, one.unit) for one in received] == [
        ("reading", done, 3, "rows") for done in (1, 2, 3)
    ]


def test_batches_count_by_their_rows():
    received: list[Progress] = []
    with reporting(received.append):
        for _ in track([[1, 2, 3], [4]], "reading", unit="rows", size=len):
            pass
    assert [(one.done, one.total) for one in received] == [(3, 4), (4, 4)]


def test_a_loop_within_an_item_counts_as_a_part_of_it():
    received: list[Progress] = []
    with reporting(received.append):
        for _ in track([[1, 2], [3, 4]], "answering", unit="rows", size=len):
            for _ in track(range(4), "generating", unit="tokens"):
                pass
    assert {one.text for one in received} == {"answering"}
    assert [one.done for one in received] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0]


def test_a_second_loop_within_an_item_never_goes_back():
    received: list[Progress] = []
    with reporting(received.append), measuring("scoring", 10, unit="rows"):
        for _ in range(2):
            list(track(range(2), "reading", unit="rows"))
    assert [one.done for one in received] == [5.0, 10.0, 10.0, 10.0]


def test_a_loop_after_one_that_was_left_early_reports_for_itself():
    received: list[Progress] = []
    with reporting(received.append):
        for _ in track(range(9), "first", unit="rows"):
            break
        list(track(range(1), "second", unit="rows"))
    assert [one.text for one in received] == ["second"]


def test_without_a_receiver_and_in_other_threads_nothing_is_reported():
    received: list[Progress] = []
    assert list(track(range(3), "reading", unit="rows")) == [0, 1, 2]
    with reporting(received.append):
        thread = threading.Thread(target=lambda: list(track(range(3), "serving", unit="rows")))
        thread.start()
        thread.join()
    assert received == []


def test_threads_may_count_on_one_meter():
    received: list[Progress] = []
    with reporting(received.append), measuring("asking", 400, unit="answers") as meter:
        threads = [threading.Thread(target=lambda: [meter.add() for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(one.done for one in received) == 400


def test_a_quick_loop_reports_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "INTERVAL", 60.0)
    received: list[Progress] = []
    with reporting(received.append):
        list(track(range(1000), "reading", unit="rows"))
    assert received == []


def test_the_end_of_a_loop_is_reported_if_anything_of_it_was(monkeypatch: pytest.MonkeyPatch):
    received: list[Progress] = []
    with reporting(received.append), measuring("reading", 4, unit="rows") as meter:
        meter.add()
        monkeypatch.setattr(progress, "INTERVAL", 60.0)
        for _ in range(3):
            meter.add()
    assert [one.done for one in received] == [1, 4]


def test_rate_and_time_left_follow_from_count_and_seconds():
    half = Progress("reading", 20, 80, "rows", 10.0)
    assert (half.rate, half.seconds_left) == (2.0, 30.0)
    assert Progress("reading", 0, 80, "rows", 10.0).seconds_left is None
    # Of three prompts a twentieth of the first one is enough, a thousandth is not.
    assert Progress("choosing a prompt", 0.001, 3, "prompts", 1.0).seconds_left is None
    assert Progress("choosing a prompt", 0.06, 3, "prompts", 1.0).seconds_left == pytest.approx(49.0)
