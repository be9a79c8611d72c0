"""Several tasks in one run, each with its own rows, objective and yardstick, with tiny models."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bases import folder
from tests.pipelines.conftest import answers, reviews, tune
from tests.pipelines.tune.test_domain import pages
from tests.pipelines.tune.test_embed import questions
from tests.pipelines.tune.test_preferences import pairs
from tests.pipelines.tune.test_tune import digests, stop_after
from tunesmith.config import Recipe, check_pair, load_recipe, make_recipe
from tunesmith.data.examples.types import Span
from tunesmith.errors import CheckpointError, RecipeError
from tunesmith.evaluation.contamination import find_seen_rows
from tunesmith.evaluation.evaluators.base import Diagnostics
from tunesmith.evaluation.evaluators.multitask import MultitaskEvaluator, PredictionsByTask
from tunesmith.evaluation.evaluators.numbers import NumberEvaluator, NumberPredictions
from tunesmith.evaluation.evaluators.spans import SpanEvaluator, SpanPredictions
from tunesmith.evaluation.results import Style
from tunesmith.inference.identify import identify, read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.metrics import calibration
from tunesmith.pipelines.evaluate import Compared, evaluate
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.pipelines.requests import EvaluateRequest
from tunesmith.pipelines.tune.preview import preview
from tunesmith.report.html import write_reports
from tunesmith.report.predictions import read_predictions
from tunesmith.report.run_diff import diff_runs
from tunesmith.report.terminal import render
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.read import read_data

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _a_head_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the head of a frozen encoder learns is looked at elsewhere."""
    monkeypatch.setattr("tunesmith.training.mlm_head.FEWEST_STEPS", 4)


ROWS = {"mood": reviews, "count": answers, "field": pages, "liked": pairs, "judge": pairs, "rank": questions}
PARTS: dict[str, dict[str, Any]] = {
    "mood": {"objective": {"kind": "classify", "instruction": "Good?"}},
    "count": {"objective": {"kind": "instruct", "instruction": "Say it.", "max_new_tokens": 8}, "weight": 2},
    "liked": {"objective": {"kind": "preference", "loss": "kto"}},
    "judge": {"objective": "reward"},
    "rank": {"objective": {"kind": "rerank", "hard_negatives": 2, "search": "words"}},
    "field": {"objective": "domain", "data": {"group": "doc", "test": 0.3}},
}


def mixed(place: Path, kind: str = "llama", tasks: tuple[str, ...] = ("mood", "count", "field"), **more: Any) -> Recipe:
    """A recipe over these tasks, whose rows lie beside the run."""
    parts = {}
    for name in tasks:
        file = place / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]()), encoding="utf-8")
        parts[name] = PARTS[name] | {"data": {"train": str(file), **PARTS[name].get("data", {})}}
    raw: dict[str, Any] = {
        "model": str(folder(kind)),
        "data": {"max_tokens": 96},
        "objective": {"kind": "multitask", "tasks": parts, **more.pop("objective", {})},
        "technique": more.pop("technique", {"kind": "lora", "rank": 4}),
        "schedule": {"learning_rate": 0.02, "epochs": 1, "batch_rows": 12, "probe": False, **more.pop("schedule", {})},
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
    }
    return make_recipe(raw | more, place="test")[0]


@pytest.mark.long
def test_each_task_is_measured_by_its_own_yardstick_and_beside_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibration, "threshold_for", lambda *_: 0.25)
    run = tune(mixed(tmp_path, controls=True), tmp_path / "run")
    report = run.report
    assert report.multitask is not None
    assert report.task == report.multitask.tasks[0].task
    heads = [(part.name, part.task.metric, part.task.verdict) for part in report.multitask.tasks]
    assert [head[:2] for head in heads] == [("mood", "accuracy"), ("count", "rouge_l"), ("field", "perplexity")]
    assert {task.name for task in report.tasks} == {"mood", "count", "field"}
    assert report.calibration is not None
    assert (report.calibration.threshold, report.calibration.answered) == (0.25, 1.0)  # of two labels one has as much
    for part in report.multitask.tasks:
        assert part.single_task is not None
        assert part.single_task.tuned == part.task.tuned
        assert part.single_task.n == part.task.n
        assert len(part.validation) >= 2
        assert f"{part.name}: " in report.verdict
    assert sum(part.share for part in report.multitask.tasks) == pytest.approx(1)
    pairs = [conflict.tasks for conflict in report.multitask.conflicts]
    assert pairs == [("mood", "count"), ("mood", "field"), ("count", "field")]
    assert all(-1 <= conflict.lowest <= conflict.mean <= 1 for conflict in report.multitask.conflicts)
    write_reports(run.folder)
    page, card = (run.folder / "report.html").read_text(), (run.folder / "README.md").read_text()
    assert "count.jsonl" in page
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (run.folder / "model" / "tunesmith.json").read_text()
    assert render(report, run.folder)
    same = diff_runs(run.folder, run.folder)  # of the headline's rows only
    assert (same.metric, same.n, same.score_a) == ("accuracy", report.task.n, report.task.tuned)


