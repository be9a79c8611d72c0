"""The thinking ledger of a run: both positions of the switch, before and after tuning, with gates on them."""

from __future__ import annotations

from dataclasses import astuple, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tests.thinking import KIND, THOUGHTS, UNFINISHED, dictate, ids_of
from tunesmith.config import Gates, Ledger, Recipe
from tunesmith.errors import RecipeError
from tunesmith.evaluation.results import ThinkingLedger
from tunesmith.evaluation.thinking import (
    GENERAL_QUESTIONS,
    OWN_ROWS,
    ModeAnswers,
    ThinkingAnswers,
    ledger_rows,
    no_ledger,
    thinking_ledger,
)
from tunesmith.events import ignore
from tunesmith.pipelines.tune.build_report import broken_thinking_gates, thinking_warnings
from tunesmith.pipelines.tune.tune import Run
from tunesmith.report.html import write_reports
from tunesmith.report.ledger_lines import ledger_lines
from tunesmith.report.predictions import read_predictions
from tunesmith.report.terminal import render
from tunesmith.training.prepare import TrainingContext, prepare

ROWS = 6


def thinking_recipe(place: Path, kind: str = KIND, **parts: Any) -> Recipe:
    objective = {"kind": "instruct", "think_by_default": True, "max_thinking_tokens": 40}
    schedule = {"epochs": 1, "probe": False}
    parts = {"objective": objective, "ledger": {"rows": ROWS}, "retention": False, "schedule": schedule} | parts
    return recipe(place, answers(), kind, **parts)


