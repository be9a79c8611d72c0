"""The automatic learning rate, by what is learned and what moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith.recipe import make_recipe
from tunesmith.techniques import Full, Ia3, Lora
from tunesmith.workflows.train import make_plan

LABELS = {"kind": "classify", "text": "text", "label": "label"}
ANSWERS = {"kind": "instruct"}


@pytest.mark.parametrize(
    ("objective", "technique", "family", "share"),
    [
        (LABELS, Lora(), "decoder", 0.3),
        (LABELS, Lora(quantize="nf4"), "decoder", 0.3),
        (LABELS, Full(), "decoder", 0.3),
        (LABELS, Ia3(), "decoder", 1.0),
        (LABELS, Full(), "encoder", 1.0),
        (ANSWERS, Lora(), "decoder", 1.0),
    ],
)
def test_weights_that_learn_labels_take_a_third_of_the_rate(
    objective: dict[str, str], technique: Any, family: str, share: float
):
    raw = {"model": "smollm2-135m", "data": {"train": "a.jsonl"}, "objective": objective}
    recipe = make_recipe(raw | {"technique": technique.model_dump()}, place="test")[0]
    policy: Any = SimpleNamespace(hidden=576, family=family)
    assert make_plan(recipe, policy, rows=64).peak == pytest.approx(share * technique.learning_rate(576, family))