@pytest.mark.long
def test_a_model_of_several_tasks_answers_as_the_one_that_is_named(tmp_path: Path):
    run = tune(mixed(tmp_path, schedule={"epochs": 0.5, "probe": True}), tmp_path / "run")
    model = load(run.folder)
    assert {found.label for found in model.classify(["good 1", "bad 2"], task="mood")} <= {"positive", "negative"}
    assert model.generate(["number 4"], task="count") == model.at("count").generate(["number 4"])
    assert model.at("count").sampling.max_new_tokens == 8
    with pytest.raises(RecipeError, match="several tasks in one model; name one of: mood, count, field"):
        model.classify(["good"])
    with pytest.raises(RecipeError, match="task 'french': name one of: mood, count, field"):
        model.generate(["x"], task="french")
    found = evaluate(
        EvaluateRequest(str(run.folder), str(tmp_path / "count.jsonl"), "base", task="count"), on_event=print
    )
    assert isinstance(found.page, Compared)
    with pytest.raises(RecipeError, match="name one with --task: mood, count, field"):
        evaluate(EvaluateRequest(str(run.folder), str(tmp_path / "count.jsonl")), on_event=print)


def test_the_gate_on_the_gain_holds_for_each_task(tmp_path: Path):
    made = mixed(tmp_path, tasks=("mood", "field"), schedule={"epochs": 0.5}, gates={"min_delta": 1e6})
    broken = tune(made, tmp_path / "run").report.broken_gates
    assert [gate.split(" changed")[0] for gate in broken] == [
        "min_delta: mood: accuracy",
        "min_delta: field: perplexity",
    ]


@pytest.mark.long
def test_a_run_of_several_tasks_is_exported_and_compared_on_each(tmp_path: Path):
    made = mixed(tmp_path, tasks=("count", "field"), schedule={"probe": False, "epochs": 1})
    run = tune(made, tmp_path / "run")
    rows = Counter(row.task for row in read_predictions(run.folder))
    found = export(run.folder, ExportRequest.of("merged"), out=None, on_event=print)
    assert (found.faults, found.metric) == ((), run.report.task.metric)
    assert found.rows == sum(min(count, 32) for count in rows.values())


@pytest.mark.long
def test_runs_of_several_tasks_differ_by_the_task_that_is_named(tmp_path: Path):
    made = mixed(tmp_path, tasks=("mood", "count"), schedule={"probe": False, "epochs": 0.5}, controls=True)
    run = tune(made, tmp_path / "run")
    assert diff_runs(run.folder, run.folder).metric == "accuracy"
    count = diff_runs(run.folder, run.folder, "count")
    rows = [row for row in read_predictions(run.folder) if row.task == "count"]
    assert (count.n, count.delta, count.metric) == (len(rows), 0, "rouge_l")
    with pytest.raises(CheckpointError, match="no task 'french'; use one of: mood, count"):
        diff_runs(run.folder, run.folder, "french")
    alone = tune(made.parts["count"], tmp_path / "alone")
    beside = diff_runs(alone.folder, run.folder, "count")
    assert (beside.n, beside.score_b) == (len(rows), count.score_b)
    with pytest.raises(CheckpointError, match="both runs have a single task; omit the option"):
        diff_runs(alone.folder, alone.folder, "count")