@pytest.fixture(scope="module")
def run(small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose models think at length: with the switch on, the thoughts never end."""
    place = tmp_path_factory.mktemp("ledger")
    gates = {"min_thoughts_finished": 0.5, "min_switch_obeyed": 0.9}
    with pytest.MonkeyPatch.context() as patch:
        dictate(patch, [*ids_of(UNFINISHED, end=False), *ids_of(" so", end=False)], off=ids_of("it is 1"))
        return tune(thinking_recipe(place, gates=gates), place / "run")


@pytest.fixture(scope="module")
def prepared(small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> TrainingContext:
    return prepare(thinking_recipe(tmp_path_factory.mktemp("prepared")), on_event=ignore, offline=True)


def test_the_report_has_the_ledger_of_both_models(run: Run):
    ledger = run.report.thinking
    assert ledger is not None
    assert (ledger.rows, ledger.metric, ledger.switch) == (ROWS, "rouge_l", "enable_thinking")
    assert ledger.thinks_by_default
    assert (ledger.obeyed_on.base, ledger.obeyed_on.tuned) == (1.0, 1.0)
    assert (ledger.obeyed_off.base, ledger.obeyed_off.tuned) == (1.0, 1.0)
    assert (ledger.finished.base, ledger.finished.tuned) == (0.0, 0.0)
    assert ledger.median_tokens.tuned == ledger.max_new_tokens  # cut off, so that they are as long as they may be
    assert ledger.score_on is not None
    assert ledger.score_off is not None
    assert ledger.score_on.tuned == 0  # thoughts without an end leave no answer
    assert ledger.score_off.tuned is not None
    assert ledger.score_off.tuned > 0.5
    assert ledger.gain is not None
    assert ledger.gain.tuned == pytest.approx(-ledger.score_off.tuned)


def test_the_headline_is_measured_in_the_mode_of_training(run: Run):
    assert run.report.task.tuned == 0  # with thinking, where no answer comes


def test_a_gate_on_thoughts_that_end_is_broken(run: Run):
    (broken,) = run.report.broken_gates
    assert broken == (
        f"min_thoughts_finished: 0% of the thoughts ended within {run.report.thinking.max_new_tokens} tokens, "
        "expected at least 50%"
    )


def test_the_forecast_has_the_phases_of_the_ledger(run: Run):
    assert run.report.forecast is not None
    phases = {phase.name: phase for phase in run.report.forecast.phases}
    for name in ("thinking before", "thinking after"):
        assert phases[name].forecast_seconds > 0
        assert phases[name].actual_seconds > 0


def test_page_terminal_and_card_show_the_ledger(run: Run):
    write_reports(run.folder)
    out = StringIO()
    Console(file=out, width=200).print(*render(run.report, run.folder))
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    card = (run.folder / "README.md").read_text(encoding="utf-8")
    for line in ledger_lines(run.report.thinking):
        for text in (out.getvalue(), page, card):
            assert line.name in text
    assert 'id="thinking"' in page
    assert "answers after thoughts, the mode of training" in page
    assert "enable_thinking=True," in card


def test_a_model_that_was_never_asked_to_think_keeps_its_mode_in_the_manifest(run: Run):
    assert '"think_by_default": true' in (run.folder / "model" / "tunesmith.json").read_text(encoding="utf-8")


def mode(thought: list[int], ended: list[int], given: str = "it is 1") -> ModeAnswers:
    """Answers of six rows; tokens count up from 10."""
    flags = [bool(value) for value in thought]
    tokens = [10 * (i + 1) if has else 0 for i, has in enumerate(flags)]
    return ModeAnswers([given] * ROWS, flags, [bool(value) for value in ended], tokens)


NONE, ALL = [0] * ROWS, [1] * ROWS
SILENT = ThinkingAnswers(mode(NONE, ALL), mode(NONE, ALL))
THINKING = ThinkingAnswers(mode(ALL, [1, 1, 1, 1, 1, 0]), mode([0, 0, 0, 0, 0, 1], ALL))


@pytest.fixture(scope="module")
def ledger(prepared: TrainingContext) -> ThinkingLedger:
    return thinking_ledger(prepared, base=SILENT, tuned=THINKING)


def test_a_base_that_never_thinks_has_no_length_of_thoughts(ledger: ThinkingLedger):
    assert ledger.finished.base is None
    assert (ledger.finished.tuned, ledger.finished.n_base, ledger.finished.n_tuned) == (5 / 6, 0, ROWS)
    assert (ledger.median_tokens.tuned, ledger.p95_tokens.tuned) == (35.0, pytest.approx(57.5))
    assert (ledger.obeyed_on.base, ledger.obeyed_on.tuned) == (0.0, 1.0)
    assert (ledger.obeyed_off.base, ledger.obeyed_off.tuned) == (1.0, 5 / 6)
    assert ledger.obeyed_on.p_value == pytest.approx(2 / 2**ROWS)


@pytest.mark.parametrize(
    ("gates", "broken"),
    [
        ({"min_thoughts_finished": 0.8, "min_switch_obeyed": 0.8, "max_thinking_loss": 0.0}, []),
        ({"min_thoughts_finished": 0.9}, ["min_thoughts_finished: 83% of the thoughts ended within"]),
        ({"min_switch_obeyed": 0.9}, ["min_switch_obeyed: 83% of the answers followed the switch when it was off"]),
    ],
)
def test_gates_on_the_tuned_model(ledger: ThinkingLedger, gates: dict[str, float], broken: list[str]):
    found = broken_thinking_gates(Gates(**gates), ledger)
    assert len(found) == len(broken)
    assert all(text.startswith(start) for text, start in zip(found, broken, strict=True))


def test_a_score_with_thinking_that_falls_breaks_its_gate(prepared: TrainingContext):
    worse = replace(THINKING, on=mode(ALL, ALL, given="no"))
    fallen = thinking_ledger(prepared, base=SILENT, tuned=worse)
    (text,) = broken_thinking_gates(Gates(max_thinking_loss=0.1), fallen)
    assert text.startswith("max_thinking_loss: rouge_l with thinking changed by -")
    assert broken_thinking_gates(Gates(max_thinking_loss=1.0), fallen) == []


def test_the_report_warns_of_thoughts_that_help_no_one(run: Run, ledger: ThinkingLedger, prepared: TrainingContext):
    # The checks of the family do not pass before, as the completions are dictated.
    assert run.report.warnings[-1] == (
        f"0% of the thoughts of the tuned model end within {run.report.thinking.max_new_tokens} tokens; raise "
        "objective.max_thinking_tokens, or give rows with shorter thoughts"
    )
    assert thinking_warnings(ledger) == []
    silent = thinking_ledger(prepared, base=THINKING, tuned=SILENT)
    (text,) = thinking_warnings(silent)
    assert text.startswith("with thinking on, 100% of the answers of the tuned model have no thoughts; add rows")
    restless = replace(THINKING, off=mode(ALL, ALL))
    (text,) = thinking_warnings(thinking_ledger(prepared, base=SILENT, tuned=restless))
    assert text.startswith("with thinking off, 100% of the answers of the tuned model have thoughts; add rows without")


PAIRS = [{"prompt": f"number {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
TEXTS = [{"text": f"Pump {i} is older than the house. It has {i + 3} seals, all of them tight."} for i in range(40)]


@pytest.mark.parametrize(
    ("objective", "rows", "metric", "source"),
    [
        ("classify", reviews(40), "exact_match", OWN_ROWS),
        ("preference", PAIRS, "", OWN_ROWS),
        ("domain", TEXTS, "contains", GENERAL_QUESTIONS),
    ],
)
def test_every_objective_that_can_be_asked_has_rows_for_the_ledger(
    small_world: pytest.MonkeyPatch,
    tmp_path: Path,
    objective: str,
    rows: list[dict[str, Any]],
    metric: str,
    source: str,
):
    made = prepare(recipe(tmp_path, rows, KIND, objective=objective, ledger={"rows": 4}), on_event=ignore, offline=True)
    found = ledger_rows(made)
    assert (found.metric, found.source, len(found.prompts)) == (metric, source, 4)
    assert len(found.references) == (4 if metric else 0)
    assert all(prompt[-1].role == "user" for prompt in found.prompts)
    if metric == "":
        ledger = thinking_ledger(made, base=four(SILENT), tuned=four(THINKING))
        assert (ledger.score_on, ledger.score_off, ledger.gain) == (None, None, None)
        assert broken_thinking_gates(Gates(max_thinking_loss=0.1), ledger) == [
            "max_thinking_loss: the rows have no reference answers to score; remove the gate"
        ]
        assert len(ledger_lines(ledger)) == 5


def four(answers: ThinkingAnswers) -> ThinkingAnswers:
    """The answers to the first four rows."""
    on, off = (ModeAnswers(*(values[:4] for values in astuple(one))) for one in (answers.on, answers.off))
    return ThinkingAnswers(on, off)


NUMBERS = [{"text": f"pump {i}", "value": i / 10} for i in range(40)]


@pytest.mark.parametrize(("objective", "rows", "given"), [("reward", PAIRS, "score"), ("regress", NUMBERS, "number")])
def test_a_model_that_gives_no_answer_has_no_ledger(
    small_world: pytest.MonkeyPatch, tmp_path: Path, objective: str, rows: list[dict[str, Any]], given: str
):
    made = prepare(recipe(tmp_path, rows, KIND, objective=objective), on_event=ignore, offline=True)
    assert no_ledger(made) == f"the model gives a {given}, not an answer"


def test_no_thoughts_at_all_break_the_gate_on_their_end(prepared: TrainingContext):
    silent = thinking_ledger(prepared, base=SILENT, tuned=SILENT)
    (text,) = broken_thinking_gates(Gates(min_thoughts_finished=0.1), silent)
    assert text == f"min_thoughts_finished: the tuned model wrote no thoughts in {ROWS} rows"


def test_a_gate_on_a_model_without_thoughts_is_refused(small_world: pytest.MonkeyPatch, tmp_path: Path):
    made = recipe(tmp_path, answers(), "llama", objective="instruct", gates={"max_thinking_loss": 0.1})
    with pytest.raises(RecipeError, match=r"gates\.max_thinking_loss: .* has no thinking mode; remove the gate"):
        prepare(made, on_event=ignore, offline=True)


def test_a_gate_without_the_ledger_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"gates\.min_switch_obeyed: thinking is not measured, as ledger\.rows is 0"):
        thinking_recipe(tmp_path, ledger=False, gates={"min_switch_obeyed": 0.5})


@pytest.mark.parametrize(
    ("value", "section"), [(False, Ledger(rows=0)), (True, Ledger()), ({"rows": 8}, Ledger(rows=8))]
)
def test_true_and_false_are_short_forms(tmp_path: Path, value: Any, section: Ledger):
    assert thinking_recipe(tmp_path, ledger=value).ledger == section


def test_thoughts_are_kept_apart_from_the_answers_and_are_in_the_examples(run: Run):
    write_reports(run.folder)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    for row in read_predictions(run.folder):
        assert row.tuned == ""  # the thoughts never ended
        assert row.thoughts["tuned"].startswith(THOUGHTS)
    assert "characters of thoughts" in page
    assert THOUGHTS in page
