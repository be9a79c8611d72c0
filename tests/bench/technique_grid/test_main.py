"""`python -m bench.technique_grid`, and the process that each cell runs in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.technique_grid.__main__ import _child, _outcome, main
from bench.technique_grid.run import FAILED, REFUSED
from tunesmith.cli.signals import Signals
from tunesmith.errors import TunesmithError

EXAMPLES = Path(__file__).parents[3] / "examples"


def command(folder: Path, *words: object) -> int:
    places = ("--examples", EXAMPLES, "--out", folder / "runs", "--results", folder / "results.jsonl")
    return main([str(word) for word in ("--minutes", 0, *places, *words)])


def test_without_time_only_the_page_is_written(tmp_path: Path):
    assert command(tmp_path) == 0
    page = (tmp_path / "runs" / "grid.md").read_text(encoding="utf-8")
    assert page.startswith("# The grid\n")
    assert "- classify, decoder: lora, full, " in page
    assert "`instruct/prompt/encoder`" in page
    options = f"--rows 600 --examples {EXAMPLES} --out {tmp_path / 'runs'} --results {tmp_path / 'results.jsonl'}"
    assert page.endswith(f"`python -m bench.technique_grid --only classify/lora/decoder {options}` runs one of them.\n")


def test_a_chosen_cell_that_cannot_work_is_printed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command(tmp_path, "--only", "rl/lora/encoder")
    out = capsys.readouterr().out
    assert "rl/lora/encoder cannot work: " in out
    assert "1 of 1 cells cannot work, 0 have not run; page: " in out
    page = (tmp_path / "runs" / "grid.md").read_text(encoding="utf-8")
    assert "defined in metrics.md." in page  # a link would lead nowhere from here


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--examples", "{}"), "--examples: none of "),
        (("--only", "classify/lara"), "--only classify/lara: no such cell"),
        (("--rows", "0"), "--rows, --seeds: expected integers >= 1, got 0 and 1; "),
        (("--seeds", "0"), "--rows, --seeds: expected integers >= 1, got 600 and 0; "),
        (("--minutes", "-1"), "--minutes: expected a number >= 0, got -1.0; "),
        (("--out", "{}/file/runs"), "cannot be written (Not a directory); "),
        (("--folder", "x"), "no option '--folder'"),
    ],
)
def test_a_wrong_option_is_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    assert command(tmp_path, *(word.format(tmp_path) for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_cells_process_is_asked_once_to_stop_and_may_save(tmp_path: Path):
    ready = tmp_path / "ready"
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), time.sleep(1.5), sys.exit(143)))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )

    class StopOnceReady(Signals):
        def stop(self) -> bool:
            return ready.exists()

    assert _child([sys.executable, "-c", program], StopOnceReady()) == (143, "saved\n")


def failure(kind: str, message: str) -> str:
    return json.dumps({"error": {"kind": kind, "message": message, "exit_code": 2}})


def test_the_end_of_a_run_is_read_from_its_exit_code_and_output():
    assert _outcome(0, "{}") == _outcome(143, "") == ("", "")
    assert _outcome(1, json.dumps({"folder": "runs/x", "broken_gates": ["min_delta"]})) == ("", "")
    assert _outcome(2, failure("RecipeError", "technique prefix: no")) == (REFUSED, "technique prefix: no")
    assert _outcome(2, failure("ModelError", "nf4 needs bitsandbytes")) == (FAILED, "nf4 needs bitsandbytes")
    assert _outcome(1, failure("Refused", "all rewards are equal")) == (FAILED, "all rewards are equal")
    assert _outcome(-9, "") == (FAILED, "ended with exit code -9; see its log")
    with pytest.raises(TunesmithError, match="ended with exit code 70, a bug"):
        _outcome(70, failure("KeyError", "a bug in tunesmith"))