def test_tasks_of_an_encoder_keep_a_head_each(tmp_path: Path):
    run = tune(mixed(tmp_path, "bert", ("mood", "field"), technique="full"), tmp_path / "run")
    model = load(run.folder)
    assert run.report.multitask is not None
    assert [part.task.metric for part in run.report.multitask.tasks] == ["accuracy", "masked_loss"]
    assert model.classify(["good 1"], task="mood")
    assert model.fill(["the [MASK] table"], task="field")
    assert model.at("mood").policy.head is not model.at("field").policy.head
    found = export(run.folder, ExportRequest.of("merged"), out=None, on_event=print)
    assert (found.faults, found.metric) == ((), "states")


def test_ranking_can_be_one_of_the_tasks_and_has_its_own_negatives(tmp_path: Path):
    run = tune(mixed(tmp_path, "bert", ("mood", "rank"), technique="full"), tmp_path / "run")
    assert run.report.multitask is not None
    assert [part.task.metric for part in run.report.multitask.tasks] == ["accuracy", "ndcg"]
    mined = json.loads((run.folder / "tasks/rank/negatives.json").read_text())
    assert all(len(row) == 2 for row in mined["rows"])
    model = load(run.folder)
    passages = [str(row["passage"]) for row in questions()[:4]]
    ranked = model.rank(str(questions()[0]["query"]), passages, task="rank")
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert sorted(index for index, _ in ranked) == [0, 1, 2, 3]
    assert model.classify("good 1", task="mood").label in ("positive", "negative")
    with pytest.raises(RecipeError, match="tuned with classify and ranks nothing"):
        model.rank("which", passages, task="mood")


@pytest.mark.long
def test_people_s_judgement_can_be_one_of_the_tasks(tmp_path: Path):
    made = mixed(tmp_path, tasks=("mood", "liked", "judge"), schedule={"epochs": 0.6})
    run = tune(made, tmp_path / "run")
    assert run.report.multitask is not None
    metrics = [part.task.metric for part in run.report.multitask.tasks]
    assert metrics == ["accuracy", "preference_accuracy", "preference_accuracy"]
    assert (run.folder / "tasks" / "liked" / "reference").is_dir()
    assert isinstance(load(run.folder).at("judge").reward("number 3", "it is good, 3"), float)


@pytest.mark.long
@pytest.mark.parametrize("technique", ["ia3", "prompt"])
def test_other_techniques_learn_several_tasks_too(technique: str, tmp_path: Path):
    schedule = {"epochs": 0.5}
    run = tune(mixed(tmp_path, technique=technique, schedule=schedule), tmp_path / "run")
    assert read_manifest(run.folder / "model").technique.kind == technique
    assert load(run.folder).classify(["good"], task="mood")


@pytest.mark.long
def test_a_stopped_run_of_several_tasks_goes_on_to_the_same_bits(tmp_path: Path):
    schedule = {"save_steps": 3, "probe": False}
    whole = tune(mixed(tmp_path, schedule=schedule), tmp_path / "whole")
    with pytest.raises(Interrupted):
        tune(mixed(tmp_path, schedule=schedule), tmp_path / "cut", stop=stop_after(5))
    resumed = tune(mixed(tmp_path, schedule=schedule), tmp_path / "cut")
    assert digests(resumed.folder) == digests(whole.folder)


def test_the_rows_of_each_task_are_shown_before_anything_runs(tmp_path: Path):
    found = preview(mixed(tmp_path), rows=1)
    assert [row.where.split("/")[-1].split(":")[0] for row in found.rows] == [
        "mood.jsonl",
        "count.jsonl",
        "field.jsonl",
    ]


