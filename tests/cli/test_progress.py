from __future__ import annotations

import io
import math
import threading
import time
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn

from tunesmith.cli.progress import Bar, Lines, TimeLeft, describe, duration, listening
from tunesmith.cli.signals import Signals
from tunesmith.data.splits.load import DataFacts
from tunesmith.events import (
    DataLoaded,
    ForecastUpdated,
    MachineChosen,
    OverfitChecked,
    StageStarted,
    StepFinished,
    TrainingStarted,
    Validated,
)
from tunesmith.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int, steps: int = 100, **metrics: float) -> StepFinished:
    return StepFinished(number, steps, 0.5, 0.0002, 1.0, 10, 1.0, 321.4, metrics)


def facts(**given: Any) -> DataLoaded:
    counts = {"rows": 60, "train": 42, "validation": 6, "test": 12, "copies_removed": 0}
    tokens = {"learned_tokens": 84, "longest": 31, "truncated": (), "zero_label": (), "sha256": {}, "notes": ()}
    return DataLoaded(DataFacts(**{**counts, **tokens, **given}))


def test_time_left_is_what_the_steps_seen_so_far_took_each():
    clock = Clock()
    pace = TimeLeft(clock)
    assert pace.left(11, 50) is None
    clock.now += 20.0
    assert pace.left(21, 50) == 58.0  # 10 steps took 20 s, 29 are left


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (8.4, "8 s left"), (125.0, "2 min 05 s left")])
def test_a_duration_is_in_words(seconds: float | None, text: str):
    assert duration(seconds) == text


