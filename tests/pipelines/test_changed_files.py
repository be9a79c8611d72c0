"""Files of a finished run that changed on disk: refused or reported on every way in, never answered from in silence."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tests.pipelines.tune.test_multitask import mixed
from tunesmith.errors import TunesmithError
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.registry import ModelRegistry
from tunesmith.models.loading import checkpoint
from tunesmith.models.loading.checkpoint import EDITABLE
from tunesmith.models.loading.load import load_base
from tunesmith.pipelines.evaluate import evaluate
from tunesmith.pipelines.export import ExportRequest, export
from tunesmith.pipelines.requests import EvaluateRequest

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
TEXTS = ("good 1", "this battery is bad", "number 7")
RUNS = ("encoder", "lora", "prefix", "multitask")
PLACES = 100


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_world: pytest.MonkeyPatch) -> dict[str, Path]:
    """One finished run of each kind, in folders that no test writes into."""
    place = tmp_path_factory.mktemp("finished")
    quick: dict[str, Any] = {"schedule": {"epochs": 1, "probe": False}}
    words = {"kind": "instruct", "max_new_tokens": 4}
    made = {
        "encoder": lambda at: recipe(at, reviews(), "bert", **quick),
        "lora": lambda at: recipe(at, reviews(), "llama", **quick),
        "prefix": lambda at: recipe(at, answers(), "llama", objective=words, technique={"kind": "prefix"}, **quick),
        "multitask": lambda at: mixed(at, tasks=("mood", "count")),
    }
    folders = {}
    for name, of in made.items():
        (place / name).mkdir()
        folders[name] = tune(of(place / name), place / name / "run").folder
    return folders


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], int]]:
    """The number of lines in the log since the last call."""

    def count() -> int:
        lines = [record for record in caplog.records if record.name == "tunesmith"]
        caplog.clear()
        return len(lines)

    with caplog.at_level(logging.WARNING, logger="tunesmith"):
        yield count


def answered(run: Path) -> str:
    """All that a run says about a few texts."""
    model = load(run, offline=True)
    parts = [model.at(task) for task in model.objective.tasks] if model.objective.kind == "multitask" else [model]
    return repr(
        [part.classify(TEXTS) if part.objective.produces == "labels" else part.generate(TEXTS) for part in parts]
    )


def outcome(way: Callable[[], object], reported: Callable[[], int], expected: object = None) -> str:
    """What a way in makes of a damaged run: refused, reported, unharmed, silent or a traceback."""
    reported()
    checkpoint._report.cache_clear()  # each way may be the first of its process
    try:
        found = way()
    except TunesmithError as error:
        return "refused" if len(str(error).splitlines()) == 1 else "several lines"
    except Exception as error:
        return f"traceback ({type(error).__name__}: {error})"
    if reported():
        return "reported"
    return "unharmed" if expected is not None and found == expected else "silent"


def flip(path: Path, chance: random.Random) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def files_of(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)


def flips(run: Path, copy: Path, reported: Callable[[], int], places: int) -> Counter[str]:
    """Flip a bit in each of some places over all files of a run, and ask the run each time."""
    shutil.copytree(run, copy)
    expected = answered(copy)
    chance = random.Random(37)
    outcomes: Counter[str] = Counter()
    files = files_of(copy)
    for place in range(places):
        path = files[place % len(files)]
        whole = path.read_bytes()
        flip(path, chance)
        result = outcome(lambda: answered(copy), reported, expected)
        if path.parent.name == "model" and path.name not in {*EDITABLE, checkpoint.MANIFEST}:
            assert result == "refused", path
        outcomes[result] += 1
        path.write_bytes(whole)
    return outcomes


@pytest.mark.parametrize("name", RUNS)
def test_a_flipped_bit_anywhere_in_a_run_never_changes_an_answer_in_silence(
    name: str, runs: dict[str, Path], tmp_path: Path, reported: Callable[[], int]
):
    found = flips(runs[name], tmp_path / "run", reported, PLACES)
    assert {*found} <= {"refused", "reported", "unharmed"}, found


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_of_two_thousand_flipped_bits_none_is_silent(
    name: str, runs: dict[str, Path], tmp_path: Path, reported: Callable[[], int]
):
    found = flips(runs[name], tmp_path / "run", reported, 2000 // len(RUNS))
    assert {*found} <= {"refused", "reported", "unharmed"}, found


@pytest.mark.parametrize("name", RUNS)
def test_a_deleted_file_is_one_line_on_every_way_in(
    name: str, runs: dict[str, Path], tmp_path: Path, reported: Callable[[], int]
):
    run = shutil.copytree(runs[name], tmp_path / "run")
    for path in files_of(run / "model"):
        whole = path.read_bytes()
        path.unlink()
        for way, found in ways_in(run, tmp_path, reported).items():
            wanted = {"refused", "reported"} if path.name == "manifest.json" else {"refused"}
            assert found in wanted, (way, path.name, found)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", RUNS)
def test_a_changed_file_is_refused_on_every_way_in(
    name: str, runs: dict[str, Path], tmp_path: Path, reported: Callable[[], int]
):
    run = shutil.copytree(runs[name], tmp_path / "run")
    chance = random.Random(38)
    for path in files_of(run / "model"):
        if path.name in EDITABLE:
            continue
        whole = path.read_bytes()
        flip(path, chance)
        found = ways_in(run, tmp_path, reported)
        assert {*found.values()} == {"refused"}, (path.name, found)
        path.write_bytes(whole)


def test_an_edit_of_the_threshold_is_reported_on_every_way_in(
    runs: dict[str, Path], tmp_path: Path, reported: Callable[[], int]
):
    run = shutil.copytree(runs["lora"], tmp_path / "run")
    page = run / "model" / "tunesmith.json"
    page.write_text(json.dumps(json.loads(page.read_text()) | {"threshold": 0.7}))
    assert {*ways_in(run, tmp_path, reported).values()} == {"reported"}


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda run, at: load(run, offline=True),
    "ask": lambda run, at: open_model(run, offline=True),
    "ask the folder of the model": lambda run, at: open_model(run / "model", offline=True),
    "serve": lambda run, at: ModelRegistry({"run": [run]}, offline=True).load("run"),
    "tune over it": lambda run, at: load_base(str(run), offline=True),
    "evaluate": lambda run, at: evaluate(
        EvaluateRequest(str(run), str(run.parent / "rows.jsonl")), on_event=lambda event: None, offline=True
    ),
    "export": lambda run, at: export(
        run, ExportRequest.of("adapter"), out=at / "out", on_event=lambda event: None, offline=True
    ),
}


def ways_in(run: Path, at: Path, reported: Callable[[], int]) -> dict[str, str]:
    """What every way into a run makes of it."""
    if not (at / "rows.jsonl").exists():
        (at / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(8)))
    return {name: outcome(lambda way=way: way(run, at), reported) for name, way in WAYS.items()}
