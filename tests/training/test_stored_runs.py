"""Runs on rows and tokens in files: the same bytes as in memory, encoded once, mapped by every later start."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.bases import folder
from tunesmith.config import Recipe
from tunesmith.pipelines.tune.tune import tune_recipe
from tunesmith.training import prepare as preparing
from tunesmith.training.callbacks import Callbacks, Interrupted


def tuned(out: Path, recipe: Recipe, *, stop_after: int = 10**9) -> bytes:
    """The weights of a run, interrupted after some steps and resumed."""
    left = iter(range(stop_after))
    callbacks = Callbacks(on_event=lambda event: None, should_stop=lambda: next(left, None) is None)
    try:
        tune_recipe(recipe, out=out, callbacks=callbacks, offline=True)
    except Interrupted:
        tune_recipe(recipe, out=out, callbacks=Callbacks(on_event=lambda event: None), offline=True)
    return b"".join(path.read_bytes() for path in sorted((out / "model").glob("*.safetensors")))


@pytest.mark.long
@pytest.mark.parametrize(("kind", "network"), [("domain", "llama"), ("domain", "bert"), ("classify", "llama")])
def test_a_run_on_files_has_the_bytes_of_one_in_memory_and_a_resumed_one_encodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: str
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    texts = [" ".join(rng.choices(("good", "bad", "fox", "dog", "lazy", "quick"), k=9)) for _ in range(48)]
    columns = {"domain": ("text",), "classify": ("text", "label")}[kind]
    file = tmp_path / "rows.csv"
    lines = [",".join([text, text[:3]][: len(columns)]) for text in texts]
    file.write_text("\n".join([",".join(columns), *lines]))
    general = tmp_path / "general.csv"
    general.write_text("text\n" + "\n".join(" ".join(sorted(text.split())) for text in texts))
    recipe = Recipe.model_validate(
        {
            "model": str(folder(network)),
            "objective": {"kind": kind},
            "technique": {"kind": "lora", "rank": 2},
            "data": {"train": str(file), "max_tokens": 160, "audit": "note"},
            "schedule": {"epochs": 2, "batch_rows": 8, "probe": False, "save_steps": 2},
            "retention": {"questions": 0, "texts": 0},
            **({"replay": {"share": 0.2, "source": str(general)}} if kind == "domain" and network == "llama" else {}),
        }
    )
    memory = tuned(tmp_path / "memory", recipe)
    monkeypatch.setattr("tunesmith.data.readers.read.LARGE_BYTES", 1)
    encoded: list[object] = []
    real = preparing.encoded_pieces
    monkeypatch.setattr(
        preparing, "encoded_pieces", lambda *args, **named: (encoded.append(args), real(*args, **named))[1]
    )
    assert tuned(tmp_path / "stored", recipe, stop_after=3) == memory
    assert len(encoded) == 2  # train and validation, by the first start


def test_baselines_of_rows_in_files_are_fitted_to_some_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tunesmith.data.readers.read.LARGE_BYTES", 1)
    monkeypatch.setattr(preparing, "MOST_BASELINE_ROWS", 10)
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "\n".join(f"text {n},{('good', 'bad')[n % 2]}" for n in range(60)))
    given = {"model": str(folder("bert")), "objective": {"kind": "classify"}, "data": {"train": str(file)}}
    prepared = preparing.prepare(Recipe.model_validate(given), on_event=lambda event: None, offline=True)
    assert len(prepared.train) == 42
    assert len(set(prepared.baseline_rows)) == 10
    assert set(prepared.baseline_rows) < set(prepared.loaded.split.train)
    assert "baselines and probes are fitted to 10 of 42 training rows" in prepared.facts.notes
