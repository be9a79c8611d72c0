"""The main story from rows to a measured run folder, with tiny models."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from tests.bases import folder
from tests.pipelines.conftest import answers, recipe, reviews, topics, tune
from tunesmith.config import Recipe, make_recipe
from tunesmith.data.files import write_whole
from tunesmith.errors import CheckpointError, DataError, ModelError, RecipeError, Refused
from tunesmith.evaluation import diagnostics as worth
from tunesmith.evaluation.diagnostics import baselines
from tunesmith.events import Event, StepFinished
from tunesmith.inference.saved_model import load
from tunesmith.metrics.baselines import linear_probe
from tunesmith.report.html import write_reports
from tunesmith.training import run_folder
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.read import read_data
from tunesmith.training.run_folder import delete_run, earlier_run, exclusive_lock, open_run

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


def digests(out: Path) -> dict[str, str]:
    """sha256 of every weight file of a finished run."""
    files = sorted((out / "model").glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stop_after(count: int) -> Callable[[], bool]:
    left = list(range(count))
    return lambda: left.pop() == 0 if left else True


# ------------------------------------------------------------------ from rows to a measured run


def test_label_words_are_learned_and_the_run_folder_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.pipelines.tune.tune.write_reports", write_reports)
    monkeypatch.setattr("tunesmith.evaluation.evaluators.answers.baselines", worth.baselines)
    events: list[dict[str, Any]] = []
    schedule = {"epochs": 20, "learning_rate": 0.01, "patience": 99}
    objective = {"kind": "classify", "instruction": "Sort:"}
    made = recipe(tmp_path, reviews(), "llama", technique="full", objective=objective, schedule=schedule)
    run = tune(made, tmp_path / "run", on_event=events.append)
    report = run.report
    assert not run.reused
    assert {
        "recipe.yaml",
        "journal.jsonl",
        "report.json",
        "report.html",
        "README.md",
        "model",
        "predictions.jsonl",
    } <= {path.name for path in run.folder.iterdir()}
    assert (report.task.name, report.task.metric, report.task.n) == ("run", "accuracy", 10)
    assert report.task.delta == pytest.approx(report.task.tuned - report.task.base)
    assert report.task.tuned == 1.0
    assert (report.data.rows, report.data.train, report.data.validation, report.data.test) == (48, 33, 5, 10)
    assert report.training.steps == 100 == 20 * -(-33 // 8)
    assert report.training.probe_last < 0.67 * report.training.probe_first
    assert report.retention is not None
    assert report.certificate is not None
    assert {check.outcome for check in report.certificate.checks} == {"passed"}
    assert "10 of 10 claims hold" in (run.folder / "report.html").read_text()
    assert {event.kind for event in events} >= {"stage", "machine", "data", "probe", "step"}
    saved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert (saved["objective"]["labels"], saved["objective"]["output"]) == (["negative", "positive"], "words")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_the_models_answers_are_those_of_the_report_and_of_the_loaded_run(dtype: str, tolerance: float, tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", machine={"device": "cpu", "dtype": dtype, "threads": 1})
    run = tune(made, tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    right = sum(line["tuned"] == line["gold"] for line in lines) / len(lines)
    assert run.report.task.tuned == pytest.approx(right)
    model = load(run.folder)
    found = model.classify([line["question"] for line in lines])
    assert [one.label for one in found] == [line["tuned"] for line in lines]
    for one, line in zip(found, lines, strict=True):
        assert one.probabilities == pytest.approx(line["probabilities"], abs=tolerance)


@pytest.mark.parametrize(
    ("technique", "rate"), [({"kind": "lora", "rank": 4}, 0.02), ("full", 0.005)], ids=["lora", "full"]
)
def test_an_encoder_is_tuned_through_a_head(
    technique: Any, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.evaluation.predict.linear_probe", linear_probe)
    long = {"epochs": 12, "patience": 99}
    made = recipe(tmp_path, reviews(), "bert", technique=technique, schedule=long | {"learning_rate": rate})
    run = tune(made, tmp_path / "run")
    assert run.report.task.tuned >= 0.9
    assert run.report.baselines[0].detail == "linear probe on the frozen model"
    assert run.report.retention is None
    assert load(run.folder).classify(["bad 99"])[0].label == "negative"
    if technique != "full":
        PeftModel.from_pretrained(AutoModel.from_pretrained(folder("bert")), run.folder / "model")
    else:
        AutoModel.from_pretrained(run.folder / "model")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_rows_with_several_labels_are_learned_through_a_head(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tunesmith.evaluation.evaluators.answers.baselines", baselines)
    made = recipe(tmp_path, topics(), kind, schedule={"epochs": 6, "learning_rate": 0.01})
    run = tune(made, tmp_path / "run")
    assert run.report.task.metric == "sample_f1"
    assert run.report.task.tuned > 0.6
    assert [arm.name for arm in run.report.baselines] == ["base", "same labels for every row"]
    model = load(run.folder)
    assert model.objective.multi
    assert set(model.classify(["phone 9: screen"])[0].probabilities) == {"battery", "screen"}


def test_a_label_that_no_training_row_has_is_still_a_column_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.evaluation.predict.linear_probe", linear_probe)
    rows = topics(24)
    held = [{"text": f"tablet {i}: wifi", "label": ["wifi"]} for i in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    made = recipe(tmp_path, rows, "bert", data={"test": str(tmp_path / "test.jsonl")}, schedule={"epochs": 1})
    made = made.model_copy(update={"schedule": made.schedule.model_copy(update={"probe": False})})
    run = tune(made, tmp_path / "run")
    assert load(run.folder).objective.labels == ("battery", "screen", "wifi")
    assert any("'wifi' occurs in test" in note for note in run.report.data.notes)


def test_answers_are_learned_and_opened_by_plain_peft(tmp_path: Path):
    objective = {"kind": "instruct", "max_new_tokens": 8, "metric": "exact_match"}
    made = recipe(tmp_path, answers(), "llama", objective=objective, schedule={"epochs": 4})
    run = tune(made, tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    model = load(run.folder)
    assert model.generate([line["question"] for line in lines]) == [line["tuned"] for line in lines]
    assert run.report.training.best_validation_loss < run.report.training.probe_first
    base = AutoModelForCausalLM.from_pretrained(folder("llama"))
    opened = PeftModel.from_pretrained(base, run.folder / "model")
    ids = torch.arange(6, 20)[None]
    with torch.no_grad():
        assert torch.equal(opened(input_ids=ids).logits, model.policy.network(input_ids=ids).logits)


# ------------------------------------------------------------------ going on, and not


def test_a_second_call_says_already_and_a_changed_recipe_or_file_does_not_go_on_there(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False})
    first = tune(made, tmp_path / "run")
    events: list[dict[str, Any]] = []
    second = tune(made, tmp_path / "run", on_event=events.append)
    assert second.reused
    assert second.report == first.report
    assert events == []
    another = recipe(tmp_path, reviews(), "bert", schedule={"probe": False}, seed=1)
    assert digests(tune(another, tmp_path / "other").folder) != digests(first.folder)
    for changed in (
        another,
        recipe(tmp_path, reviews(50), "bert", schedule={"probe": False}),
    ):
        with pytest.raises(CheckpointError, match="holds a run of another recipe or of other rows; give another --out"):
            tune(changed, tmp_path / "run")


def test_two_processes_do_not_go_on_with_one_run(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False})
    refused: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event.kind == "step" and not refused:
            with pytest.raises(CheckpointError) as told:
                tune(made, tmp_path / "run")
            refused.append(str(told.value))

    assert not tune(made, tmp_path / "run", on_event=on_event).reused
    assert "run: locked by another process; wait until it exits, or stop it" in refused[0]


def test_one_process_works_in_a_folder_and_nothing_is_left_of_its_lock(tmp_path: Path):
    place = tmp_path / "runs" / "one"
    with exclusive_lock(place):
        assert [one.name for one in place.parent.iterdir()] == [".one.lock"]
        with pytest.raises(CheckpointError, match="locked by another process"), exclusive_lock(place):
            pass
        with pytest.raises(CheckpointError, match="locked by another process"), exclusive_lock(place):
            pass  # the lock is still there
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".two.lock").touch()  # of a process that was killed
    with exclusive_lock(tmp_path / "two"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_locks_is_worked_on_and_a_lock_of_somebody_else_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lock = tmp_path / ".one.lock"
    lock.touch()
    monkeypatch.setattr("filelock.FileLock.acquire", Mock(side_effect=PermissionError(errno.EACCES, "denied")))
    with (
        pytest.raises(CheckpointError, match=r"\.one\.lock: cannot be opened \(denied\)"),
        exclusive_lock(tmp_path / "one"),
    ):
        pass
    assert lock.exists()
    monkeypatch.setattr("filelock.FileLock.acquire", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with exclusive_lock(tmp_path / "one"), exclusive_lock(tmp_path / "one"):
        assert lock.exists()


def test_a_run_that_another_process_ended_meanwhile_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False})
    first = tune(made, tmp_path / "run")
    seen = iter([False, True])  # not finished before the lock is taken, finished behind it
    monkeypatch.setattr(run_folder.RunFolder, "finished", property(lambda folder: next(seen)))
    again = tune(made, tmp_path / "run")
    assert (again.reused, again.report) == (True, first.report)


def test_a_place_that_is_left_empty_names_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = recipe(tmp_path, reviews(), "bert", replay={"source": ""}, data={"validation": ""})
    assert made.data.validation == 0
    before = open_run(made, None).path
    (tmp_path / "other.txt").write_text("nothing of the run's")
    assert open_run(made, None).path == before


def nearby(place: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe that names its rows and a base by paths from `place`, which is where we are."""
    monkeypatch.chdir(place)
    shutil.copytree(folder("bert"), place / "tiny")
    made = recipe(place, reviews(), "bert", schedule={"probe": False})
    data = made.data.model_copy(update={"train": "rows.jsonl"})
    return made.model_copy(update={"model": "tiny", "data": data})


