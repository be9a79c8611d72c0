"""A small run folder made by hand: ten test rows, of which the base gets six right and the tuned model eight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import Data, Recipe, save_recipe
from tunesmith.evaluation.results import Calibration, Retention, Style
from tunesmith.metrics.task_scores import ArmScore, TaskScore, arms, task_score
from tunesmith.objectives import Classify, Instruct
from tunesmith.report.schema import DataReport, Memory, Report, Speed, Training

EVIL = "<script>alert('x')</script>"
# (question, gold, base, tuned): three fixed, one broken, one wrong in both, five right in both.
ROWS = (
    ("it broke at once", "bad", "good", "bad"),
    ("works as promised", "good", "good", "good"),
    (EVIL, "good", "good", "bad"),
    ("meh", "bad", "good", "good"),
    ("lovely sound", "good", "bad", "good"),
    ("never again", "bad", "bad", "bad"),
    ("fine", "good", "good", "good"),
    ("the hinge is loose", "bad", "good", "bad"),
    ("a joy", "good", "good", "good"),
    ("dull", "bad", "bad", "bad"),
)
SHA = {"train": "a" * 64, "validation": "b" * 64, "test": "c" * 64}

MakeRun = Callable[..., Path]


def prediction(number: int, row: Sequence[str]) -> dict[str, Any]:
    """A line of predictions.jsonl; the surer, the later in the file."""
    question, gold, base, tuned = row
    sure = round(0.5 + number / 25, 3)
    return {
        "where": f"reviews.jsonl:{number + 1}",
        "group": "",
        "question": question,
        "gold": gold,
        "base": base,
        "tuned": tuned,
        "probabilities": {tuned: sure, "good" if tuned == "bad" else "bad": round(1 - sure, 3)},
    }


@cache
def compared(metric: str, rows: tuple[tuple[str, ...], ...]) -> TaskScore:
    """Base against tuned on the rows; the resampling is done once for all tests that share them."""
    gold, base, tuned = ([row[i] for row in rows] for i in (1, 2, 3))
    return task_score(metric, gold, base=base, tuned=tuned, name="run", groups=None)


def report_of(rows: Sequence[Sequence[str]], name: str, changes: dict[str, Any]) -> Report:
    """A report whose scores are those of the rows; everything else is made up."""
    gold, base, tuned = ([row[i] for row in rows] for i in (1, 2, 3))
    known = tuple(map(tuple, rows))
    task = compared("accuracy", known)
    values: dict[str, Any] = {
        "name": name,
        "model": "smollm2-135m",
        "family": "decoder",
        "objective": "classify",
        "technique": "lora",
        "task": task,
        # Resampling is slow, and one set of rows is enough to have a second metric.
        "tasks": [task, *([compared("macro_f1", known)] if known == ROWS else [])],
        "baselines": arms("accuracy", gold, {"base": base, "oracle": gold}, tuned, groups=None),
        "training": Training(
            steps=4, planned_steps=5, best_step=2, best_validation_loss=0.5, stopped_early=True,
            learning_rate=1e-3, trainable=4_884_480, parameters=139_399_488,
        ),
        "speed": Speed(
            seconds=75.0, tokens=9000, tokens_per_second=120.0, rows_per_second=2.0, mfu_of_measured_gemm=0.25,
            answers_per_second_base=4.0, answers_per_second_tuned=8.0, total_seconds=200.0,
        ),
        "memory": Memory(peak_bytes=1_500_000_000),
        "data": DataReport(
            rows=40, train=24, validation=6, test=10, copies_removed=1, learned_tokens=48, longest=30,
            truncated_rows=0, zero_label_rows=0, sha256=SHA, notes=("reviews.jsonl: <b>cut</b> in three",),
        ),
        "environment": {"torch": "2.13.0", "device": "cpu"},
        "verdict": task.sentence,
    }  # fmt: skip
    return Report(**(values | changes))


def everything() -> dict[str, Any]:
    """The parts of a report that only some runs have."""
    return {
        "controls": [ArmScore(name="shuffled labels", metric="accuracy", score=0.5, ci95=(0.24, 0.76), n=10)],
        "retention": Retention(
            general_nll_base=2.9, general_nll_tuned=3.0, probe_base=0.5, probe_tuned=0.45, probe_n=400,
            lost=30, won=10, p_value=0.002, fields={"<i>history</i>": (0.6, 0.5), "physics": (0.4, 0.42)},
        ),
        "calibration": Calibration(
            temperature=1.4, ece_before=0.09, ece=0.03, brier=0.2,
            coverage=[(0.2, 1.0), (0.6, 0.9), (1.0, 0.8)], threshold=0.81, target_accuracy=0.9,
        ),
        "style": Style(
            auc_base=0.97, auc_tuned=0.61, rules={"short": (0.2, 0.95, 1.0)}, habits={"mean_words": (80.0, 12.5, 11.0)},
        ),
    }  # fmt: skip


def write_run(folder: Path, *, rows: Sequence[Sequence[str]] = ROWS, **changes: Any) -> Path:
    """A finished run's folder without its model."""
    folder.mkdir(parents=True)
    report = report_of(rows, folder.name, changes)
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    objective = Classify(text="text", label="label", output="words", metric="accuracy", labels=("bad", "good"))
    recipe = Recipe(data=Data(train="/home/somebody/reviews.jsonl"), objective=objective)
    save_recipe(recipe, folder / "recipe.yaml")
    lines = [prediction(number, row) for number, row in enumerate(rows)]
    _write_lines(folder / "predictions.jsonl", lines)
    steps = [{"step": n, "steps": 5, "loss": 1 / n, "learning_rate": 1e-3 / n, "grad_norm": 1.0} for n in range(1, 5)]
    _write_lines(folder / "journal.jsonl", [*steps, {"step": 2, "validation_loss": 0.5}])
    return folder


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def task_of(metric: str, base: float, tuned: float) -> TaskScore:
    """Made-up scores by this metric."""
    return TaskScore(
        name="t", metric=metric, base=base, tuned=tuned, delta=tuned - base, ci95=(0, 1), p_value=0.5, n=10,
        clusters=10, test="", smallest_detectable=0.1, verdict="better", sentence="",
    )  # fmt: skip


def with_objective(run: Path, objective: Classify | Instruct) -> None:
    """Give the run a recipe of another objective."""
    save_recipe(Recipe(data=Data(train="r.jsonl"), objective=objective), run / "recipe.yaml")


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run folder of this name under the test's own folder."""

    def make(name: str = "run", **settings: Any) -> Path:
        return write_run(tmp_path / name, **settings)

    return make
