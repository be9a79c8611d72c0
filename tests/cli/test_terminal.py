from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pytest

from tunesmith.cli.terminal import log, publish, show, show_table, write_result
from tunesmith.errors import DataError, StorageError


def test_text_from_files_is_never_taken_for_markup(capsys: pytest.CaptureFixture[str]):
    show_table(("what",), [("[bold]x[/bold] [/nothing] :smile:",)])
    assert "[bold]x[/bold] [/nothing] :smile:" in capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]):
    show("a\x1b[31mb\x07\x9bc")
    log("a\x1b]0;title\x07b")
    said = capsys.readouterr()
    assert said.out == "a[31mbc\n"
    assert said.err == "a]0;titleb\n"


def test_a_piped_table_wraps_within_a_hundred_columns_and_loses_no_text(capsys: pytest.CaptureFixture[str]):
    show_table(("what", "n>"), [("x" * 120, "1")])
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["what", "n"]
    assert out.count("x") == 120
    assert max(map(len, out.splitlines())) <= 100


def test_a_table_that_is_too_wide_leaves_out_its_least_important_columns_and_says_so(
    capsys: pytest.CaptureFixture[str],
):
    columns = ("arm", *(f"measure {i}>" for i in range(12)))
    rows = [("a", *("0.123 to 0.456" for _ in range(12)))]
    show_table(columns, rows, drop=[f"measure {i}" for i in range(11, 1, -1)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "measure 0" in lines[0]
    assert "measure 11" not in lines[0]
    told = " ".join(lines[3:])
    assert told.startswith("not shown for lack of width: measure")
    assert told.endswith("; --json has all columns")
    assert "0.123 to 0.456" in lines[2]  # a figure is never broken


def test_a_document_is_json_even_where_a_number_is_not(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    args = argparse.Namespace(json=True, out=tmp_path / "x.json")
    served = publish({"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("d"), "e": (1,)}, args)
    wanted = {"a": None, "b": [None, 1.5], "c": "d", "e": [1]}
    assert served
    assert json.loads(capsys.readouterr().out) == wanted
    assert json.loads((tmp_path / "x.json").read_text()) == wanted


def test_a_file_that_cannot_be_written_is_an_error_of_the_input(tmp_path: Path):
    args = argparse.Namespace(json=False, out=tmp_path / "none" / "x.json")
    with pytest.raises(DataError, match=r"x\.json: cannot be written \(No such file or directory\); give a"):
        publish({}, args)


def test_a_result_that_can_be_written_nowhere_leaves_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StorageError, match="the result is in"):
        write_result(tmp_path / "none" / "x.json", "{}")
    (kept,) = tmp_path.iterdir()
    assert (kept / "x.json").read_text() == "{}"
    with pytest.raises(StorageError, match=r"give a path in an existing, writable folder$"):
        write_result(tmp_path / "none" / ("x" * 300), "{}")
    assert list(tmp_path.iterdir()) == [kept]
