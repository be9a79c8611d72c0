"""Runs reuse what earlier ones have found out about the base model: the same figures, and no second computation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tunesmith.config import Recipe
from tunesmith.data.user_cache import cache_dir
from tunesmith.evaluation.diagnostics import base_general_ability
from tunesmith.evaluation.evaluators import EvalSet, evaluator_for
from tunesmith.events import Event, Note, ignore
from tunesmith.models import kept_answers
from tunesmith.models.kept_answers import UnknownAnswerError, only_known
from tunesmith.pipelines.plan.phase_costs import known_phases
from tunesmith.report.html import page
from tunesmith.report.model_card import card
from tunesmith.report.run_data import read_run_data
from tunesmith.report.terminal import render
from tunesmith.training.prepare import prepare
from tunesmith.training.train import untouched_policy

pytestmark = pytest.mark.usefixtures("small_world")

PAIRS = [{"prompt": f"number {i}", "chosen": f"it is {i % 3}", "rejected": f"no {i}"} for i in range(40)]
TEXTS = [{"text": f"the quick brown fox {i} jumps over the lazy dog"} for i in range(40)]
RATED = [{"text": f"{'good ' * (i % 5)}{i}", "value": i % 5 + 0.5} for i in range(48)]


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cache_dir() / "timings.jsonl").read_text().splitlines()]


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(part) for key, part in value.items() if key != "seconds"}
    return value


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "objective", "kind"),
    [
        (reviews(), "classify", "llama"),
        (reviews(), "classify", "bert"),
        (answers(), "instruct", "llama"),
        (PAIRS, "preference", "llama"),
        (PAIRS, "reward", "llama"),
        (TEXTS, "domain", "llama"),
        (RATED, {"kind": "regress", "text": "text", "target": "value"}, "bert"),
    ],
)
def test_the_base_answers_once_for_every_objective(
    rows: list[dict[str, Any]], objective: Any, kind: str, kept: Path, tmp_path: Path
):
    made = recipe(tmp_path, rows, kind, objective=objective)

    def evaluated(made: Recipe) -> tuple[Any, Any]:
        prepared = prepare(made, on_event=ignore, offline=True)
        policy = untouched_policy(prepared)
        found = evaluator_for(EvalSet.of(prepared)).evaluate_base(prepared, policy, tmp_path)
        general = base_general_ability(prepared, policy)
        return without_seconds(asdict(found)), general

    first = evaluated(made)
    with only_known():
        assert evaluated(made.model_copy(update={"technique": made.technique.model_copy(update={"rank": 8})})) == first
    prepared = prepare(made, on_event=ignore, offline=True)
    assert {"base scoring", "baselines", "general ability before"} <= known_phases(prepared)
    other = recipe(tmp_path, rows[::-1], kind, objective=objective, data={"test": 0.4})
    with only_known(), pytest.raises(UnknownAnswerError):
        evaluated(other)


def figures(run: Any) -> Any:
    """The predictions and the report without what is measured in seconds or bytes."""
    report = run.report.model_dump(exclude={"name", "speed", "memory", "forecast", "reused", "environment"})
    return report, (run.folder / "predictions.jsonl").read_bytes()


@pytest.mark.long
def test_a_second_run_has_the_figures_of_one_without_kept_answers(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = recipe(tmp_path, reviews(), "llama", objective={"kind": "classify", "output": "words"})
    first = tune(made, tmp_path / "one")
    heard: list[Event] = []
    other = made.model_copy(update={"technique": made.technique.model_copy(update={"rank": 8})})
    again = tune(other, tmp_path / "two", on_event=heard.append)
    with monkeypatch.context() as patch:
        patch.setattr(kept_answers, "cache_dir", lambda: tmp_path / "empty")
        alone = tune(other, tmp_path / "alone" / "two")
    assert figures(again) == figures(alone)
    assert not first.report.reused
    assert not alone.report.reused
    assert set(again.report.reused) == {"base scoring", "general ability before"}
    assert any(isinstance(event, Note) and "reused results" in event.text for event in heard)
    forecast = json.loads((tmp_path / "two" / "forecast.json").read_text())
    assert not {"base scoring", "general ability before"} & {phase["name"] for phase in forecast["phases"]}
    assert "base scoring" in lines()[-1]["phases"]
    assert "base scoring" not in lines()[-2]["phases"]
    run = read_run_data(tmp_path / "two")
    for text in (card(run), page(run), str(render(run.report, run.folder)[-3])):
        assert "reused results" in text
