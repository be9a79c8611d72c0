"""Independent runs: the same results one after another and on Ray, also where a worker is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench.technique_grid.__main__ import tune_in_task
from bench.technique_grid.cells import Setting, cells
from bench.technique_grid.run import fill, read
from tests.pipelines.conftest import recipe, reviews
from tests.pipelines.tune.test_multitask import mixed
from tests.ports import free_port
from tunesmith.errors import OptionError, TunesmithError
from tunesmith.events import StepFinished
from tunesmith.pipelines.learning_curve.learning_curve import measure_cell
from tunesmith.pipelines.many_runs import _result, check_place, each
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training.callbacks import Callbacks
from tunesmith.training.run_folder import pin_machine

pytestmark = pytest.mark.usefixtures("small_world")
# Of the processes of a cluster: what they import, and their niceness.
RAY = {
    "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    "RAY_worker_niceness": "0",
}
CELLS = [(24, 0), (24, 1), (40, 0), (40, 1)]


def test_cells_follow_one_another_and_each_result_is_there_at_once():
    began: list[int] = []

    def square(cell: int) -> int:
        began.append(cell)
        return cell * cell

    found = each(square, [1, 2, 3])
    assert next(found) == (1, 1)
    assert began == [1]
    assert list(found) == [(2, 4), (3, 9)]


def test_nothing_more_starts_once_it_is_to_stop():
    began: list[int] = []
    for cell, _ in each(began.append, [1, 2, 3], stop=lambda: len(began) == 2):
        assert cell <= 2
    assert began == [1, 2]


def test_an_error_of_a_cell_is_its_own():
    with pytest.raises(ZeroDivisionError):
        list(each(lambda cell: 1 // cell, [1, 0]))


@pytest.mark.parametrize(("text", "reason"), [("", "RayError"), ("a\nno module\n", "no module")])
def test_a_task_that_cannot_start_is_one_line_with_or_without_a_cause(text: str, reason: str):
    class RayError(Exception): ...

    class RayTaskError(RayError):
        cause = RayError(text)

    def get(reference: object) -> None:
        raise RayTaskError

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError), get=get)
    with pytest.raises(TunesmithError, match=rf"ray: a task cannot start \({reason}\); install"):
        _result(ray, None)


def test_without_ray_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for on in ("ray", "ray://head:10001"):
        with pytest.raises(OptionError) as caught:
            check_place(on)
        assert str(caught.value) == f"--on {on}: Ray is missing; pip install 'tunesmith[ray]', or leave --on out"
    with pytest.raises(OptionError, match="--on: expected local, ray or ray://HOST:PORT, not 'moon'"):
        list(each(abs, [1], on="moon"))
    check_place("local")
    monkeypatch.undo()
    with pytest.raises(OptionError, match="--on ray: this recipe has no control runs to train there; set controls"):
        check_place("ray", controls=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two cores on loopback, as `ray start` starts it."""
    pytest.importorskip("ray")
    client, port = (free_port() for _ in range(2))
    words = ["--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    words += ["--include-dashboard=false"]
    own = {name: value for name, value in os.environ.items() if name != "TUNESMITH_CACHE"}  # real models are in another
    place = tempfile.mkdtemp(prefix="ray-")  # paths of sockets are short
    printed = tmp_path_factory.mktemp("ray") / "log"
    with printed.open("wb") as log:
        started = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *words, f"--temp-dir={place}"],
            env={**own, **RAY, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while "Ray runtime started" not in printed.read_text():
            assert started.poll() is None, printed.read_text()
            time.sleep(0.5)
        yield f"ray://127.0.0.1:{client}"
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ray Client connection timed out")
def test_an_address_at_which_no_cluster_answers_is_named():
    pytest.importorskip("ray")
    with pytest.raises(OptionError, match="--on ray://127.0.0.1:9: cannot be reached at"):
        list(each(abs, [1], on="ray://127.0.0.1:9"))


@pytest.fixture
def own_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `--on ray` start a cluster, and end it with the test."""
    ray = pytest.importorskip("ray")
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    yield
    ray.shutdown()


def kill_once(place: Path, event: Any) -> None:
    """Kill this process as soon as it has trained two steps; the next one goes through."""
    if isinstance(event, StepFinished) and event.step == 2 and not (place / "killed").exists():
        (place / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def measured(settings: Any, folder: Path, place: Path, cell: tuple[int, int]) -> Any:
    """Measure a cell; one of them loses its worker the first time."""
    killed = partial(kill_once, place) if cell == (40, 0) else lambda event: None
    return measure_cell(settings, folder, True, cell, on_event=killed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("own_cluster")
def test_four_cells_on_ray_with_one_killed_worker_score_as_one_after_another(tmp_path: Path):
    schedule = {"epochs": 1, "eval_steps": 2, "save_steps": 1, "batch_rows": 8}
    made = recipe(tmp_path, reviews(80), "bert", technique="full", schedule=schedule, data={"audit": "note"})
    settings = pin_machine(made, tmp_path / "machine.json")
    here = dict(each(partial(measure_cell, settings, tmp_path / "here", True), CELLS))
    there = dict(each(partial(measured, settings, tmp_path / "there", tmp_path), CELLS, on="ray"))
    assert (tmp_path / "killed").exists()
    assert {cell: found.score for cell, found in there.items()} == {cell: found.score for cell, found in here.items()}
    assert [there[cell].rows for cell in CELLS] == [24, 24, 40, 40]
    listening = {one.laddr.ip for process in psutil.Process().children(recursive=True) for one in sockets_of(process)}
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def sockets_of(process: psutil.Process) -> list[Any]:
    try:
        return [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("own_cluster")
def test_controls_that_are_trained_on_ray_score_as_those_that_are_trained_here(tmp_path: Path):
    several = mixed(tmp_path, controls=True)
    single = recipe(tmp_path, reviews(60), "bert", technique="full", controls=True, data={"audit": "note"})
    for name, made in (("several", several), ("single", single)):
        reports = [
            tune_recipe(made, out=tmp_path / name / on, callbacks=Callbacks(), offline=True, on=on).report
            for on in ("local", "ray")
        ]
        here, there = ([arm.model_dump() for arm in report.controls] for report in reports)
        assert here == there
        assert reports[0].multitask == reports[1].multitask


def tune_killed_once(place: Path, recipe: Path, folder: Path) -> tuple[str, str]:
    """Tune a cell of the grid; the process of one of them is killed once, as soon as its run has begun."""
    if "lora" in folder.name and not (place / "killed").exists():
        threading.Thread(target=kill_when, args=(folder / "journal.jsonl", place / "killed"), daemon=True).start()
    return tune_in_task(["--offline"], recipe, folder)


def kill_when(file: Path, note: Path) -> None:
    """Kill this process once a file exists."""
    while not file.exists():
        time.sleep(0.05)
    note.touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_a_sweep_of_the_grid_on_a_cluster_of_an_address_survives_a_killed_worker(cluster: str, tmp_path: Path):
    import ray

    setting = Setting(Path("examples").absolute(), tmp_path / "runs", tmp_path / "results.jsonl", 40, 1, False)
    chosen = cells([f"classify/{technique}/encoder" for technique in ("full", "lora", "ia3", "prompt")])
    said: list[Any] = []
    try:
        tune = partial(tune_killed_once, tmp_path)
        fill(chosen, setting, tune=tune, on_event=said.append, stop=lambda: False, on=cluster)
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert said == []
    found = read(setting)
    assert {cell.technique for cell in found.cells} == {"full", "lora", "ia3", "prompt"}
    assert found.failed == {}  # `refused` lists the cells of the whole grid that cannot be
