"""The run's metrics as lines."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tunesmith.errors import CheckpointError
from tunesmith.training.journal import Journal


def test_records_come_back_in_order_also_through_another_journal(tmp_path: Path):
    for step in (1, 2):
        Journal(tmp_path / "journal.jsonl").write({"step": step, "loss": 0.5})
    assert Journal(tmp_path / "journal.jsonl").read() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 2


def test_a_journal_that_was_never_written_is_empty(tmp_path: Path):
    assert Journal(tmp_path / "journal.jsonl").read() == []


def test_a_line_that_a_crash_cut_short_is_left_out_and_gone_after_a_rewind(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    for step in (1, 2, 3):
        journal.write({"step": step})
    with journal.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in journal.read()] == [1, 2, 3]
    journal.rewind(2)
    journal.write({"step": 3, "again": True})
    assert journal.read() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert [path.name for path in tmp_path.iterdir()] == ["journal.jsonl"]


def test_a_rewind_to_the_start_forgets_everything(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write({"step": 1})
    journal.rewind(0)
    assert journal.read() == []


@pytest.mark.parametrize("line", [b'{"step\xff": 2}', b'{"st\xe9p": 3}', b"5", b'{"stop": 4}', b'{"step": 2'])
def test_a_line_that_the_disk_damaged_is_named(line: bytes, tmp_path: Path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 5}\n')
    with pytest.raises(CheckpointError, match=r"journal\.jsonl:2: changed since it was written"):
        Journal(tmp_path / "journal.jsonl").read()


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_any_letter_of_a_journal_is_one_line(bit: int, tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    for step in (1, 2, 3):
        journal.write({"step": step, "loss": 0.5, "of": {"mood": 0.25}})
    records, whole = journal.read(), journal.path.read_bytes()
    for place in range(len(whole)):
        journal.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with suppress(CheckpointError):
            assert journal.read() == records, place


def test_lines_of_earlier_versions_are_read(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_text('{"step": 1}\n{"step": 2, "loss": 0.5}\n')
    assert Journal(tmp_path / "journal.jsonl").read() == [{"step": 1}, {"step": 2, "loss": 0.5}]
