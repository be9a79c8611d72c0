"""The package's front: what `import tunesmith` offers, and that it works as the command does."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import tunesmith as ts
from tests.glance import only_a_glance
from tests.tiny import tiny_encoder
from tunesmith import errors
from tunesmith.events import StageStarted, StepFinished
from tunesmith.training.callbacks import Callbacks


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Sixty labelled sentences."""
    path = tmp_path / "reviews.jsonl"
    rows = [{"text": f"phone {i} is {('good', 'bad')[i % 2]}", "label": ("yes", "no")[i % 2]} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_listed_is_there_and_what_is_there_is_listed():
    kinds = (inspect.isfunction, inspect.isclass)
    assert all(hasattr(ts, name) for name in ts.__all__)  # some are imported on first access
    public = {name for name, value in vars(ts).items() if any(kind(value) for kind in kinds)} - {"Any"}
    public = {name for name in public if not name.startswith("_")}
    assert public | {"__version__", "Message", "Sampling"} == set(ts.__all__)
    assert set(ts.__all__) <= set(dir(ts))


def test_every_error_that_input_can_cause_is_exported():
    inner = {
        "RowError",
        "UnsettledError",
        "OptionError",
        "ProcessError",
        "OverBudgetError",
    }  # caught by the name of a base class
    found = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert found - inner <= set(ts.__all__)


def test_message_and_sampling_are_imported_on_first_access():
    code = """
import sys, tunesmith
light = {"torch", "numpy", "pydantic", "tunesmith.data", "tunesmith.models"} & set(sys.modules)
from tunesmith import Message, Sampling
print(sorted(light), Message.__module__, Sampling.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] tunesmith.data.tokenization.messages tunesmith.models.generation.sampling\n"
    with pytest.raises(AttributeError, match="module 'tunesmith' has no attribute 'Massage'"):
        ts.__getattr__("Massage")


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("tunesmith.model.sampling", "tunesmith.models.generation.sampling", "Sampling"),
        ("tunesmith.model.load", "tunesmith.models.loading.load", "load_base"),
        ("tunesmith.model.shipped", "tunesmith.models.loading.bundled_models", "fetch"),
        ("tunesmith.model.sentence", "tunesmith.models.sentence_embeddings", "sentence_vectors"),
        ("tunesmith.data.sources", "tunesmith.data.splits.load", "load"),
    ],
)
def test_a_deprecated_path_works_and_warns(old: str, new: str, name: str):
    code = f"from {old} import {name} as old; from {new} import {name} as new; assert old is new"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert "DeprecationWarning" in done.stderr
    assert new.rpartition(".")[0].removesuffix(".loading").removesuffix(".generation") in done.stderr


def test_the_version_is_that_of_the_installed_package():
    assert ts.__version__ == version("tunesmith")


def test_rows_are_tuned_on_loaded_and_asked(reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    only_a_glance(monkeypatch)
    heard: list[str] = []
    notes: list[str] = []
    settings = {"machine": {"threads": 1, "dtype": "float32"}, "schedule": {"probe": False}, "lr": 0.01}
    bert = tiny_encoder(tmp_path / "bert")
    run = ts.tune(
        reviews,
        model=str(bert),
        technique="full",
        objective="classify",
        out=tmp_path / "run",
        offline=True,
        callback=lambda event: (heard.append(event.kind), notes.append(getattr(event, "text", ""))),
        **settings,
    )
    assert run.folder == tmp_path / "run"
    assert run.report.task.n == 12
    assert set(heard) >= {"stage", "machine", "data", "step"}
    assert "lr -> schedule.learning_rate: 0.01" in notes
    found = ts.load(run.folder, offline=True).classify(["phone 3 is bad"])
    assert found[0].label in ("yes", "no")
    again = ts.tune(reviews, model=str(bert), technique="full", objective="classify", out=run.folder, **settings)
    assert again.reused


def test_a_key_that_no_recipe_has_is_an_error(reviews: Path):
    with pytest.raises(ts.RecipeError, match="unknown key 'epoch'"):
        ts.tune(reviews, epoch=3)


def test_the_deprecated_listen_still_receives_dictionaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    events = [StageStarted("reading rows"), StepFinished(1, 2, 0.5, 1e-3, 1.0, 8, 0.1, 80.0, {"kl": 0.25})]

    def tune_recipe(recipe: Any, *, callbacks: Callbacks, **_: Any) -> None:
        for event in events:
            callbacks.on_event(event)

    monkeypatch.setattr("tunesmith.pipelines.tune.tune.tune_recipe", tune_recipe)
    received: list[dict[str, Any]] = []
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"text": "text {n}", "label": "{"yes" if n % 2 else "no"}"}}\n' for n in range(40)))
    with pytest.warns(DeprecationWarning, match="use callback="):
        ts.tune(file, objective="classify", model="minilm-l6", listen=received.append)
    assert received[-2:] == [
        {"event": "stage", "text": "reading rows"},
        {
            "event": "step",
            "step": 1,
            "steps": 2,
            "loss": 0.5,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens": 8,
            "seconds": 0.1,
            "tokens_per_second": 80.0,
            "kl": 0.25,
        },
    ]
