from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tunesmith.cli.terminal import log, publish, show, show_table
from tunesmith.errors import DataError


def test_text_from_files_is_never_taken_for_markup(capsys: pytest.CaptureFixture[str]):
    show_table(("what",), [("[bold]x[/bold] [/nothing] :smile:",)])
    assert "[bold]x[/bold] [/nothing] :smile:" in capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]):
    show("a\x1b[31mb\x07\x9bc")
    log("a\x1b]0;title\x07b")
    said = capsys.readouterr()
    assert said.out == "a[31mbc\n"
    assert said.err == "a]0;titleb\n"


def test_a_piped_table_is_not_cut_at_eighty_columns(capsys: pytest.CaptureFixture[str]):
    show_table(("what", "n>"), [("x" * 120, "1")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "n"]
    assert lines[2].rstrip().endswith("1")
    assert "x" * 120 in lines[2]


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
