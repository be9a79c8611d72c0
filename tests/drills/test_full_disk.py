"""A disk that is full or read-only at any write of any command: one line, nothing lost, a second start that ends."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from tests.drills.commands import DRILLS, Lab
from tests.drills.full_disk import FAULTS, Attack, Fault

# Command -> faults, each at one write; all of them are in the slow test.
SAMPLE = {
    "collect": (0, 1, 2),
    "votes import": (0, 1, 2),
    "label": (0, 1),
    "export gguf": (0,),
    "compare": (1,),
    "rebase": (0,),
    "replay": (1,),
}


def failures(attack: Attack, places: list[int]) -> list[str]:
    """What is wrong after the fault at some points."""
    label = f"{attack.drill.words.split()[0]}, {attack.fault}"
    return [f"{label}, {attack.points[at - 1]}: {text}" for at in places for text in attack.problems(at)]


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLE)
def test_a_command_on_a_full_or_read_only_disk_ends_in_one_line_and_loses_nothing(lab: Lab, name: str):
    for number in SAMPLE[name]:
        attack = Attack(lab, name, FAULTS[number])
        places = attack.places()
        assert not failures(attack, [places[len(places) * (number + 1) // 4]])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("name", DRILLS)
def test_every_write_of_every_command(lab: Lab, name: str, fault: Fault):
    attack = Attack(lab, name, fault)
    # A third of the writes by each of the three faults: two starts for each write take long enough.
    assert not failures(attack, attack.places()[FAULTS.index(fault) :: len(FAULTS)])


def test_the_result_of_a_long_evaluation_is_kept_elsewhere(lab: Lab):
    attack = Attack(lab, "evaluate", FAULTS[0])
    at = next(number for number, point in enumerate(attack.points, 1) if "result.json" in point)
    lab.begin(attack.drill)
    ended = lab.run(attack.drill, at=at)
    found = re.search(
        r"^error: result\.json: cannot be written \(No space left on device\); free some space; the result is in (.+)$",
        ended.err,
        re.M,
    )
    assert found, ended.err
    assert json.loads(Path(found[1]).read_text("utf-8"))


@pytest.mark.parametrize(
    "words", ["compare reviews.jsonl", "evaluate llama --data answers.jsonl", "plan answers.jsonl"]
)
def test_an_out_that_cannot_be_written_is_refused_before_the_work(lab: Lab, words: str):
    lab.begin(DRILLS["init"])
    (lab.box / "file").write_text("")
    ended = lab.forks.run(*words.split(), "--out", "file/out", "--offline", error=errno.EROFS)
    problem = "file/out: cannot be written (Not a directory); give a path in an existing, writable folder"
    assert (ended.code, ended.out, ended.err) == (2, "", f"error: {problem}\n")