def test_on_a_log_quick_steps_get_a_line_a_second(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    for number in range(1, 101):
        lines(step(number))
        clock.now += 0.0625
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["1/100", *(f"{step}/100" for step in (17, 33, 49, 65, 81, 97, 100))]


def test_on_a_log_slow_steps_get_a_line_each_five_seconds(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    for number in range(1, 5):
        lines(step(number))
        clock.now += 3.0
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["1/100", "3/100"]


def shown_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_on_a_log_a_loop_gets_its_first_line_after_five_seconds_then_fewer(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    lines(StageStarted("evaluating the base model", 3, 9))
    for second in range(1, 151):
        clock.now += 1.0
        lines(Progress("generating", second, 200, "rows", float(second)))
    shown = shown_lines(capsys)
    assert shown[:2] == ["[3/9] evaluating the base model", "generating: 5/200 rows  1 rows/s  3 min 15 s left"]
    assert [line.split()[1].split("/")[0] for line in shown[1:]] == [
        str(second) for second in (5, 10, 20, 30, 40, 50, 80, 110, 140)
    ]


def test_on_a_log_a_stage_that_reports_nothing_gets_lines_too(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    lines(StageStarted("loading x"))
    for _ in range(100):
        clock.now += 1.0
        lines.beat()
    shown = shown_lines(capsys)
    assert shown[1] == "loading x: 5 s so far"
    assert shown[-1] == "loading x: 1 min 20 s so far"
    assert len(shown) == 8


def test_a_loop_that_has_ended_is_not_shown_again(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    lines(StageStarted("scoring"))
    lines(Progress("reading", 2, 2, "rows", 1.0))
    clock.now += 5.0
    lines.beat()
    assert shown_lines(capsys) == ["scoring", "scoring: 5 s so far"]


def test_a_quick_stage_has_one_line(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    lines(StageStarted("loading x"))
    for _ in range(4):
        clock.now += 1.0
        lines(Progress("reading", 1, 2, "rows", 1.0))
        lines.beat()
    assert shown_lines(capsys) == ["loading x"]


def test_a_slow_step_of_training_has_a_line_before_it_ends(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    lines(TrainingStarted())
    lines(step(1))
    clock.now += 6.0
    lines(Progress("sampling", 1, 4, "prompts", 6.0))
    lines(step(2))
    clock.now += 6.0
    lines.beat()
    assert [line.split()[0] for line in shown_lines(capsys)] == ["training", "step", "sampling:", "step", "training:"]


def test_while_a_command_runs_a_thread_writes_the_lines_of_silent_stages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.cli.progress.SILENCE", ((math.inf, 0.0),))
    with listening(Signals()) as on_event:
        on_event(StageStarted("fitting"))
        time.sleep(1.2)
    assert "fitting: 1 s so far" in shown_lines(capsys)
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_a_forecast_of_the_rest_is_one_line():
    assert describe(ForecastUpdated(200.0, 150.0, 290.0)) == [
        "whole run: about 3 min 20 s left, 2 min 30 s to 4 min 50 s in 9 of 10 runs"
    ]


def test_a_bar_shows_a_loop_with_its_rate_and_goes_away_with_the_stage():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False, highlight=False)
    with RichProgress(TextColumn("{task.fields[measures]}", markup=False), console=screen) as progress:
        bar = Bar(progress)
        bar(StageStarted("scoring"))
        assert [task.total for task in progress.tasks] == [None]
        bar(Progress("generating", 3, 12, "rows", 6.0))
        assert [(task.completed, task.total) for task in progress.tasks] == [(3, 12)]
        progress.refresh()
        bar(Progress("generating", 12, 12, "rows", 24.0))
        assert [task.total for task in progress.tasks] == [None]
        bar(StageStarted("saving"))
        assert [task.total for task in progress.tasks] == [None]
        bar.hide()
        assert progress.tasks == []
    assert "generating: 3/12 rows  0.5 rows/s  18 s left" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_has_loss_rate_speed_and_time_left(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    lines = Lines(clock)
    lines(step(1))
    clock.now += 10.0
    lines(step(11))
    second = capsys.readouterr().err.splitlines()[1]
    assert second == "step 11/100  loss 0.5000  lr 2.0e-04  321 tok/s  1 min 29 s left"


def test_the_facts_of_the_data_are_told():
    assert describe(facts()) == [
        "60 rows: train 42, validation 6, test 12; 0 duplicates removed; 84 learned tokens, longest row 31 tokens"
    ]


def test_rows_that_only_a_head_learns_from_have_no_learned_tokens_to_tell():
    assert describe(facts(learned_tokens=0)) == [
        "60 rows: train 42, validation 6, test 12; 0 duplicates removed; longest row 31 tokens"
    ]


def test_rows_that_were_cut_or_teach_nothing_are_named_and_notes_are_passed_on():
    places = tuple(f"a.jsonl:{i}" for i in range(7))
    told = describe(facts(truncated=places, zero_label=("a.jsonl:9",), notes=("no group column",)))[1:]
    assert told == [
        "note: no group column",
        "warning: 7 rows shortened to fit data.max_tokens: "
        "a.jsonl:0, a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4 and 2 more",
        "warning: 1 rows without learned tokens: a.jsonl:9",
    ]


def test_probe_machine_and_validation_are_told():
    assert describe(OverfitChecked(2.0, 0.5, 7)) == [
        "passed: 7 steps on the same rows reduced the loss from 2.000 to 0.500"
    ]
    assert describe(OverfitChecked(2.0, 0.5, 1))[0].startswith("passed: 1 step on the same rows")
    assert describe(MachineChosen("cpu")) == ["cpu"]
    assert describe(Validated(4, 0.25)) == ["step 4  validation loss 0.2500"]


def test_a_bar_moves_and_everything_else_is_written_above_it():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False, highlight=False)
    with RichProgress(TextColumn("{task.fields[measures]}", markup=False), console=screen) as progress:
        bar = Bar(progress)
        bar(TrainingStarted())
        bar(step(1, 10))
        bar(step(2, 10))
        bar(Progress("validating", 1, 2, "rows", 1.0))
        bar(Validated(2, 0.5))
        assert [task.completed for task in progress.tasks] == [2]
        bar(StageStarted("[b]scoring"))
        bar(step(1, 5))
        assert [task.total for task in progress.tasks] == [10, 5]
    assert "[b]scoring" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_signals_wait_for_a_step_only_while_training_runs(capsys: pytest.CaptureFixture[str]):
    signals = Signals()
    with listening(signals) as on_event:
        patience = []
        for event in (StageStarted("reading x"), TrainingStarted(), StageStarted("scoring the tuned model")):
            on_event(event)
            patience.append(signals.patient)
    assert patience == [False, True, False]
    assert capsys.readouterr().err.splitlines() == ["reading x", "training", "scoring the tuned model"]
