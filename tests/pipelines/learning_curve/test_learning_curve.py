"""The learning curve of a recipe: cells that are kept, one set of test rows, and answers that may be refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews
from tests.pipelines.tune.test_embed import questions
from tests.pipelines.tune.test_multitask import mixed
from tunesmith.data.examples.types import Query
from tunesmith.errors import CheckpointError, RecipeError, Refused
from tunesmith.pipelines.learning_curve import learning_curve as story
from tunesmith.pipelines.learning_curve.learning_curve import epochs_at, measure_cell, measure_learning_curve
from tunesmith.pipelines.learning_curve.report import LearningCurveReport, sentence
from tunesmith.pipelines.requests import LearningCurveOptions
from tunesmith.training.callbacks import Callbacks, Interrupted
from tunesmith.training.prepare import TrainingContext

pytestmark = pytest.mark.usefixtures("small_world")
PLAIN = LearningCurveOptions()
SCHEDULE = {"epochs": 1, "eval_steps": 2, "save_steps": 99, "batch_rows": 16}


def made(place: Path, count: int = 170, **parts: Any) -> Any:
    return recipe(place, reviews(count), "bert", technique="full", schedule=SCHEDULE, data={"audit": "note"}, **parts)


def ask(
    asked: Any, out: Path, question: LearningCurveOptions = PLAIN, **watch: Any
) -> tuple[Path, LearningCurveReport]:
    return measure_learning_curve(
        asked, question, out=out, callbacks=Callbacks(watch.pop("on_event", lambda event: None), **watch)
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, small_world: Any) -> tuple[Any, Path, LearningCurveReport]:
    place = tmp_path_factory.mktemp("need")
    asked = made(place)
    return asked, *ask(asked, place / "curve")


@pytest.mark.long
def test_every_size_is_measured_three_times_on_the_same_test_rows(measured: tuple[Any, Path, LearningCurveReport]):
    _, folder, found = measured
    assert [one.rows for one in found.sizes][::4] == [24, found.train_rows]
    assert [len(one.scores) for one in found.sizes] == [3] * 5
    assert found.test_rows == 34  # a fifth of 170
    kept = sorted(path.name for path in (folder / "cells").iterdir())
    assert len(kept) == 15
    assert all(name.endswith(".json") for name in kept)


def test_of_documents_windows_are_counted_and_called_so(measured: tuple[Any, Path, LearningCurveReport]):
    _, _, found = measured
    told = sentence(found.model_copy(update={"objective": "domain"}))
    assert told.startswith(f"at {found.train_rows:,} windows of documents accuracy (%) ")


def test_the_page_is_one_file_with_sentence_and_picture(measured: tuple[Any, Path, LearningCurveReport]):
    _, folder, found = measured
    page = (folder / "need.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert found.sentence.startswith(f"at {found.train_rows:,} rows accuracy (%) ")
    assert LearningCurveReport.model_validate_json((folder / "need.json").read_text(encoding="utf-8")) == found


def test_what_has_run_is_not_run_again(
    measured: tuple[Any, Path, LearningCurveReport], monkeypatch: pytest.MonkeyPatch
):
    asked, folder, found = measured
    monkeypatch.setattr(story, "train", None)
    _, again = ask(asked, folder, LearningCurveOptions(target=0.99))
    assert again.sizes == found.sizes


@pytest.mark.long
def test_a_curve_that_was_stopped_goes_on_where_it_was(tmp_path: Path):
    asked, left = made(tmp_path), [False] * 25  # ten steps a cell
    with pytest.raises(Interrupted):
        ask(asked, tmp_path / "curve", should_stop=lambda: not left or left.pop())
    before = {path.name for path in (tmp_path / "curve" / "cells").glob("*.json")}
    assert before
    said: list[str] = []
    ask(asked, tmp_path / "curve", on_event=lambda event: said.append(str(getattr(event, "text", ""))))
    assert sum("rows, seed" in text for text in said) == 15 - len(before)


@pytest.mark.long
def test_minutes_make_the_sizes_smaller_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = made(tmp_path)
    monkeypatch.setattr(story, "_largest", lambda *_: 60)
    _, found = ask(asked, tmp_path / "curve", LearningCurveOptions(minutes=3))
    assert [one.rows for one in found.sizes] == [24, 30, 38, 48, 60]
    assert found.notes[0].startswith("limited to 3 minutes: the largest size is 60 of ")
    monkeypatch.setattr(story, "_largest", lambda *_: 48)
    assert ask(asked, tmp_path / "curve", LearningCurveOptions(minutes=3))[1].sizes == found.sizes
    assert ask(asked, tmp_path / "curve", LearningCurveOptions(minutes=2))[1].sizes[-1].rows == 48


def test_the_largest_size_is_the_largest_whose_ladder_fits():
    # 100 rows in 1 % of the time: the ladder may pass over 10,000 rows, three times what its five sizes are.
    assert story._largest(100, 10_000, 0.01, 5.0) == pytest.approx(1_800, rel=0.1)
    with pytest.raises(Refused, match="--minutes: 5 sizes of 3 seeds take at least 15.0 times as long"):
        story._largest(100, 10_000, 1.0, 5.0)


def test_few_rows_are_passed_over_more_often_but_not_for_ever():
    assert [epochs_at(rows, 1600, 1.0) for rows in (1600, 800, 400, 100)] == [1.0, 2.0, 4.0, 5.0]
    assert epochs_at(100, 1600, 8.0) == 8.0


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[TrainingContext]:
    """The contexts that models are trained on from here on."""
    seen, former = list[TrainingContext](), story.train

    def watched(context: TrainingContext, *given: Any, **more: Any) -> Any:
        seen.append(context)
        return former(context, *given, **more)

    monkeypatch.setattr(story, "train", watched)
    return seen


@pytest.mark.parametrize("kind", ["embed", "rerank"])
def test_negatives_of_a_size_are_mined_from_its_rows(kind: str, tmp_path: Path, trained_on: list[TrainingContext]):
    objective = {"kind": kind, "hard_negatives": 2}
    asked = recipe(tmp_path, questions(), "bert", objective=objective, technique="full", schedule=SCHEDULE)
    measure_cell(asked, tmp_path / "curve", True, (12, 0))
    (context,) = trained_on
    rows = [row for row in context.loaded.split.train if isinstance(row, Query)]
    assert len(rows) == len(context.train) == 12
    for row in rows:
        assert len(row.negatives) == 2
        assert {*row.negatives} <= {other.passage for other in rows} - {row.passage}
    assert all(len(row.sequences) == {"embed": 4, "rerank": 3}[kind] for row in context.train)


def test_rows_of_a_size_are_trained_with_the_thoughts_of_the_base_model(
    tmp_path: Path, trained_on: list[TrainingContext], monkeypatch: pytest.MonkeyPatch
):
    def think(context: TrainingContext, out: Path, *, on_event: Any) -> TrainingContext:
        return replace(context, train=[*context.train, *context.train])

    monkeypatch.setattr(story, "with_own_thoughts", think)
    objective = {"kind": "instruct", "max_new_tokens": 2}
    asked = recipe(tmp_path, answers(), "llama", objective=objective, schedule=SCHEDULE)
    measure_cell(asked, tmp_path / "curve", True, (12, 0))
    (context,) = trained_on
    assert sorted(row.where for row in context.train[:12]) == sorted(row.where for row in context.train[12:])
    assert len({row.where for row in context.train}) == 12


def test_what_no_curve_can_tell_is_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="--target: the best possible accuracy is 1, got 2; give 1"):
        ask(made(tmp_path), tmp_path / "beyond", LearningCurveOptions(target=2.0))
    with pytest.raises(RecipeError, match="--target: expected a number, got nan"):
        ask(made(tmp_path), tmp_path / "none", LearningCurveOptions(target=float("nan")))
    with pytest.raises(Refused, match="expected 96 or more training rows, got"):
        ask(made(tmp_path, 60), tmp_path / "few")
    with pytest.raises(
        RecipeError,
        match=r"--rows: expected at most 4 times the \d+ training rows, the limit of the extrapolation, got 9,999",
    ):
        ask(made(tmp_path), tmp_path / "far", LearningCurveOptions(rows=(9_999,)))
    with pytest.raises(RecipeError, match=r"--rows: expected \d+ or more, the smallest measured size, got 5"):
        ask(made(tmp_path), tmp_path / "near", LearningCurveOptions(rows=(5,)))
    with pytest.raises(
        RecipeError, match="learning-curve: 2 tasks have no common curve; nearest that works: a recipe of count"
    ):
        ask(mixed(tmp_path, tasks=("mood", "count")), tmp_path / "mixed")
    assert not (tmp_path / "few").exists()


def test_a_folder_of_another_recipe_is_left_alone(measured: tuple[Any, Path, LearningCurveReport], tmp_path: Path):
    _, folder, _ = measured
    other = made(tmp_path, 171)
    with pytest.raises(CheckpointError, match="holds a run of another recipe"):
        ask(other, folder)


@pytest.mark.long
def test_a_loss_is_read_with_its_sign_turned_back(tmp_path: Path):
    rows = [{"text": f"The quick brown fox number {i} jumps over the lazy dog and runs."} for i in range(170)]
    asked = recipe(
        tmp_path, rows, "llama", objective="domain", schedule=SCHEDULE, data={"audit": "note", "max_tokens": 32}
    )
    _, found = ask(asked, tmp_path / "curve")
    assert (found.metric, found.lower_is_better, found.share) == ("perplexity", True, False)
    assert all(one.mean > 1 for one in found.sizes)
    assert found.held_out.low <= found.held_out.score <= found.held_out.high
    assert json.loads((tmp_path / "curve" / "need.json").read_text())["power_law"]["ceiling"] >= 1
