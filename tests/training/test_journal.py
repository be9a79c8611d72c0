"""The run's metrics as lines."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tunesmith.errors import CheckpointError
from tunesmith.training.journal import Journal, append_call, finished_calls


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


def test_results_of_calls_come_back_and_a_line_that_was_cut_is_taken_off(tmp_path: Path):
    file = tmp_path / "calls.jsonl"
    assert finished_calls(file, list[str]) == []
    append_call(file, ["a\u2028", "ü"])
    append_call(file, [])
    whole = file.read_text()
    with file.open("a") as lines:
        lines.write('{"call": ["cut')
    assert finished_calls(file, list[str]) == [["a\u2028", "ü"], []]
    assert file.read_text() == whole


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_the_results_of_calls_is_one_line(bit: int, tmp_path: Path):
    file, calls = tmp_path / "calls.jsonl", [["a text"], ["another"]]
    for call in calls:
        append_call(file, call)
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with suppress(CheckpointError):
            assert finished_calls(file, list[str]) == calls, place


def test_results_of_calls_of_earlier_versions_are_read_and_get_a_checksum(tmp_path: Path):
    file = tmp_path / "calls.jsonl"
    file.write_text('["\\"crc32\\": 1"]\n["b"]\n["cut')
    assert finished_calls(file, list[str]) == [['"crc32": 1'], ["b"]]
    append_call(file, ["c"])
    assert finished_calls(file, list[str]) == [['"crc32": 1'], ["b"], ["c"]]
    assert file.read_text().count('"crc32": ') == 3
    for damaged in ("[5]\n", "5\n", '["a"\n["b"]\n', "{}\n"):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"calls\.jsonl.*: changed since it was written"):
            finished_calls(file, list[str])
    file.write_text('["cut')
    assert finished_calls(file, list[str]) == []
    assert file.read_text() == ""
