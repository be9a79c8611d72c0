"""`tunesmith grid` on the command line, and the process that each cell runs in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tunesmith.cli.grid import _child, _outcome
from tunesmith.cli.signals import Signals
from tunesmith.errors import TunesmithError
from tunesmith.workflows.grid import FAILED, REFUSED

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_without_time_only_the_page_is_written(command: Command, tmp_path: Path):
    done = command("grid", "--minutes", 0, "--examples", EXAMPLES, "--out", tmp_path / "runs", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["cells"] == []
    assert "classify/lora/decoder" in found["missing"]
    assert "instruct/prompt/encoder" in found["refused"]
    page = (tmp_path / "runs" / "grid.md").read_text(encoding="utf-8")
    assert page.startswith("# The grid\n")
    told = f"--rows 600 --out {tmp_path / 'runs'} --examples {EXAMPLES}"
    assert page.endswith(f"`tunesmith grid --only classify/lora/decoder {told}` runs one of them.\n")


def test_a_chosen_cell_that_cannot_work_says_why(command: Command, tmp_path: Path):
    here = ("--minutes", 0, "--examples", EXAMPLES, "--out", tmp_path / "runs")
    done = command("grid", "--only", "rl/lora/encoder", *here)
    assert "rl/lora/encoder cannot work: " in done.out
    assert "1 of 1 cells cannot work, 0 were not run yet; all of it: " in done.out
    page = (tmp_path / "runs" / "grid.md").read_text(encoding="utf-8")
    assert "as in proof.md. The base" in page  # a link would lead nowhere from here


def test_a_folder_without_the_recipes_is_refused(command: Command, tmp_path: Path):
    done = command("grid", "--minutes", 0, "--examples", tmp_path, "--out", tmp_path / "runs")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--examples: none of " in done.err


def test_a_cell_that_is_not_there_is_refused(command: Command, tmp_path: Path):
    done = command("grid", "--only", "classify/lara", "--out", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("option", ["--rows", "--seeds"])
def test_no_rows_or_no_seed_is_refused(command: Command, option: str, tmp_path: Path):
    assert command("grid", option, 0, "--out", tmp_path).code == 2


def test_a_cells_process_is_asked_once_to_stop_and_may_save(tmp_path: Path):
    ready = tmp_path / "ready"
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), time.sleep(1.5), sys.exit(143)))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )

    class Asked(Signals):
        def stop(self) -> bool:
            return ready.exists()

    assert _child([sys.executable, "-c", program], Asked()) == (143, "saved\n")


def failure(kind: str, message: str) -> str:
    return json.dumps({"error": {"kind": kind, "message": message, "exit_code": 2}})


def test_what_a_run_says_of_its_end_is_understood():
    assert _outcome(0, "{}") == _outcome(143, "") == ("", "")
    assert _outcome(1, json.dumps({"folder": "runs/x", "broken_gates": ["min_delta"]})) == ("", "")
    assert _outcome(2, failure("RecipeError", "technique prefix: no")) == (REFUSED, "technique prefix: no")
    assert _outcome(2, failure("ModelError", "nf4 needs bitsandbytes")) == (FAILED, "nf4 needs bitsandbytes")
    assert _outcome(1, failure("Refused", "all rewards are equal")) == (FAILED, "all rewards are equal")
    assert _outcome(-9, "") == (FAILED, "it ended with exit code -9; its own lines say why")
    with pytest.raises(TunesmithError, match="ended with exit code 70, our own bug"):
        _outcome(70, failure("KeyError", "a bug in tunesmith"))


def test_a_place_that_no_folder_can_be_made_in_is_one_line(command: Command, tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = command("grid", "--minutes", 0, "--examples", EXAMPLES, "--out", tmp_path / "file" / "runs")
    assert (done.code, done.err.count("Traceback")) == (2, 0)
    assert "not written (Not a directory); name a place in a folder that is there" in done.err
