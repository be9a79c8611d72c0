"""Files of a finished run that changed on disk: refused or reported on every way in, never answered from in silence."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tests.pipelines.tune.test_embed import questions
from tests.pipelines.tune.test_multitask import mixed
from tests.pipelines.tune.test_tag import orders
from tunesmith.config import Recipe
from tunesmith.data.files import report_once
from tunesmith.errors import TunesmithError
from tunesmith.events import Event, StepFinished, ignore
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.inference.serving.registry import ModelRegistry
from tunesmith.models.loading.checkpoint import EDITABLE, MANIFEST
from tunesmith.models.loading.load import load_base
from tunesmith.pipelines.evaluate import evaluate
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.pipelines.requests import EvaluateRequest
from tunesmith.report.predictions import read_predictions
from tunesmith.report.run_data import read_run_data
from tunesmith.report.run_list import list_runs
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
TEXTS = ("good 1", "this battery is bad", "number 7")
QUICK: dict[str, Any] = {"schedule": {"epochs": 1, "probe": False}}
WORDS = {"kind": "instruct", "max_new_tokens": 4}
NF4 = {"kind": "lora", "rank": 4, "quantize": "nf4"}
RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "encoder": lambda at: recipe(at, reviews(), "bert", **QUICK),
    "lora": lambda at: recipe(at, reviews(), "llama", **QUICK),
    "qlora": lambda at: recipe(at, reviews(), "llama", technique=NF4, **QUICK),
    "prefix": lambda at: recipe(at, answers(), "llama", objective=WORDS, technique={"kind": "prefix"}, **QUICK),
    "multitask": lambda at: mixed(at, tasks=("mood", "count")),
    "embed": lambda at: recipe(at, questions(), "bert", objective="embed", **QUICK),
    "tag": lambda at: recipe(at, orders(), "bert", objective="tag", **QUICK),
}
PLACES, ALL_PLACES = 14, 2000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_world: pytest.MonkeyPatch) -> dict[str, Path]:
    """A finished run of each kind, and one that was stopped in the middle, in folders that no test writes into."""
    place = tmp_path_factory.mktemp("runs")
    folders = {}
    for name, of in RECIPES.items():
        (place / name).mkdir()
        made = of(place / name)
        folders[name] = tune(made, place / name / "run").folder
        folders[f"half {name}"] = place / name / "half"
        steps: list[Event] = []
        with pytest.raises(Interrupted):
            tune(made, folders[f"half {name}"], on_event=steps.append, stop=lambda steps=steps: saved(steps) == 2)
    return folders


def saved(events: list[Event]) -> int:
    return sum(isinstance(event, StepFinished) for event in events)


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
    return said(load(run, offline=True))


def said(model: LocalModel) -> str:
    """All that a model says about a few texts."""
    parts = [model.at(task) for task in model.objective.tasks] if model.objective.kind == "multitask" else [model]
    ways: dict[str, Callable[[LocalModel], object]] = {
        "labels": lambda part: part.classify(TEXTS),
        "vectors": lambda part: part.embed(TEXTS).tolist(),
        "spans": lambda part: part.answers(TEXTS),
    }
    return repr([ways.get(part.objective.produces, lambda part: part.generate(TEXTS))(part) for part in parts])


def outcome(way: Callable[[], object], reported: Callable[[], int], expected: object = None) -> str:
    """What a way in makes of a damaged run: refused, reported, unharmed, silent or a traceback."""
    reported()
    report_once.cache_clear()  # each way may be the first of its process
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


def untimed(value: Any) -> Any:
    """A document without what differs between two equal runs."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if not TIMED.search(key)}
    return [untimed(inner) for inner in value] if isinstance(value, list | tuple) else value


TIMED = re.compile("mfu|second|time|peak|predict|memory|started|folder|phases|when")


def scores(run: Path) -> object:
    """What `evaluate` finds on rows that the run was not trained on."""
    many = (run.parent / "mood.jsonl").exists()
    request = EvaluateRequest(
        str(run), str(run.parent / ("mood.jsonl" if many else "rows.jsonl")), task="mood" if many else ""
    )
    return untimed(evaluate(request, on_event=ignore, offline=True).page.model_dump(mode="json"))


def exported(run: Path) -> object:
    """What `export` writes, and what it finds out about it."""
    out = run.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    done = export(run, ExportRequest.of("adapter"), out=out, on_event=ignore, offline=True)
    return untimed(done.model_dump(mode="json")), {path.name: path.read_bytes() for path in files_of(out)}


def resumed(run: Path) -> object:
    """What `tune` says at the end of the same recipe."""
    done = tune(RECIPES[run.parent.name](run.parent), run)
    return (
        untimed(done.report.model_dump(mode="json")),
        read_predictions(run),
        untimed(Journal(run / "journal.jsonl").read()),
    )


def shown(run: Path) -> object:
    """What the pages and other runs are told of a run."""
    data = read_run_data(run)
    return data.report, data.recipe, data.journal, data.predictions, list_runs(run)


def served(run: Path) -> object:
    model = ModelRegistry({"run": [run]}, offline=True).load("run").model
    return said(model)


READERS: dict[str, Callable[[Path], object]] = {
    "ask": answered,
    "evaluate": scores,
    "export": exported,
    "serve": served,
    "tune": resumed,
    "report": shown,
}


def flips(run: Path, reported: Callable[[], int], places: int) -> Counter[str]:
    """Flip a bit in each of some places over all files of a run, and read the run each time, in turn by each reader."""
    copy = run.parent / "copy"  # a run belongs where it is, relative to its base

    def restore() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)

    readers = {"tune": resumed} if run.name == "half" else dict(READERS)
    if run.parent.name == "embed":
        readers.pop("export", None)  # sentence-transformers opens the folder of the run as it is
    expected = {}
    for name, reader in readers.items():
        restore()
        expected[name] = reader(copy)
    files = [path.relative_to(run) for path in files_of(run)]
    pairs = [(file, name) for name in readers for file in files]
    chance = random.Random(37)
    chance.shuffle(pairs)
    outcomes: Counter[str] = Counter()
    for place in range(places):
        file, name = pairs[place % len(pairs)]
        restore()
        flip(copy / file, chance)
        result = outcome(lambda name=name: readers[name](copy), reported, expected[name])
        if result not in ("refused", "reported", "unharmed"):
            result = f"{name} {file}: {result}"
        if file.parent.name == "model" and file.name not in {*EDITABLE, MANIFEST} and name not in ("tune", "report"):
            assert result == "refused", (name, file)
        outcomes[result] += 1
    return outcomes


STATES = [f"{state}{name}" for state in ("", "half ") for name in RECIPES]


@pytest.mark.long
@pytest.mark.parametrize("places", [PLACES, pytest.param(ALL_PLACES // len(STATES), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STATES)
def test_a_flipped_bit_anywhere_in_a_run_never_changes_anything_in_silence(
    name: str, places: int, runs: dict[str, Path], reported: Callable[[], int]
):
    found = flips(runs[name], reported, places)
    assert {*found} <= {"refused", "reported", "unharmed"}, found


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
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


@pytest.mark.parametrize("name", RECIPES)
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


@pytest.mark.long
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