def test_paths_of_tasks_count_from_the_recipes_folder(tmp_path: Path):
    made = mixed(tmp_path)
    text = json.dumps(made.model_dump(mode="json")).replace(f"{tmp_path}/", "")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml")[0].parts["count"].data.train == str(tmp_path / "count.jsonl")


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("data.train=a.jsonl", "data.train: not allowed for multitask"),
        ("data.rows=9", "data.rows: not allowed for multitask"),
        ("objective.tasks.mood.data={group: g}", r"objective.tasks.mood.data.train is missing; add it"),
        ("objective.tasks.mood.objective.lable=x", r"objective.tasks.mood.objective.lable'.*did you mean 'label'"),
        ("objective.tasks.mood.wieght=2", r"'objective.tasks.mood.wieght', did you mean 'weight'"),
        ("objective.tasks.mood.weight=0", "objective.tasks.mood.weight"),
        ("objective.tasks.a.b.objective=domain", "objective.tasks"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(change: str, finding: str, tmp_path: Path):
    raw = mixed(tmp_path).model_dump(mode="json")
    with pytest.raises(RecipeError, match=finding):
        make_recipe(raw, place="test", changes=[change])


def test_one_task_alone_is_no_multitask_and_few_rows_a_step_are_refused(tmp_path: Path):
    with pytest.raises(RecipeError, match="expected two or more tasks"):
        mixed(tmp_path, tasks=("mood",))
    with pytest.raises(RecipeError, match="expected at least one row per task, got 2; use 3"):
        tune(mixed(tmp_path, schedule={"batch_rows": 2}), tmp_path / "run")


def test_a_task_that_a_model_cannot_do_is_named():
    tasks = {name: {"data": "a.jsonl", "objective": name} for name in ("classify", "instruct")}
    made, _ = make_recipe({"objective": {"kind": "multitask", "tasks": tasks}}, place="test")
    with pytest.raises(RecipeError, match=r"^objective\.tasks\.instruct: objective instruct: needs a decoder"):
        check_pair(made, "encoder")


def test_alarms_are_of_every_task_and_all_else_beside_the_scores_of_the_first():
    class Part:
        def __init__(self, worth: Diagnostics) -> None:
            self.found = worth

        def diagnose(self, prepared: Any, model: Any, *, base: Any, tuned: Any) -> Diagnostics:
            assert (base, tuned) == (f"base {prepared}", f"tuned {prepared}")
            assert model == f"model of {prepared}"
            return self.found

    class Model:
        def at(self, name: str) -> str:
            return f"model of {name}"

    style = [Style.model_construct(habits={name: (0, 0, 0)}) for name in "ab"]
    yardstick = MultitaskEvaluator(
        {"a": Part(Diagnostics(style=style[0])), "b": Part(Diagnostics(style=style[1], warnings=("longer",)))}
    )
    said = [PredictionsByTask({name: f"{side} {name}" for name in "ab"}) for side in ("base", "tuned")]
    found = yardstick.diagnose(SimpleNamespace(tasks={"a": "a", "b": "b"}), Model(), base=said[0], tuned=said[1])
    assert found == Diagnostics(style=style[0], warnings=("b: longer",))


def test_a_tasks_own_model_is_gone_before_the_next_is_made():
    held: list[weakref.ref[Any]] = []

    class Model: ...

    def made(name: str) -> Model:
        assert all(one() is None for one in held)
        model = Model()
        held.append(weakref.ref(model))
        return model

    class Part:
        def predict(self, model: Model) -> str:
            return "said"

    assert MultitaskEvaluator({"a": Part(), "b": Part(), "c": Part()}).gathered(made).parts == dict.fromkeys(
        "abc", "said"
    )
    assert len(held) == 3


def test_rows_that_a_run_of_several_tasks_was_trained_on_are_told(tmp_path: Path):
    made = mixed(tmp_path, tasks=("mood", "count"), schedule={"epochs": 0.2})
    run = tune(made, tmp_path / "run")
    learned = read_data(made.parts["count"], offline=True).split.train
    (note,) = find_seen_rows(identify(run.folder), learned, offline=True)
    assert note.startswith(f"warning: {run.folder} was trained on {len(learned)} of these {len(learned)} questions")


def test_predictions_of_any_kind_of_task_are_written_and_read():
    """Spans, numbers and ranked passages, too: each by its own evaluator."""
    parts = {
        "spans": SpanPredictions([[Span(0, 3, "A")], []], 0.5, {"dictionary": [[], [Span(1, 2, "B")]]}),
        "numbers": NumberPredictions([0.5, 2.0], 0.25),
    }
    kinds = {"spans": SpanEvaluator, "numbers": NumberEvaluator}
    judge = MultitaskEvaluator({name: kind.__new__(kind) for name, kind in kinds.items()})
    written = json.loads(json.dumps(judge.to_json(PredictionsByTask(parts))))
    assert judge.from_json(written) == PredictionsByTask(parts)
