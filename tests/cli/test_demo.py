from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, reviews, write_rows
from tunesmith.config import Machine, Recipe, Schedule
from tunesmith.data.readers.read import read_rows
from tunesmith.pipelines import demo


@pytest.fixture
def small(tmp_path: Path, tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with tiny models and sixty rows, in a folder of its own."""
    data = write_rows(tmp_path / "rows.jsonl", reviews())
    models = (str(tiny_bert), str(tiny_llama))
    schedule = Schedule(epochs=1, learning_rate=0.01, probe=False)
    machine = Machine(threads=1, dtype="float32")

    def recipes(rows: str) -> dict[str, Recipe]:
        changed = {}
        for model, (name, recipe) in zip(models, whole(rows).items(), strict=True):
            place = recipe.data.model_copy(update={"train": str(data), "rows": 30, "validation": 0.1})
            small = {"model": model, "data": place, "schedule": schedule, "machine": machine}
            changed[name] = recipe.model_copy(update=small)
        return changed

    whole = demo.recipes
    monkeypatch.setattr(demo, "recipes", recipes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_tunes_scores_and_asks_both_models_once(command: Command, small: Path):
    first = json.loads(command("demo", "--offline", "--json").out)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["demo-minilm-l6", "demo-smollm2-135m"]
    assert [run["technique"] for run in first["runs"]] == ["full", "lora"]
    assert [answer["text"] for answer in first["answers"]] == list(demo.QUESTIONS)
    assert {"base", "tuned", "p_value"} <= set(first["runs"][0]["task"])
    again = json.loads(command("demo", "--offline", "--json").out)
    assert [run["already_finished"] for run in again["runs"]] == [True, True]
    assert again["answers"] == first["answers"]
    told = command("demo", "--offline")
    assert told.code == 0
    assert told.out.count("  general ability: ") == 2
    assert told.out.count("  calibration error ") == 2
    bases = ("linear probe on the frozen model", "plain prompt: ", "TF-IDF")
    for said in ("full", "lora", "accuracy", *bases, *demo.QUESTIONS):
        assert said in told.out
    assert "tunesmith ask runs/demo-smollm2-135m" in told.out


def test_the_questions_are_in_none_of_the_shipped_rows(small: Path):
    shipped = Path(demo.__file__).parents[1] / "shipped_data" / "reviews.jsonl"
    texts = {str(row.fields["text"]).lower() for row in read_rows(shipped)}
    assert not texts & {question.lower() for question in demo.QUESTIONS}