def test_a_run_over_a_base_of_a_relative_path_is_used_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tune(nearby(tmp_path, monkeypatch), Path("runs/here")).folder
    answer = load(run).classify(["good 1"])
    (tmp_path / "runs" / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "runs" / "elsewhere")
    assert load("../here").classify(["good 1"]) == answer
    shutil.move(tmp_path / "tiny", tmp_path / "moved")
    with pytest.raises(
        ModelError, match=r"^tiny: .*; if it is a relative path, run this in the directory of the tuning run"
    ):
        load("../here", offline=True)


def test_a_run_is_known_however_the_paths_of_its_recipe_are_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = nearby(tmp_path, monkeypatch)
    first = open_run(made, None)
    first.begin({})
    monkeypatch.chdir(tmp_path / "tiny")
    for model, rows in (("../tiny", "../rows.jsonl"), (str(tmp_path / "tiny"), str(tmp_path / "rows.jsonl"))):
        data = made.data.model_copy(update={"train": rows})
        spelled = made.model_copy(update={"model": model, "data": data})
        assert open_run(spelled, Path("..") / first.path).identity == first.identity
    shutil.copytree(tmp_path / "tiny", tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds a run of another recipe"):
        open_run(spelled.model_copy(update={"model": "../other"}), Path("..") / first.path)


def test_a_finished_run_that_was_killed_before_its_page_gets_it_from_a_second_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False})
    tune(made, tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr("tunesmith.pipelines.tune.tune.write_reports", write_reports)
    assert tune(made, tmp_path / "run").reused
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "README.md").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    for place in ("photos", "rows.jsonl"):
        with pytest.raises(CheckpointError, match="exists and is not a run; give another --out"):
            tune(made, tmp_path / place)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_place_that_no_folder_can_be_made_in_is_said_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"run: cannot be written \(Not a directory\); give a path in an existing, writable folder"
    ):
        open_run(recipe(tmp_path, reviews(), "bert"), tmp_path / "file" / "run").begin({})


