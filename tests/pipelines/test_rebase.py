"""`tunesmith rebase`: the same rows on a new base, three tested pairs, and bad input in one line before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith as ts
from tests.bases import folder
from tests.pipelines.conftest import answers, recipe, reviews, tune
from tunesmith.metrics.resampling import at_level
from tunesmith.pipelines.rebase import (
    BASE,
    NEW,
    OLD,
    ModelPair,
    Rebase,
    _answer,
    _bits_per_byte,
    _pair,
    _scores,
    rebase,
    rebased_recipe,
)
from tunesmith.report.predictions import Prediction
from tunesmith.training.callbacks import Callbacks, Interrupted

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
EVEN = {"epochs": 12, "learning_rate": 0.01, "patience": 99, "probe": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_world: pytest.MonkeyPatch) -> Path:
    """A run of an encoder that learned its labels."""
    place = tmp_path_factory.mktemp("old")
    return tune(recipe(place, reviews(120), "bert", technique="full", schedule=EVEN), place / "run").folder


def rebased(run: Path, model: str, out: Path, *changes: str, **more: Any) -> Rebase:
    made, _ = rebased_recipe(run, model, changes)
    return rebase(run, made, out=out, callbacks=Callbacks(**more), offline=True)


@pytest.mark.long
def test_a_decoder_is_tuned_on_the_rows_of_an_encoder_and_all_pairs_are_tested(run: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = rebased(run, str(folder("llama")), tmp_path / "new", "technique.kind=full")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (task,) = found.tasks
    assert [(pair.name, pair.against) for pair in task.pairs] == [(NEW, OLD), (BASE, OLD), (NEW, BASE)]
    old, new = (json.loads((one / "report.json").read_text("utf-8")) for one in (run, tmp_path / "new"))
    assert new["data"]["sha256"] == old["data"]["sha256"]
    assert task.rows == new["task"]["n"] == old["task"]["n"]
    tuned, base, gain = task.pairs
    assert (tuned.score_against, tuned.score) == (old["task"]["tuned"], new["task"]["tuned"])
    assert (base.score, gain.score_against) == (new["task"]["base"], new["task"]["base"])
    assert gain.p_value == pytest.approx(min(1.0, 3 * new["task"]["p_value"]))
    settings = {key for key, _, _ in found.settings}
    assert {"model", "objective.output"} <= settings
    assert Rebase.model_validate_json((tmp_path / "new" / "rebase.json").read_text("utf-8")) == found
    page = (tmp_path / "new" / "rebase.html").read_text("utf-8")
    assert task.sentence[1:] in page
    assert "http" not in page
    assert str(tmp_path) not in page
    assert str(run.parent) not in page


@pytest.mark.long
def test_an_interrupted_rebase_resumes_and_ends_equal(run: Path, tmp_path: Path):
    model = str(folder("gpt2"))
    whole = rebased(run, model, tmp_path / "whole")
    left = list(range(4))
    with pytest.raises(Interrupted):
        rebased(run, model, tmp_path / "parts", should_stop=lambda: left.pop() == 0 if left else True)
    again = rebased(run, model, tmp_path / "parts")
    assert again.tasks == whole.tasks
    assert rebased(run, model, tmp_path / "parts").tasks == whole.tasks  # finished: nothing is trained again


def pair(verdict: str, name: str = NEW, against: str = OLD, rows: int | None = None) -> ModelPair:
    values: dict[str, Any] = dict.fromkeys(("delta", "p_value", "smallest_detectable", "score", "score_against"), 0.0)
    return ModelPair(ci95=(0, 0), n=40, clusters=40, test="", verdict=verdict, rows_needed=rows, name=name,
        against=against, margin=0.02, **values)  # fmt: skip


@pytest.mark.parametrize(
    ("tuned", "base", "gain", "answer"),
    [
        ("equivalent", "equivalent", "equivalent", "base is enough"),
        ("better", "better", "inconclusive", "base is enough"),
        ("inconclusive", "not worse", "worse", "base is enough"),
        ("inconclusive", "inconclusive", "equivalent", "inconclusive"),
        ("better", "better", "better", "better"),
        ("better", "worse", "better", "better"),
        ("worse", "worse", "better", "worse"),
        ("equivalent", "inconclusive", "better", "no difference"),
        ("not worse", "inconclusive", "better", "not worse"),
        ("inconclusive", "worse", "better", "inconclusive"),
    ],
)
def test_the_answer_follows_from_three_pairs(tuned: str, base: str, gain: str, answer: str):
    found, sentence = _answer(pair(tuned, rows=900 if tuned == "inconclusive" else None), pair(base), pair(gain))
    assert found == answer
    assert ("900" in sentence) == (answer == "inconclusive")
    assert ("not decided" in sentence) == (answer == "base is enough" and gain == "inconclusive")


@pytest.mark.parametrize(
    ("better", "worse", "rows", "verdict"),
    [
        (0, 0, 20, "inconclusive"),  # no row differs, but of 20 a loss of 2 % would not show
        (3, 0, 20, "inconclusive"),  # no row is lost, neither
        (0, 0, 400, "equivalent"),
        (12, 2, 2000, "equivalent"),  # significant, but less than 2 %
        (30, 4, 400, "better"),
        (2, 30, 400, "worse"),
        (20, 15, 500, "inconclusive"),  # a test of difference finds none, which proves nothing
        (50, 40, 4000, "equivalent"),
    ],
)
def test_a_model_is_not_worse_only_if_the_interval_is_within_the_margin(
    better: int, worse: int, rows: int, verdict: str, tmp_path: Path
):
    def row(number: int) -> Prediction:
        base, tuned = number >= better, not better <= number < better + worse
        return Prediction(where=f"a:{number}", question="", gold="yes", base=["no", "yes"][base],
            tuned=["no", "yes"][tuned])  # fmt: skip

    with at_level(0.05 / 3):
        found = _pair(NEW, OLD, *_scores([*map(row, range(rows))], metric="accuracy", run=tmp_path), metric="accuracy")
    assert (found.verdict, found.margin) == (verdict, 0.02)
    assert (found.rows_needed is not None) == (verdict == "inconclusive")


@pytest.mark.parametrize(("loss", "verdict"), [(1.03, "worse"), (0.97, "better"), (1.005, "equivalent")])
def test_texts_are_compared_in_the_bits_per_byte_of_the_report_where_lower_is_better(loss: float, verdict: str):
    sizes = [50 + 7 * number for number in range(60)]
    kept = {"first": 0.0, "terms": 0.0, "found": 0.0, "tokens": 1.0}
    rows = [
        Prediction(where=f"a:{size}", question="", gold="", base="", tuned="", counts={
            "base": {"nats": float(size), "size": size, **kept},
            "tuned": {"nats": loss * (size - 2), "size": size - 2, **kept},
        }) for size in sizes
    ]  # fmt: skip
    with at_level(0.05 / 3):
        found = _pair(NEW, OLD, *_bits_per_byte(rows), metric="bits_per_byte")
    assert found.verdict == verdict
    assert found.score_against == pytest.approx(1 / math.log(2))
    assert found.score == pytest.approx(loss / math.log(2))


def change_rows(run: Path) -> None:
    rows = run.parent / "rows.jsonl"
    rows.write_text(rows.read_text("utf-8").replace("good", "fine"), "utf-8")


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "changes", "edit", "error"),
    [
        ("bert", (), lambda run: None, "is the base of"),
        ("llama", (), lambda run: (run / "report.json").unlink(), "so the run is not finished"),
        ("llama", (), change_rows, "rows have changed since it was tuned"),
        ("llama", ("technique.kind=lora", "technique.targets=[query]"), lambda run: None, "technique"),
        ("no-such-model", (), lambda run: None, "no-such-model"),
        ("llama", ("objective.metric=macro_f1",), lambda run: None, "--set objective.metric: the runs need the same"),
        ("llama", ("data.test=0.4",), lambda run: None, "--set data.test: the runs need the same"),
    ],
)
def test_what_cannot_be_rebased_is_one_line(
    model: str, changes: tuple[str, ...], edit: Callable[[Path], object], error: str, tmp_path: Path
):
    short = {**EVEN, "epochs": 1}
    old = tune(recipe(tmp_path, reviews(60), "bert", technique="full", schedule=short), tmp_path / "run").folder
    edit(old)
    name = str(folder(model)) if model in ("bert", "llama") else model
    with pytest.raises(ts.TunesmithError) as caught:
        rebased(old, name, tmp_path / "new", *changes)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new" / "report.json").exists()


def test_an_encoder_cannot_take_over_a_run_that_answers_in_text(tmp_path: Path):
    objective = {"kind": "instruct", "max_new_tokens": 2}
    made = recipe(tmp_path, answers(24), "llama", objective=objective, schedule={"epochs": 1, "probe": False})
    old = tune(made, tmp_path / "run").folder
    with pytest.raises(ts.TunesmithError, match="objective instruct: needs a decoder"):
        rebased(old, str(folder("bert")), tmp_path / "new")
    assert not (tmp_path / "new").exists()
