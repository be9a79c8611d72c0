"""Choices of a comparison are read as they were written, today and by earlier versions."""

from __future__ import annotations

from tunesmith.pipelines.compare.answers import ArmSetting, Choices
from tunesmith.pipelines.compare.budget import BudgetedRows


def test_choices_survive_the_disk():
    choices = Choices(
        settings={"rag": ArmSetting(shown=3, form="{passages}")},
        budget=BudgetedRows(test=6, train=10, note="6 of 9", seconds=1.5),
        index_seconds=0.5,
    )
    assert Choices.model_validate_json(choices.model_dump_json()) == choices


def test_choices_of_earlier_versions_are_read():
    flat = {
        "prompt": [""],
        "few-shot": [3],
        "rag": [1, "{passages}"],
        "seconds to index": ["0.5"],
        "seconds to paraphrase": ["2.5"],
        "budget 60": [6, 10, "6 of 9"],
    }
    assert Choices.model_validate(flat) == Choices(
        settings={
            "prompt": ArmSetting(),
            "few-shot": ArmSetting(shots=3),
            "rag": ArmSetting(shown=1, form="{passages}"),
        },
        budget=BudgetedRows(test=6, train=10, note="6 of 9", seconds=0.0),
        index_seconds=0.5,
        writing_seconds={"taught": 2.5},
    )
