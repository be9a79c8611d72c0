"""Whole runs under techniques that put little into the model, or something before the rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.pipelines.conftest import recipe, reviews, tune
from tests.tiny_families import TinyFamily, _encoder
from tunesmith.config import Recipe, make_recipe
from tunesmith.data.tokenization.chat_template import Tokens
from tunesmith.errors import RecipeError
from tunesmith.inference.saved_model import load
from tunesmith.models.batch import pack
from tunesmith.models.families import positions_of
from tunesmith.training.callbacks import Interrupted
from tunesmith.training.optim import make_plan
from tunesmith.training.prepare import prepare

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
FAST = {"probe": False, "learning_rate": 0.1, "epochs": 1}
ROWS = 24


# The first DeBERTa masks scores with a number that bfloat16 does not have, and changes products in place.
DEBERTA = TinyFamily(
    "DeBERTa",
    _encoder("DebertaConfig", relative_attention=True, pos_att_type="c2p|p2c", position_biased_input=False),
    "AutoModel",
)


def made(place: Path, word: Any, kind: str = "llama") -> Recipe:
    place.mkdir(exist_ok=True)
    technique = word if isinstance(word, dict) else {"kind": word}
    return recipe(place, reviews(ROWS), kind, technique=technique, schedule=FAST)


@pytest.mark.long
@pytest.mark.parametrize(
    ("word", "kind"),
    [("qlora", "llama"), ("ia3", "llama"), ("prompt", "llama"), ("prefix", "llama"), ("p-tuning", "bert")],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been_and_answers_as_it_was_scored(
    word: str, kind: str, tmp_path: Path
):
    if word == "qlora":
        pytest.importorskip("bitsandbytes")
    whole = tune(made(tmp_path, word, kind), tmp_path / "whole")
    asked = [1, 0]
    with pytest.raises(Interrupted):
        tune(made(tmp_path, word, kind), tmp_path / "cut", stop=lambda: bool(asked) and asked.pop() == 0)
    tune(made(tmp_path, word, kind), tmp_path / "cut")
    files = [tmp_path / run / "model" / "adapter_model.safetensors" for run in ("whole", "cut")]
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1
    first, again = (load(tmp_path / run).policy for run in ("whole", "cut"))
    batch = pack([Tokens([6, 7, 8, 9], [False] * 4)], share=False)
    with torch.no_grad():
        assert torch.equal(first.states(batch), again.states(batch))
    assert whole.report.training.trainable > 0
    assert whole.report.memory.model_bytes


def test_a_base_in_four_bits_is_counted_whole_and_weighed_as_it_lies(tmp_path: Path):
    pytest.importorskip("bitsandbytes")
    reports = [tune(made(tmp_path / word, word), tmp_path / word / "run").report for word in ("lora", "qlora")]
    assert reports[0].training.parameters == reports[1].training.parameters
    assert reports[1].memory.model_bytes < 0.8 * reports[0].memory.model_bytes


def test_rows_are_cut_where_virtual_tokens_need_their_place_and_the_run_says_so(tmp_path: Path):
    events: list[dict[str, Any]] = []
    run = tune(made(tmp_path, "prompt", "bert"), tmp_path / "run", on_event=events.append)
    said = [event.text for event in events if event.kind == "stage"]
    assert any(
        text.startswith("max_tokens lowered to 492: the context of ") and text.endswith("also holds 20 virtual tokens")
        for text in said
    )
    model = load(run.folder)
    assert model.limit == 492
    assert model.classify(["good " * 600])  # as long as may be, and no position beyond the model's


def test_rows_are_cut_where_the_model_has_no_more_positions(tmp_path: Path):
    events: list[dict[str, Any]] = []
    prepared = prepare(recipe(tmp_path, reviews(), "bert", data={"max_tokens": 2048}), on_event=events.append)
    assert prepared.recipe.data.max_tokens == 512
    assert any(str(getattr(event, "text", "")).startswith("max_tokens lowered to 512: ") for event in events)
    assert positions_of({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}) == 512
    assert positions_of({"model_type": "gpt2", "n_positions": 1024}) == 1024
    assert positions_of({"model_type": "bloom"}) == 0


def test_virtual_tokens_that_leave_no_room_for_rows_are_refused(tmp_path: Path):
    with pytest.raises(
        RecipeError, match=r"^technique\.tokens: 500 leave fewer than 16 of 512 positions for rows; use at most 496$"
    ):
        tune(made(tmp_path, {"kind": "prompt", "tokens": 500}, "bert"), tmp_path / "run")


def test_answers_that_are_drawn_have_room_behind_the_longest_row(tmp_path: Path):
    (tmp_path / "rules.py").write_text("def score(attempt):\n    return len(attempt.text)\n", encoding="utf-8")
    objective: dict[str, Any] = {"kind": "rl", "reward": f"{tmp_path}/rules.py:score"}
    asked = [{"prompt": f"number {i}"} for i in range(40)]
    plain = recipe(tmp_path, asked, "llama", objective=objective, data={"max_tokens": 8192})
    prepared = prepare(plain, on_event=lambda event: None)
    positions = positions_of(prepared.base.network.config.to_dict())
    assert prepared.recipe.data.max_tokens == positions - prepared.recipe.objective.max_new_tokens
    with pytest.raises(RecipeError, match=r"^objective\.max_new_tokens: 4096 leave fewer than 16 of"):
        prepare(
            recipe(
                tmp_path, asked, "llama", objective={**objective, "max_new_tokens": 4096}, data={"max_tokens": 8192}
            ),
            on_event=lambda event: None,
        )


def test_a_pair_that_cannot_work_is_refused_before_anything_is_scored(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"^technique prefix: .*; nearest that works: prompt$"):
        tune(made(tmp_path, "prefix", "distilbert"), tmp_path / "run")
    assert not (tmp_path / "run" / "before.json").exists()


@pytest.mark.parametrize(
    ("technique", "objective", "family", "rate"),
    [
        ("lora", "classify", "decoder", 5e-4),
        ("qlora", "classify", "decoder", 1.5e-4),
        ("ia3", "classify", "decoder", 3e-3),
        ("qlora", "classify", "encoder", 5e-4 / 3),
        ("qlora", "instruct", "decoder", 5e-4),
        ("full", "classify", "decoder", 1.5e-5),
    ],
)
def test_the_automatic_rate_is_the_techniques_own_but_for_weights_that_learn_labels(
    technique: str, objective: str, family: str, rate: float
):
    made = make_recipe({"data": "rows.jsonl", "technique": technique, "objective": objective}, place="test")[0]
    assert make_plan(made, Mock(hidden=2000, family=family), rows=100).learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(("rows", "share"), [(24 * 16, 1.0), (48 * 16, 0.5), (1000 * 16, 0.3)])
def test_updates_that_learn_labels_go_as_far_in_many_steps_as_in_a_few(rows: int, share: float):
    raw = {"data": "rows.jsonl", "technique": "lora", "objective": "classify", "schedule": {"epochs": 1}}
    made = make_recipe(raw, place="test")[0]
    assert make_plan(made, Mock(hidden=2000, family="decoder"), rows=rows).learning_rate == pytest.approx(share * 5e-4)


@pytest.mark.parametrize("word", ["full", "lora"])
def test_a_network_that_fails_in_half_precision_is_tuned_in_float32(word: str, tmp_path: Path):
    half = {"device": "cpu", "dtype": "bfloat16", "threads": 1}
    asked = recipe(tmp_path, reviews(ROWS), "bert", technique={"kind": word}, schedule=FAST, machine=half)
    asked = asked.model_copy(update={"model": str(DEBERTA.write(tmp_path / "deberta"))})
    run = tune(asked, tmp_path / "run")
    assert run.report.environment["dtype"] == "float32"
    assert load(run.folder).classify(["good"])[0].label in ("negative", "positive")
