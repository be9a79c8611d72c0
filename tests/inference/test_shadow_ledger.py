"""Decisions of a shadow, and its files: what a killed process leaves, what was changed, and how large they become."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import CheckpointError, DataError, StorageError
from tunesmith.inference.serving.shadow import ledger as module
from tunesmith.inference.serving.shadow.decision import FEWEST, GRID, MOST_PERIODS, Comparison, Row, State
from tunesmith.inference.serving.shadow.ledger import JOURNAL, OLDER, ROWS, Ledger, read_state

PAID = Row("paid", 0.5, (10, 2), 0.01)
AGREED = Comparison(0.97, 1.0, 1, paid_seconds=0.5, cost=0.01)


def full(*_: object) -> None:
    """In place of what writes: a full disk."""
    raise OSError(errno.ENOSPC, "full")


def record(ledger: Ledger, compared: Comparison = AGREED) -> None:
    """A chat that the paid model answered, and its comparison."""
    ledger.record(PAID)
    ledger.compare(compared)


def asked(state: State, rows: int, seed: int, *, chance: dict[float, float], control: float = 0.05) -> list[int]:
    """Send requests through the decision as the server does; the request after which each event came.

    `chance` maps each confidence to the share of its rows that agree; the confidences are equally frequent.
    """
    rng = np.random.default_rng(seed)
    levels = list(chance)
    events = []
    for i in range(rows):
        confidence = levels[rng.integers(len(levels))]
        if state.allows(confidence) and rng.random() >= control:
            state.count(Row("tuned", 0.01), at=i)
            continue
        state.count(PAID, at=i)
        state.compare(Comparison(confidence, float(rng.random() < chance[confidence]), state.attempt), at=i)
        if event := state.due():
            state.apply(event)
            events.append(i + 1)
    return events


def test_only_the_confidences_that_agree_get_a_share():
    state = State(margin=0.1)
    asked(state, 1500, 0, chance={0.99: 1.0, 0.92: 0.99, 0.6: 0.5})
    assert state.threshold in (0.7, 0.8, 0.9)
    assert [event["kind"] for event in state.events] == ["allowed"] * len(state.events)
    assert state.sums["reply tuned"][0] > 200


def test_a_model_that_is_worse_than_the_margin_hardly_ever_gets_a_share():
    # 60 seeds at 1 point below the limit: 5 % and three standard errors are 8. bench/shadow.py has the figures.
    assert sum(bool(asked(State(margin=0.1), 300, seed, chance={0.96: 0.89, 0.5: 0.4})) for seed in range(60)) <= 8


def test_a_fall_begins_again_and_then_more_has_to_be_shown():
    state = State(margin=0.1)
    asked(state, 400, 0, chance={0.99: 1.0})
    needed = State(margin=0.1).needed()
    assert state.threshold == 0.0
    asked(state, 4000, 1, chance={0.99: 0.5})
    assert [event["kind"] for event in state.events] == ["allowed", "fell"]
    assert (state.threshold, state.attempt) == (None, 2)
    assert state.needed() == pytest.approx(needed + np.log(3))


def test_the_share_over_time_stays_short_and_loses_no_request():
    state = State()
    for i in range(7000):
        state.count(Row("tuned" if i % 2 else "paid", 0.1), at=i)
    assert len(state.periods) <= MOST_PERIODS
    assert np.sum(state.periods, axis=0)[1:3].tolist() == [7000, 3500]
    assert [at for at, *_ in state.periods] == sorted(at for at, *_ in state.periods)


def test_the_state_survives_and_another_question_begins_again(tmp_path: Path):
    ledger = Ledger(tmp_path, "a", 0.2)
    for _ in range(60):
        record(ledger)
    kept = ledger.state.model_dump()
    assert ledger.state.threshold == 0.0
    with pytest.raises(DataError, match="used by another server"):
        Ledger(tmp_path, "a", 0.2)
    ledger.close()
    again = Ledger(tmp_path, "a", 0.2)
    assert again.state.model_dump() == kept
    again.close()
    other = Ledger(tmp_path, "b", 0.1)
    assert (other.state.threshold, other.state.attempt, other.state.margin) == (None, 2, 0.1)
    other.close()


def test_a_journal_becomes_not_larger_than_its_limit_and_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MOST_BYTES", 20_000)
    monkeypatch.setattr(module, "MOST_ROW_BYTES", 1000)
    ledger = Ledger(tmp_path, "a", 0.2)
    for i in range(400):
        record(ledger, Comparison(GRID[i % 7], i % 3 / 2, 1))
    ledger.keep({"text": "x" * 1000})
    with pytest.raises(DataError, match="no more; move the file"):
        ledger.keep({})
    (tmp_path / ROWS).rename(tmp_path / "moved")
    ledger.keep({})
    ledger.close()
    assert read_state(tmp_path).model_dump() == ledger.state.model_dump()
    assert max((tmp_path / name).stat().st_size for name in (JOURNAL, OLDER)) < 25_000
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir() if path.name != ".lock"} == {0}


@pytest.mark.parametrize("step", ["_append", "move"])
def test_a_rotation_that_fails_at_any_step_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    folder = tmp_path / "shadow"
    ledger = Ledger(folder, "a", 0.2)
    assert folder.stat().st_mode & 0o077 == 0
    ledger.restart("test")
    for _ in range(60):
        record(ledger, replace(AGREED, attempt=2))
    before = ledger.state.model_dump()
    assert (ledger.state.attempt, ledger.state.threshold) == (2, 0.0)
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(module, step, full)
        for _ in range(3):
            with pytest.raises(StorageError):
                ledger.record(PAID)
    assert ledger.state.model_dump() == before
    for _ in range(2):  # starts after a kill
        ledger.close()
        ledger = Ledger(folder, "a", 0.2)
        assert ledger.state.model_dump() == before
    ledger.record(PAID)
    (folder / JOURNAL).unlink()
    ledger.record(PAID)  # into a journal that has the state
    ledger.close()
    assert read_state(folder).model_dump() == ledger.state.model_dump()
    assert ledger.state.sums["reply paid"][0] == 62


def test_each_text_counts_once_so_that_repeated_ones_bias_nothing(tmp_path: Path):
    rng, state = np.random.default_rng(0), State(margin=0.05)
    agrees = rng.random(300) < 0.985
    for i in rng.integers(len(agrees), size=6000):
        state.compare(Comparison(0.6, float(agrees[i]), 1, f"{i}"), at=1.0)
    row = state.summary()["shadow"][0]
    assert (row["rows"], row["agreement"]) == (300, pytest.approx(agrees.mean(), abs=1e-4))
    for _ in range(2):  # the key and what was counted survive a restart
        ledger = Ledger(tmp_path, "a", 0.05)
        ledger.compare(Comparison(0.6, 1.0, 1, ledger.digest("new")))
        assert sum(map(sum, ledger.state.table)) == 1
        ledger.close()


def test_above_the_floor_a_text_counts_again_after_a_day():
    state = State(floor=0)
    for at, rows in ((0.0, 1), (10.0, 1), (86_400.0, 2), (90_000.0, 2)):
        state.compare(Comparison(0.6, 1.0, 1, "a"), at=at)
        assert sum(state.control) == rows


def test_after_a_reload_nothing_is_allowed_or_compared_until_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ledger = Ledger(tmp_path, "a", 0.2)
    for _ in range(60):
        record(ledger)
    assert ledger.allows(0.9)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_append", full)
        with pytest.raises(OSError, match="full"):
            ledger.restart("test")
    assert not ledger.allows(1.0)
    before = ledger.state.model_dump()
    ledger.compare(AGREED)
    assert ledger.state.model_dump() == before
    ledger.restart("test")
    ledger.compare(AGREED)  # of the attempt before
    assert (ledger.state.attempt, ledger.state.threshold, sum(map(sum, ledger.state.table))) == (2, None, 0)
    ledger.close()


def test_prices_that_are_not_known_are_not_zero_and_few_rows_have_no_estimate():
    state = State(floor=0)
    for i in range(FEWEST - 1):
        state.count(PAID, at=i)
        state.count(Row("paid", 0.5), at=i)
        state.count(Row("tuned", 0.1), at=i)
        state.compare(AGREED, at=i)
    found = state.summary()
    assert (found["priced"], found["cost_spent"], found["cost_saved"]) == (19, pytest.approx(0.19), None)
    state.compare(replace(AGREED, cost=0.03), at=0)
    mean, low, high = state.summary()["cost_saved"]
    width = 19 * 2.093 * 0.001  # 19 chats, Student's t of 20 rows, and their standard error
    assert (mean, high - mean, mean - low) == pytest.approx((19 * 0.011, width, width), rel=1e-3)


def test_every_row_that_was_acknowledged_before_a_kill_is_there(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tests.inference.test_shadow_ledger import *\n"
        f"ledger = Ledger(Path({str(tmp_path)!r}), 'a', 0.2)\n"
        "for i in range(10**6):\n"
        "    record(ledger); ledger.keep({'text': f'{i}'}); print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = next(int(line) for line in process.stdout if int(line) >= 150)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for path in (tmp_path / JOURNAL, tmp_path / ROWS):
        with path.open("ab") as file:
            file.write(b'{"kind": "row", "at": 3')  # torn by the kill
    ledger = Ledger(tmp_path, "a", 0.2)
    assert ledger.state.sums["reply paid"][0] > acknowledged
    assert ledger.state.threshold == 0.0
    record(ledger)
    ledger.close()
    read_state(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert [row["text"] for row in rows[: acknowledged + 1]] == [*map(str, range(acknowledged + 1))]


def test_a_changed_journal_is_one_line(tmp_path: Path):
    ledger = Ledger(tmp_path, "a", 0.2)
    record(ledger)
    ledger.close()
    text = (tmp_path / JOURNAL).read_text()
    for changed in (
        text.replace("0.97", "0.98"),
        "[]\n",
        '{"kind": "state"}\n',
        '{"kind": "row", "at": 1}\n',
        '{"kind": "other", "at": 1}\n',
    ):
        (tmp_path / JOURNAL).write_text(changed)
        with pytest.raises(CheckpointError, match=JOURNAL):
            Ledger(tmp_path, "a", 0.2)


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = Ledger(tmp_path, "a", 0.2)
    record(ledger)
    before = (tmp_path / JOURNAL).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "line_of", lambda record: "x" * 10**7)
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
        try:
            with pytest.raises(StorageError):
                ledger.record(PAID)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, signal_before)
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert ledger.state.sums["reply paid"][0] == 1
    ledger.close()
