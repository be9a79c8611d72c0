"""Whole runs of networks that keep more than keys and values: from rows to a measured folder that answers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tunesmith.data.tokenization.messages import Message
from tunesmith.inference.saved_model import load
from tunesmith.training.callbacks import Interrupted

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
LORA = {"kind": "lora", "rank": 4}
INSTRUCT = {"kind": "instruct", "max_new_tokens": 6, "metric": "exact_match"}


def weights(out: Path) -> list[str]:
    """sha256 of the weight files of a finished run."""
    files = sorted((out / "model").glob("*.safetensors"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "technique"), [("qwen3_next", LORA), ("falcon_h1", LORA), ("lfm2", "full")])
def test_answers_are_learned_and_an_interrupted_run_ends_in_the_same_weights(kind: str, technique: Any, tmp_path: Path):
    schedule = {"epochs": 8, "learning_rate": 0.01, "patience": 99}
    made = recipe(tmp_path, answers(24), kind, technique=technique, objective=INSTRUCT, schedule=schedule)
    whole = tune(made, tmp_path / "whole")
    left = list(range(4))
    with pytest.raises(Interrupted):
        tune(made, tmp_path / "cut", stop=lambda: left.pop() == 0 if left else True)
    assert weights(tune(made, tmp_path / "cut").folder) == weights(whole.folder)
    assert whole.report.training.best_validation_loss < whole.report.training.probe_first
    model = load(whole.folder)
    chats = [[Message("user", f"number {i}")] for i in (3, 14, 159)]
    together = [reply.text for reply in model.replies(chats)]
    assert together == [model.reply(chat).text for chat in chats]
    assert any(text.startswith("it is") for text in together)


@pytest.mark.long
@pytest.mark.parametrize("technique", ["full", "prompt"])
@pytest.mark.parametrize("kind", ["nemotron_h", "llama4_text"])
def test_labels_are_scored_by_a_head_and_as_words_after_virtual_tokens(kind: str, technique: str, tmp_path: Path):
    full = technique == "full"
    objective = {"kind": "classify", "output": "linear" if full else "words"}
    # Virtual tokens alone cannot teach a random network.
    schedule = {"epochs": 4, "learning_rate": 0.01, "patience": 99, "probe": full}
    made = recipe(tmp_path, reviews(), kind, technique=technique, objective=objective, schedule=schedule)
    run = tune(made, tmp_path / "run")
    assert not full or run.report.training.best_validation_loss < run.report.training.probe_first
    model = load(run.folder)
    texts = ["good 3", "awful, and more words than the other text has"]
    together = [found.probabilities for found in model.classify(texts)]
    for text, found in zip(texts, together, strict=True):
        assert model.classify(text).probabilities == pytest.approx(found, abs=1e-5)
