"""Tiny runs: a known machine, a cache of its own, and only a glance at what other rooms' tests look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bases import folder
from tests.glance import only_a_glance
from tunesmith.config import Recipe, make_recipe
from tunesmith.events import ignore
from tunesmith.models.loading.device import ChosenMachine
from tunesmith.pipelines.tune.tune import Run, tune_recipe
from tunesmith.training.callbacks import Callbacks

WORDS = {"positive": ("good", "great", "lovely"), "negative": ("bad", "awful", "broken")}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A known machine, a cache of its own, and only a glance at what other rooms' tests look at."""
    known = ChosenMachine("cpu", "float32", 1, {"float32": 100.0, "bfloat16": 100.0}, "known")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.training.prepare.choose_machine", lambda **_: known)
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        only_a_glance(patch)
        patch.setattr("tunesmith.pipelines.tune.tune.write_reports", lambda folder: None)
        patch.setattr("tunesmith.evaluation.evaluators.answers.baselines", lambda prepared, test: {})
        patch.setattr(
            "tunesmith.evaluation.predict.linear_probe", lambda states, labels, asked, metric: labels[:1] * len(asked)
        )
        yield patch


def reviews(count: int = 48) -> list[dict[str, Any]]:
    labels = ("positive", "negative")
    return [{"text": f"{WORDS[labels[i % 2]][i // 2 % 3]} {i}", "label": labels[i % 2]} for i in range(count)]


def topics(count: int = 48) -> list[dict[str, Any]]:
    marks = (("screen",), ("battery",), ("screen", "battery"), ())
    return [{"text": f"phone {i}: {' and '.join(marks[i % 4]) or 'fine'}", "label": marks[i % 4]} for i in range(count)]


def answers(count: int = 40) -> list[dict[str, Any]]:
    return [{"prompt": f"number {i}", "answer": f"it is {i % 3}"} for i in range(count)]


def recipe(place: Path, rows: list[dict[str, Any]], kind: str, **parts: Any) -> Recipe:
    """A recipe over rows in a file beside the run."""
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw: dict[str, Any] = {
        "model": str(folder(kind)),
        "data": {"train": str(file), **parts.pop("data", {})},
        "objective": parts.pop("objective", "classify"),
        "technique": parts.pop("technique", {"kind": "lora", "rank": 4}),
        "schedule": {"learning_rate": 0.02, "epochs": 2, "batch_rows": 8, **parts.pop("schedule", {})},
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
    }
    return make_recipe(raw | parts, place="test")[0]


def tune(made: Recipe, out: Path, **more: Any) -> Run:
    return tune_recipe(
        made, out=out, callbacks=Callbacks(more.pop("on_event", ignore), more.pop("stop", lambda: False)), **more
    )