def test_a_run_that_stops_before_its_last_step_says_so_and_which_step_is_kept(tmp_path: Path):
    schedule = {"eval_steps": 1, "patience": 1, "learning_rate": 1.0, "epochs": 9, "probe": False}
    events: list[dict[str, Any]] = []
    run = tune(recipe(tmp_path, reviews(), "bert", schedule=schedule), tmp_path / "run", on_event=events.append)
    (told,) = [event.text for event in events if "stopped at step" in getattr(event, "text", "")]
    assert told.endswith(
        f"1 validations without improvement (schedule.patience); kept: step {run.report.training.best_step}"
    )


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_run_that_was_stopped_twice_gives_the_weights_of_one_that_was_not(kind: str, tmp_path: Path):
    made = recipe(tmp_path, reviews(), kind, schedule={"patience": 99})
    whole = tune(made, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(Interrupted):
            tune(made, tmp_path / "cut", stop=stop_after(3))
    state = json.loads((tmp_path / "cut" / "checkpoints" / "last" / "state.json").read_text(encoding="utf-8"))
    cut = tune(made, tmp_path / "cut")
    assert digests(cut.folder) == digests(whole.folder)
    journals = [(run.folder / "journal.jsonl").read_text().splitlines() for run in (cut, whole)]
    losses = [[(r["step"], r.get("loss"), r.get("validation_loss")) for r in map(json.loads, j)] for j in journals]
    assert losses[0] == losses[1]
    assert cut.report.task == whole.report.task.model_copy(update={"name": "cut"})
    assert cut.report.memory.peak_bytes >= state["peak"] > 1e8  # of every process that trained


def test_a_finished_run_has_its_weights_once(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", technique="full", controls=True)
    folder = tune(made, tmp_path / "run").folder
    whole = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert whole == sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    assert not list(folder.rglob("*checkpoints"))


def test_checkpoints_that_an_earlier_version_left_in_a_finished_run_are_deleted(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False, "epochs": 1})
    folder = tune(made, tmp_path / "run").folder
    (folder / "checkpoints" / "last").mkdir(parents=True)
    (folder / "checkpoints" / "last" / "optimizer.safetensors").write_bytes(b"1")
    assert tune(made, tmp_path / "run").reused
    assert not (folder / "checkpoints").exists()


def test_a_run_does_not_go_on_over_a_base_that_was_changed_since(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"probe": False})
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "run", stop=stop_after(3))
    page = tmp_path / "run" / "run.json"
    known = json.loads(page.read_text(encoding="utf-8"))
    write_whole(page, json.dumps({**known, "base": "another"}))
    with pytest.raises(
        CheckpointError, match=r"run: the base model .* has changed since this run started; give another --out or"
    ):
        tune(made, tmp_path / "run")


