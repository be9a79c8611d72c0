"""Whole runs over a base whose weights are bfloat16, as on a GPU: every objective trains, is scored and answers.

The CPU stands for the GPU: its frozen weights are bfloat16, and the products of training too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.runs import pairs, thumbs
from tests.pipelines.conftest import answers, recipe, reviews, topics, tune
from tunesmith.inference.saved_model import load
from tunesmith.models.generation.sampling import Sampling
from tunesmith.models.loading.device import ChosenMachine

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
TEXTS = [{"text": f"the server keeps table {i} in index {i % 3} until the vacuum"} for i in range(30)]
LORA: dict[str, Any] = {"kind": "lora", "rank": 4}
CASES: dict[str, tuple[Any, str, Any]] = {
    "classify": (reviews(24), "llama", "classify"),
    "labels": (topics(24), "gemma", "classify"),
    "encoder": (reviews(24), "bert", "classify"),
    "instruct": (answers(20), "qwen3", "instruct"),
    "domain": (TEXTS, "llama", "domain"),
    "masked": (TEXTS, "bert", "domain"),
    "preference": (pairs(20), "llama", "preference"),
    "thumbs": (thumbs(20), "llama", "preference"),
    "reward": (pairs(20), "llama", "reward"),
}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not trained are bfloat16."""
    known = ChosenMachine("cpu", "bfloat16", 1, {"float32": 100.0, "bfloat16": 100.0}, "known")
    monkeypatch.setattr("tunesmith.training.prepare.choose_machine", lambda **_: known)
    monkeypatch.setattr("tunesmith.models.loading.load.frozen_dtype", lambda device: "bfloat16")


@pytest.mark.long
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_over_a_base_in_bfloat16_trains_is_scored_and_answers(
    half: None, case: tuple[Any, str, Any], tmp_path: Path
):
    rows, kind, objective = case
    made = recipe(tmp_path, rows, kind, objective=objective, technique=LORA, schedule={"epochs": 1, "probe": False})
    run = tune(made.model_copy(update={"machine": made.machine.model_copy(update={"dtype": "auto"})}), tmp_path / "run")
    assert run.report.training.steps == run.report.training.planned_steps
    model = load(run.folder)
    assert {value.dtype for name, value in model.policy.network.named_parameters() if "lora_" not in name} == {
        torch.bfloat16
    }
    assert {value.dtype for name, value in model.policy.network.named_parameters() if "lora_" in name} <= {
        torch.float32
    }
    if objective == "classify":
        assert len(model.classify(["good", "bad"])) == 2
    elif kind != "bert" and objective in ("instruct", "domain", "preference"):
        assert isinstance(model.generate(["number 3"], sampling=Sampling(max_new_tokens=3)), list)
