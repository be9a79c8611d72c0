"""The recipe's gates: what they refuse, and which checkpoint they let a run keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipelines.conftest import recipe, reviews, tune
from tunesmith.errors import RecipeError
from tunesmith.report.schema import Report

pytestmark = pytest.mark.usefixtures("small_world")
# Every step is looked at, so that some checkpoint has cost little and a later one much.
SCHEDULE = {"epochs": 3, "learning_rate": 0.01, "eval_steps": 1, "patience": 99, "probe": False}


def rise(report: Report) -> float:
    assert report.retention is not None
    assert report.retention.rise is not None
    return report.retention.rise


@pytest.mark.long
def test_the_best_checkpoint_inside_the_gate_is_kept(tmp_path: Path):
    free = tune(recipe(tmp_path, reviews(), "llama", schedule=SCHEDULE), tmp_path / "free").report
    bound = rise(free) / 2
    assert bound > 0
    told: list[str] = []
    gated = recipe(tmp_path, reviews(), "llama", schedule=SCHEDULE, gates={"max_general_nats": bound})
    run = tune(gated, tmp_path / "gated", on_event=lambda event: told.append(str(getattr(event, "text", ""))))
    assert 0 < run.report.training.best_step < free.training.best_step
    assert rise(run.report) <= bound < rise(free)
    assert run.report.broken_gates == []
    assert f"at most {bound} is allowed" in "".join(told)
    journal = [json.loads(line) for line in (run.folder / "journal.jsonl").read_text().splitlines()]
    outside = {line["step"] for line in journal if line.get("outside_gate")}
    scored = {line["step"]: line["validation_loss"] for line in journal if "validation_loss" in line}
    assert free.training.best_step in outside
    assert outside | scored.keys() == set(range(1, 16))
    assert run.report.training.best_step == min(scored, key=lambda step: scored[step])


def test_a_run_without_any_checkpoint_inside_the_gate_says_by_how_much(tmp_path: Path):
    only_the_last = SCHEDULE | {"eval_steps": 15}
    told: list[str] = []
    made = recipe(tmp_path, reviews(), "llama", schedule=only_the_last, gates={"max_general_nats": 0.0})
    report = tune(made, tmp_path / "run", on_event=lambda event: told.append(str(getattr(event, "text", "")))).report
    assert (report.training.best_step, report.training.best_validation_loss) == (15, None)
    note = "every validation violated a gate; kept: step 15, the last"
    assert note in told
    assert note in report.data.notes
    assert report.broken_gates[0].startswith("max_general_nats: general-text loss rose by ")
    assert report.verdict.startswith("gate broken: max_general_nats")


def test_an_encoder_is_not_given_a_gate_that_nothing_measures(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", gates={"max_general_nats": 0.1})
    with pytest.raises(RecipeError, match=r"is an encoder.*; nearest that works: gates: \{min_delta: 0.0\}"):
        tune(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()
