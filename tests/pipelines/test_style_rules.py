"""Rules of style in a run: refused at the door, or told for base, tuned model and people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tunesmith.config import load_recipe
from tunesmith.config.style_rules import columns, read_style_rules
from tunesmith.errors import RecipeError
from tunesmith.training.read import read_data

pytestmark = pytest.mark.usefixtures("small_world")
EXAMPLE = Path(__file__).parents[2] / "examples" / "synopsis.yaml"


def named(count: int = 100) -> list[dict[str, Any]]:
    """Prompts and answers of which every tenth repeats the row's name."""
    return [{**row, "id": row["answer"] if i % 10 == 0 else f"thing{i}"} for i, row in enumerate(answers(count))]


def test_a_run_tells_rules_habits_and_the_discriminator_for_base_tuned_and_people(tmp_path: Path):
    rules = {"short": {"max_chars": 8}, "no_name": {"not_column": "id"}, "says_it": {"match": "^it is"}}
    objective = {"kind": "instruct", "max_new_tokens": 8}
    made = recipe(
        tmp_path, named(), "llama", objective=objective, style=rules, data={"test": 0.3}, schedule={"probe": False}
    )
    run = tune(made, tmp_path / "run")
    found = run.report.style
    lines = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) >= 20
    for place, side in enumerate(("base", "tuned", "gold")):
        texts = [line[side] for line in lines]
        assert found.rules["says_it"][place] == pytest.approx(sum(t.startswith("it is") for t in texts) / len(texts))
        assert found.rules["short"][place] == pytest.approx(sum(len(t) <= 8 for t in texts) / len(texts))
    repeats = sum(int(line["question"].split()[-1]) % 10 == 0 for line in lines)
    assert found.rules["no_name"][2] == pytest.approx(1 - repeats / len(lines))
    assert found.auc_base > 0.9  # a random model babbles
    assert found.auc_tuned is not None
    assert {"mean_words", "repeated_share", "never_ending_share", "distinct_2", "vague_share"} == found.habits.keys()
    assert found.habits["never_ending_share"][2] == 0


@pytest.mark.parametrize(
    ("objective", "rows", "rule", "finding"),
    [
        ("instruct", answers(), {"not_column": "idd"}, "style.x: rows.jsonl: no column 'idd'"),
        ("instruct", answers(), {"not_match": "("}, "invalid regular expression"),
        ("classify", reviews(), {"max_chars": 9}, "style: not supported for labels; remove `style`"),
    ],
)
def test_a_rule_that_cannot_be_checked_is_refused_before_a_model_is_loaded(
    objective: str, rows: list[dict[str, Any]], rule: dict[str, Any], finding: str, tmp_path: Path
):
    made = recipe(tmp_path, rows, "llama", objective=objective, style={"x": rule})
    with pytest.raises(RecipeError) as refused:
        tune(made, tmp_path / "run")
    assert finding in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_debians_synopses_keep_the_rules_of_the_example_almost_always():
    made = load_recipe(EXAMPLE)[0]
    rules = read_style_rules(made, offline=True)
    assert len(rules) == 4
    test = read_data(made, offline=True).split.test
    rows = columns(made, test)
    kept = {
        rule.name: sum(
            rule.holds(e.messages[-1].content, row) for e, row in zip(test, rows, strict=True)
        ) / len(test)
        for rule in rules
    }  # fmt: skip
    assert min(kept.values()) > 0.98