def test_a_crash_between_checkpoints_leaves_no_step_in_the_journal_twice(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"save_steps": 4, "probe": False, "patience": 99})
    whole = tune(made, tmp_path / "whole")

    def pull_the_plug(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(made, tmp_path / "cut", on_event=pull_the_plug)
    cut = tune(made, tmp_path / "cut")
    journals = [(run.folder / "journal.jsonl").read_text().splitlines() for run in (cut, whole)]
    steps = [[(r["step"], r.get("loss")) for r in map(json.loads, lines)] for lines in journals]
    assert steps[0] == steps[1]
    assert digests(cut.folder) == digests(whole.folder)


# ------------------------------------------------------------------ refused


def test_a_model_that_cannot_learn_is_refused_before_the_run(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "llama", schedule={"learning_rate": 1e-9})
    with pytest.raises(Refused, match="overfit check: 24 steps on the same 8 rows .*raise schedule.learning_rate"):
        tune(made, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_rate_that_blows_up_is_refused_with_the_step(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", technique="full", schedule={"learning_rate": 1e30, "probe": False})
    with pytest.raises(Refused, match=r"^step \d: the loss is .* lower schedule\.learning_rate \(now 1e\+30\)"):
        tune(made, tmp_path / "run")


@pytest.mark.parametrize(
    ("objective", "rows", "kind", "finding"),
    [
        ("instruct", answers(), "bert", "objective instruct: needs a decoder"),
        ({"kind": "classify", "output": "words"}, reviews(), "bert", "an encoder does not generate text"),
        ({"kind": "classify", "output": "words"}, topics(), "llama", "rows may have several labels"),
    ],
)
def test_a_pair_that_cannot_work_is_refused_with_the_nearest_that_can(objective, rows, kind, finding, tmp_path: Path):
    with pytest.raises(RecipeError, match=rf"{finding}.*; nearest that works: "):
        tune(recipe(tmp_path, rows, kind, objective=objective), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_of_which_nothing_is_left_to_learn_are_refused(tmp_path: Path):
    rows = [{"prompt": f"number {i}", "answer": "it is so"} for i in range(20)]
    made = recipe(tmp_path, rows, "llama", objective="instruct", data={"max_tokens": 16})
    with pytest.raises(
        Refused, match=r"none of \d+ rows contains training tokens within 16 tokens; shorten the prompts"
    ):
        tune(made, tmp_path / "run")


def test_a_tracker_that_is_not_there_is_refused_before_the_base_is_scored(tmp_path: Path):
    with pytest.raises(RecipeError, match="did you mean 'wandb'"):
        tune(recipe(tmp_path, reviews(), "llama", track=["wandbb"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_refused_and_no_folder_made(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert").model_copy(update={"model": str(tmp_path / "nowhere")})
    with pytest.raises(ModelError, match="no such folder"):
        tune(made, tmp_path / "run", offline=True)
    assert not (tmp_path / "run").exists()


def test_held_out_rows_are_read_by_the_columns_of_the_train_rows(tmp_path: Path):
    train = [{"text": f"good {n}", "category": f"thing {n}", "sentiment": "ab"[n % 2]} for n in range(60)]
    test = [{"text": f"bad {n}", "category": f"thing {n}", "sentiment": "ab"[n % 2]} for n in range(12)]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "validation": 0.2}
    made = make_recipe({"model": "tiny", "data": data, "objective": "classify"}, place="test")[0]
    split = read_data(made, offline=True).split
    assert {example.labels for example in split.test} == {example.labels for example in split.train}


def test_a_tracker_that_is_left_out_later_leaves_the_run_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = nearby(tmp_path, monkeypatch)
    first = open_run(made.model_copy(update={"track": ["tensorboard"]}), None)
    first.begin({})
    assert open_run(made, first.path).identity == first.identity
    (_, old), _ = run_folder.identities(made, Path("runs"))
    write_whole(first.path / "run.json", json.dumps({"identity": old}))
    assert open_run(made, first.path).path == first.path


def test_a_run_from_before_split_columns_is_resumed_unless_its_rows_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name, more in (("plain", ""), ("own", ', "split": "train"')):
        rows = "".join(f'{{"text": "text number {n}", "label": "{"ab"[n % 2]}"{more}}}\n' for n in range(60))
        (tmp_path / f"{name}.jsonl").write_text(rows)
        made = make_recipe({"model": "tiny", "data": f"{name}.jsonl", "objective": "classify"}, place="test")[0]
        assert made.data.split == "split"
        new = open_run(made, None).path
        _, (older, _) = run_folder.identities(made, Path("runs"))
        folder = new.with_name(f"{new.name[:-6]}{older[:6]}")
        folder.mkdir(parents=True)
        write_whole(folder / "run.json", json.dumps({"identity": older}))
        assert open_run(made, None).path == (folder if name == "plain" else new)
    with pytest.raises(CheckpointError, match="holds a run of another recipe or of other rows"):
        open_run(made, folder)


def test_a_run_may_lie_right_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = nearby(tmp_path, monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = made.model_copy(update={"model": "../tiny", "data": made.data.model_copy(update={"train": "../rows.jsonl"})})
    run = tune(made, Path("."))
    assert (run.report.name, run.folder) == ("here", tmp_path / "here")


def test_a_run_that_goes_on_still_tells_its_overfit_probe(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert", schedule={"save_steps": 1, "epochs": 2})
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "run", stop=stop_after(2))
    report = tune(made, tmp_path / "run").report
    assert report.training.probe_first is not None


def test_what_only_a_held_out_file_has_beside_the_columns_is_read_too(tmp_path: Path):
    train = [{"prompt": f"train {n}", "answer": f"a {n}"} for n in range(40)]
    test = [{"prompt": f"test {n}", "input": f"about {n}", "answer": f"a {n}"} for n in range(12)]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), "validation": 0.2}
    made = make_recipe({"model": "tiny", "data": data, "objective": "instruct"}, place="test")[0]
    asked = read_data(made, offline=True).split.test[0].messages[0].content
    assert asked.startswith("test ")
    assert "about" in asked


def test_a_run_right_here_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = nearby(tmp_path, monkeypatch)
    made = made.model_copy(update={"data": made.data.model_copy(update={"train": str(tmp_path / "rows.jsonl")})})
    here = open_run(made, tmp_path / "here")
    here.begin({})
    (here.path / "checkpoints").mkdir()
    monkeypatch.chdir(here.path)
    delete_run(made, Path("."))
    assert list(here.path.iterdir()) == []


def test_an_empty_folder_that_an_interrupted_run_left_is_no_earlier_run(tmp_path: Path):
    made = recipe(tmp_path, reviews(), "bert")
    (tmp_path / "run").mkdir()
    assert earlier_run(made, tmp_path / "run") is None
    assert delete_run(made, tmp_path / "run") is None
    (tmp_path / "run" / "cat.jpg").write_text("x")
    with pytest.raises(CheckpointError, match="not a run folder, not overwritten by --force"):
        delete_run(made, tmp_path / "run")


def test_a_deletion_that_was_interrupted_is_finished_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = recipe(tmp_path, reviews(), "bert")
    run = open_run(made, tmp_path / "run")
    run.begin({})
    (run.path / "checkpoints").mkdir()

    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupt)
        # Folders list their files in any order; this one begins with the page.
        patch.setattr(Path, "iterdir", lambda _: iter([run.path / "run.json", run.path / "checkpoints"]))
        with pytest.raises(KeyboardInterrupt):
            delete_run(made, run.path)
    assert delete_run(made, run.path) == run.path
    assert list(run.path.iterdir()) == []
