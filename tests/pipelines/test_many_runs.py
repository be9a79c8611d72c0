"""Independent runs: the same results one after another and on Ray, also where a worker is killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import recipe, reviews
from tunesmith.errors import OptionError
from tunesmith.events import StepFinished
from tunesmith.pipelines.learning_curve.learning_curve import measure_cell
from tunesmith.pipelines.many_runs import check_place, each
from tunesmith.training.run_folder import pin_machine

pytestmark = pytest.mark.usefixtures("small_world")
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


def test_without_ray_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for on in ("ray", "ray://head:10001"):
        with pytest.raises(OptionError) as caught:
            check_place(on)
        assert str(caught.value) == f"--on {on}: Ray is missing; pip install 'tunesmith[ray]', or leave --on out"
    with pytest.raises(OptionError, match="--on moon: expected local, ray or ray://HOST:PORT"):
        list(each(abs, [1], on="moon"))
    check_place("local")


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
def test_four_cells_on_ray_with_one_killed_worker_score_as_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("ray")
    import ray

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    schedule = {"epochs": 1, "eval_steps": 2, "save_steps": 1, "batch_rows": 8}
    made = recipe(tmp_path, reviews(80), "bert", technique="full", schedule=schedule, data={"audit": "note"})
    made = made.model_copy(update={"machine": made.machine.model_copy(update={"threads": 1})})
    settings = pin_machine(made, tmp_path / "machine.json")
    here = dict(each(partial(measure_cell, settings, tmp_path / "here", True), CELLS))
    try:
        there = dict(each(partial(measured, settings, tmp_path / "there", tmp_path), CELLS, on="ray"))
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert {cell: found.score for cell, found in there.items()} == {cell: found.score for cell, found in here.items()}
    assert [there[cell].rows for cell in CELLS] == [24, 24, 40, 40]
