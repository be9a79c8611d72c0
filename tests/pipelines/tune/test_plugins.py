"""Extensions by another package: the example, installed as pip does it, through a whole run."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import tunesmith as ts
from tests.bases import folder
from tests.glance import only_a_glance
from tunesmith import plugins
from tunesmith.cli.commands import doctor
from tunesmith.config import load_recipe, make_recipe
from tunesmith.data.examples.prompts import Completion
from tunesmith.data.files import report_once
from tunesmith.data.readers.read import read_rows
from tunesmith.errors import CheckpointError, DataError, RecipeError
from tunesmith.events import StepFinished
from tunesmith.metrics import task_scores
from tunesmith.pipelines.learning_curve.learning_curve import Scale
from tunesmith.report.predictions import Prediction, row_scores
from tunesmith.training.rewards import scorer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path in which pip has installed the example."""
    place = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(ROOT / "examples" / "plugin")], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setattr(plugins, "_LOADED", set())
        plugins.offered.cache_clear()
        yield place
    plugins.offered.cache_clear()
    _forget("word_recall")


def _forget(metric: str) -> None:
    """Remove what was loaded of a metric of a package."""
    task_scores.PER_ROW.pop(metric, None)
    task_scores.SCALES.pop(metric, None)


@pytest.fixture
def stars(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[float]]]:
    """A metric from 0 to 5 that a package offers as `stars`."""

    def stars(references: Sequence[str], answers: Sequence[str]) -> list[float]:
        return [5.0 * (reference == answer) for reference, answer in zip(references, answers, strict=True)]

    stars.highest = 5  # type: ignore[attr-defined]
    monkeypatch.setattr(task_scores, "plugin", lambda group, name: stars if name == "stars" else None)
    yield stars
    _forget("stars")


def test_intervals_and_curves_use_the_range_of_the_metric_of_a_package(stars: Callable[..., list[float]]):
    rows = [Prediction(where=str(i), question="q", gold="a", base="b", tuned="a") for i in range(40)]
    found = row_scores(rows, "stars")  # also where no recipe was read, as by `tunesmith runs diff`
    assert found is not None
    assert [side.mean() for side in found] == [0.0, 5.0]
    assert task_scores.score("stars", ["a"] * 40, ["b"] * 40, name="base").ci95 == pytest.approx(
        (0, 5 * 0.0876), abs=1e-3
    )
    assert [Scale.of(metric).best for metric in ("stars", "rouge_l", "chrf")] == [5.0, 1.0, 100.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.5], "metric stars: expected a score for each of 2 answers, got 1; correct it"),
        ([1.0, 6.0], "metric stars: expected scores from 0 to 5, got 6; map them to this range, or set the function's"),
        ([math.nan, 1.0], "metric stars: expected scores from 0 to 5, got nan"),
        (["x", "y"], "metric stars: it raised ValueError: could not convert string to float: 'x'; correct it"),
        (0.5, "metric stars: it raised TypeError: 'float' object is not iterable; correct it"),
    ],
)
def test_wrong_scores_of_the_metric_of_a_package_are_one_line_that_names_it(
    stars: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch, given: object, message: str
):
    def wrong(references: Sequence[str], answers: Sequence[str]) -> object:
        return given

    wrong.highest = 5  # type: ignore[attr-defined]
    monkeypatch.setattr(task_scores, "plugin", lambda group, name: wrong)
    with pytest.raises(RecipeError, match=re.escape(message)):
        row_scores([Prediction(where="1", question="q", gold="a", base="b", tuned="a")] * 2, "stars")


