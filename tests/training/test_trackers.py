"""Trackers keep what the journal keeps, offline, and a missing one is told before anything runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate import tracking

from tunesmith.errors import RecipeError
from tunesmith.training import trackers as track
from tunesmith.training.trackers import EXTRAS, TRACKERS, flat, open_trackers, scalar_metrics

CONFIG = {"model": "tiny", "technique": {"kind": "lora", "rank": 8}, "labels": ["a", "b"]}
RECORDS: list[dict[str, Any]] = [
    {"step": 1, "steps": 2, "loss": 2.5, "text": "no number"},
    {"step": 1, "validation_loss": 2.0},
    {"step": 2, "steps": 2, "loss": 1.5, "best": True},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my-run"
    folder.mkdir()
    return folder


def keep(name: str, run: Path) -> None:
    pytest.importorskip(name)
    (tracker,) = open_trackers([name], run=run, config=CONFIG)
    for record in RECORDS:
        tracker.log(record)
    tracker.close()


def without(*hidden: str) -> Callable[..., ModuleType]:
    real = importlib.import_module

    def load(name: str) -> ModuleType:
        if name.startswith(hidden):
            raise ImportError(name)
        return real(name)

    return load


def test_only_numbers_are_drawn() -> None:
    assert scalar_metrics(RECORDS[0]) == {"loss": 2.5}
    assert scalar_metrics(RECORDS[2]) == {"loss": 1.5}


def test_a_recipe_is_flat_with_dotted_keys() -> None:
    assert flat(CONFIG) == {
        "model": "tiny", "technique.kind": "lora", "technique.rank": 8, "labels": ["a", "b"],
    }  # fmt: skip


def test_no_name_opens_nothing(run: Path) -> None:
    assert open_trackers([], run=run, config={}) == []
    assert list(run.iterdir()) == []


def test_an_unknown_name_is_refused_with_the_nearest(run: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'tensorboard'"):
        open_trackers(["tensorbord"], run=run, config={})


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_told_with_its_cure(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", without("torch.utils.tensorboard", "tensorboardX", name))
    install = rf"'tunesmith\[track-{name}\]'" if name in EXTRAS else name.replace("_", "-")
    with pytest.raises(RecipeError, match=rf"{name} is not installed; run pip install {install} or remove it"):
        open_trackers([name], run=run, config={})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put two trackers of nobody's library in place, one that starts and one that does not; return what they did."""
    did: list[str] = []

    class Good:
        def __init__(self, **options: Any) -> None: ...

        def start(self) -> None:
            sys.stdout.write("welcome")

        def store_init_configuration(self, values: object) -> None:
            did.append(f"recipe {values}")

        def log(self, values: dict[str, float], step: int) -> None:
            if step == 2:
                raise OSError("no space left")
            did.append(f"{step} {values}")

        def finish(self) -> None:
            if "recipe {'full': True}" in did:
                raise OSError("no space left")
            did.append("finished")

    class Bad(Good):
        def start(self) -> None:
            raise ValueError("no key")

    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", {"swanlab": Good, "clearml": Bad})
    monkeypatch.setattr(track, "TRACKERS", {"swanlab": lambda session: {}, "clearml": lambda session: {}})
    monkeypatch.setattr(track, "_library", lambda name: None)
    return did


def test_those_that_were_open_are_closed_when_one_fails(
    run: Path, fake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match=r"clearml cannot start \(no key\); leave clearml out of track"):
        open_trackers(["swanlab", "clearml"], run=run, config={"a": {"b": None, "c": 1}})
    assert fake == ["recipe {'a.b': 'None', 'a.c': 1}", "finished"]
    assert capsys.readouterr().out == ""


def test_a_tracker_that_fails_later_does_not_end_the_run(run: Path, fake: list[str]) -> None:
    (tracker,) = open_trackers(["swanlab"], run=run, config={})
    tracker.log(RECORDS[0])
    with pytest.warns(UserWarning, match=r"swanlab: no space left; tracking stopped; journal\.jsonl has all records"):
        tracker.log(RECORDS[2])
    tracker.log(RECORDS[1])
    tracker.close()
    assert fake == ["recipe {}", "1 {'loss': 2.5}"]


def test_a_tracker_that_cannot_close_does_not_end_the_run(run: Path, fake: list[str]) -> None:
    (tracker,) = open_trackers(["swanlab"], run=run, config={"full": True})
    with pytest.warns(UserWarning, match="swanlab: no space left; tracking stopped"):
        tracker.close()


def test_every_name_is_one_of_accelerate() -> None:
    assert set(TRACKERS) == set(tracking.LOGGER_TYPE_TO_CLASS) - {"dvclive", "aim"}


def test_tensorboard_reads_every_step_back(run: Path) -> None:
    keep("tensorboard", run)
    module = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    assert [(e.step, e.value) for e in events.Scalars("validation_loss")] == [(1, 2.0)]


def test_mlflow_keeps_files_in_the_run_and_goes_on_with_the_same_run(run: Path) -> None:
    keep("mlflow", run)
    keep("mlflow", run)
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=(run / "mlruns").as_uri())
    found = client.search_runs([client.get_experiment_by_name("tunesmith").experiment_id])
    assert len(found) == 1
    assert (found[0].info.run_name, found[0].info.status) == ("my-run", "FINISHED")
    assert found[0].data.params["technique.rank"] == "8"
    history = client.get_metric_history(found[0].info.run_id, "loss")
    assert {(m.step, m.value) for m in history} == {(1, 2.5), (2, 1.5)}


def test_wandb_writes_offline_into_the_run_and_says_nothing(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keep("wandb", run)
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
    assert capfd.readouterr().out == ""


def test_trackio_leaves_stdout_alone(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("trackio")
    said = []

    class Run:
        def log(self, metrics: dict[str, float], step: int) -> None:
            said.append((step, metrics))

        def finish(self) -> None:
            sys.stdout.write("* Run finished")

    def init(**options: Any) -> Run:
        assert options["resume"] == "allow"
        sys.stdout.write("* Trackio project initialized")
        return Run()

    monkeypatch.setattr(library, "init", init)
    keep("trackio", run)
    assert said == [(1, {"loss": 2.5}), (1, {"validation_loss": 2.0}), (2, {"loss": 1.5})]
    assert capsys.readouterr().out == ""