def test_an_objective_a_technique_a_metric_and_a_reader_of_a_package_go_through_a_whole_run(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only_a_glance(monkeypatch)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.toml"
    rows.write_text("".join(f'[[rows]]\nprompt = "number {i}"\nanswer = "it is {i % 3}"\n' for i in range(40)))
    seen: list[int] = []

    class Watch(ts.Callback):
        def on_event(self, event: object) -> None:
            if isinstance(event, StepFinished):
                seen.append(event.step)

    run = ts.tune(
        rows, model=str(folder("llama")), objective={"kind": "even-answers", "metric": "word_recall"},
        technique="norms", schedule={"epochs": 1, "probe": False}, machine={"device": "cpu", "threads": 1},
        out=tmp_path / "run", progress=False, callbacks=[Watch()],
    )  # fmt: skip
    planned = ts.preview(
        rows, model=str(folder("llama")), objective="even-answers", technique="norms", schedule={"probe": False}
    )
    assert planned.cost is not None
    assert planned.cost.trainable == 5 * 32
    assert seen
    assert run.report.task.metric == "word_recall"
    assert run.report.training.trainable == 5 * 32  # two norms in each of two layers, and the last one
    assert json.loads((run.folder / "run.json").read_text())["plugins"] == {"tunesmith-example": "0.1.0"}
    model = ts.load(run.folder)
    rows_of = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert model.generate([rows_of[0]["question"]]) == [rows_of[0]["tuned"]]
    assert "even-answers" in (run.folder / "recipe.yaml").read_text()
    assert plugins.used(load_recipe(run.folder / "recipe.yaml")[0]) == {"tunesmith-example": "0.1.0"}
    plain = make_recipe({"data": {"train": "x.jsonl"}, "objective": "instruct"}, place="test")[0]
    assert plugins.used(plain) == {}  # another run of this process
    # Without the package, the run names it.
    monkeypatch.setattr(plugins, "offered", lambda group: {})
    with pytest.raises(CheckpointError, match=r"not installed; pip install tunesmith-example==0.1.0"):
        ts.load(run.folder)
    with pytest.raises(RecipeError, match=r"recipe.yaml: needs .* not installed; pip install tunesmith-example==0.1.0"):
        load_recipe(run.folder / "recipe.yaml")


def test_ratings_of_a_package_are_learned_by_their_distance_evaluated_and_exported(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only_a_glance(monkeypatch)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    words = ("awful", "poor", "fair", "good", "great")
    texts = [{"text": f"{words[i % 5]} {i}", "label": i % 5 + 1} for i in range(80)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    run = ts.tune(
        rows, model=str(folder("bert")), objective={"kind": "ratings", "sharpness": 0.5}, technique="full",
        schedule={"epochs": 1, "probe": False}, machine={"device": "cpu", "threads": 1, "dtype": "float32"},
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert run.report.task.metric == "accuracy"
    model = ts.load(run.folder)
    assert list(model.objective.known_labels) == ["1", "2", "3", "4", "5"]
    assert ts.evaluate(run.folder, rows, progress=False).n == 80
    made = ts.export(run.folder, format="merged", out=tmp_path / "merged", progress=False)
    assert (tmp_path / "merged" / "README.md").exists(), made
    # Of a row with rating 2: exp(-0.5 d^2) for the distances 1, 0, 1, 2 and 3.
    (example,) = model.objective.examples(list(read_rows(rows))[1:2], group="")
    near = [0.60653, 1.0, 0.60653, 0.13534, 0.01111]
    encoded = model.objective.encode(example, model.template, limit=64)
    assert encoded.label == pytest.approx([value / sum(near) for value in near], abs=1e-5)
    rows.write_text("".join(f'{{"text": "t {i}", "label": "{("bad", "good")[i % 2]}"}}\n' for i in range(40)))
    with pytest.raises(DataError, match="expected one number as label, got bad; use objective: classify"):
        ts.preview(rows, model=str(folder("bert")), objective="ratings", technique="full")


def test_a_callback_stops_a_run_and_the_next_start_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    only_a_glance(monkeypatch)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "t {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(40)))

    class Stop(ts.Callback):
        def should_stop(self) -> bool:
            return True

    settings = {"schedule": {"epochs": 1, "probe": False}, "machine": {"device": "cpu", "threads": 1}}
    for wrong in ([print], Stop()):
        with pytest.raises(ts.TunesmithError, match="give a list of objects derived from tunesmith.Callback"):
            ts.tune(rows, model=str(folder("llama")), out=tmp_path / "run", progress=False, callbacks=wrong)
    with pytest.raises(ts.Interrupted, match="stopped after step 1"):
        ts.tune(rows, model=str(folder("llama")), out=tmp_path / "run", progress=False, callbacks=[Stop()], **settings)
    assert ts.tune(rows, model=str(folder("llama")), out=tmp_path / "run", progress=False, **settings).report.verdict


def test_a_reward_of_a_package_scores_by_its_name(site: Path):
    completion = Completion(prompt=None, text="two words", finished=True)  # type: ignore[arg-type]
    assert plugins.plugin("rewards", "brevity")(completion) == pytest.approx(1 / 3)
    assert callable(scorer("brevity", key="objective.reward"))


def test_the_doctor_lists_extensions_and_a_built_in_name(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    found = {check.finding for check in doctor.plugins()}
    assert "tunesmith-example 0.1.0 offers techniques 'norms'" in found
    taken = {"lora": plugins.offered("techniques")["norms"]}
    monkeypatch.setattr(plugins, "offered", lambda group: taken if group == "techniques" else {})
    (check,) = doctor.plugins()
    assert check.state == doctor.WARN
    assert check.finding == "tunesmith-example: offers techniques 'lora', which is built in and is used instead"
    assert check.fix == "rename it there, or pip uninstall tunesmith-example"
    report_once.cache_clear()
    make_recipe({"data": {"train": "x.jsonl"}, "objective": "domain", "technique": "lora"}, place="test")
    assert caplog.messages == [f"{check.finding}; {check.fix}"]


@pytest.mark.parametrize(
    "recorded", [["x"], {"x; rm -rf ~": "1"}, {"--index-url=http://x": ""}, {"-r": ""}, {"a b": ""}, {"x": {"y": 1}}]
)
def test_a_model_of_others_names_no_command(recorded: object):
    assert plugins.missing(recorded) == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:Thing", r"tunesmith-example: techniques 'norms' .*cannot be imported \(ModuleNotFoundError"),
        ("tunesmith_example.metric:word_recall", "expected a class derived from Technique"),
        ("tunesmith.techniques:Lora", r"its field `kind` is not Literal\['norms'\]"),
    ],
)
def test_a_broken_extension_is_one_line_that_names_the_package(
    value: str, message: str, site: Path, monkeypatch: pytest.MonkeyPatch
):
    entry = plugins.offered("techniques")["norms"]
    broken = type(entry)("norms", value, entry.group)._for(entry.dist)
    monkeypatch.setattr(plugins, "offered", lambda group: {"norms": broken})
    with pytest.raises(RecipeError, match=message) as raised:
        make_recipe({"data": {"train": "x.jsonl"}, "objective": "domain", "technique": "norms"}, place="test")
    assert "\n" not in str(raised.value)


def test_a_misspelt_name_is_compared_with_those_of_packages(site: Path):
    with pytest.raises(RecipeError, match="unknown kind 'norm', did you mean 'norms'|unknown kind 'norm'.*norms"):
        make_recipe({"data": {"train": "x.jsonl"}, "objective": "domain", "technique": "norm"}, place="test")


def test_importing_the_package_loads_no_extension(site: Path):
    code = "import sys, tunesmith, tunesmith.config; print('tunesmith_example' in sys.modules)"
    env = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "False\n"
