"""A run that begins from the model of another: merged into its base, told by a fingerprint, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.bases import folder
from tests.pipelines.conftest import recipe, reviews, tune
from tests.pipelines.tune.test_domain import on_texts
from tunesmith.errors import ModelError
from tunesmith.evaluation.contamination import find_seen_rows
from tunesmith.inference.identify import identify, read_manifest
from tunesmith.inference.saved_model import load
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.training.read import read_data

pytestmark = [
    pytest.mark.usefixtures("small_world"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _a_head_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the head of a frozen encoder learns is looked at elsewhere."""
    monkeypatch.setattr("tunesmith.training.mlm_head.FEWEST_STEPS", 4)


QUICK = {"epochs": 1, "probe": False}


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "technique"),
    [("llama", "lora"), ("llama", "qlora"), ("llama", "ia3"), ("llama", "full"), ("bert", "lora"), ("bert", "full")],
)
def test_a_base_out_of_a_run_computes_what_the_run_does(kind: str, technique: str, tmp_path: Path):
    run = tune(on_texts(tmp_path, kind, technique=technique, schedule=QUICK), tmp_path / "run")
    tuned, begun, plain = load(run.folder), load_base(str(run.folder)), load_base(str(folder(kind)))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs, ours, first = (
            one.base_model(input_ids=ids).last_hidden_state
            for one in (tuned.policy.network, begun.network, plain.network)
        )
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, first, atol=1e-4)
    assert begun.fingerprint not in (plain.fingerprint, "")
    assert begun.fingerprint == load_base(str(run.folder / "model")).fingerprint


def test_labels_are_learned_from_the_model_of_a_field_and_found_again(tmp_path: Path):
    domain = tune(on_texts(tmp_path, "llama", schedule=QUICK), tmp_path / "domain")
    made = recipe(tmp_path, reviews(), "llama", model=str(domain.folder), schedule=QUICK)
    run = tune(made, tmp_path / "labels")
    assert read_manifest(run.folder / "model").base == str(domain.folder)
    assert load(run.folder).classify(["good"])[0].label in ("positive", "negative")
    # PEFT's own classes would put the adapter over whatever is named there, and the base below is the wrong one.
    assert json.loads((run.folder / "model" / "adapter_config.json").read_text())["base_model_name_or_path"] is None


@pytest.mark.long
def test_test_rows_that_the_run_below_was_trained_on_are_told_whichever_is_on_top(tmp_path: Path):
    first = tune(recipe(tmp_path, reviews(), "llama", schedule=QUICK), tmp_path / "first")
    same = tune(recipe(tmp_path, reviews(), "llama", model=str(first.folder), schedule=QUICK), tmp_path / "same")
    assert not any("was trained on" in note for note in same.report.data.notes)
    other = recipe(tmp_path, reviews(), "llama", model=str(same.folder), schedule=QUICK, seed=1)
    notes = tune(other, tmp_path / "other").report.data.notes
    assert any(f"{same.folder} was trained on" in note and "of these" in note for note in notes)
    (told,) = find_seen_rows(identify(same.folder), read_data(other, offline=True).split.test, offline=True)
    assert told in notes


def test_a_run_of_which_the_base_was_changed_is_not_begun_from(tmp_path: Path):
    run = tune(on_texts(tmp_path, "llama", schedule=QUICK), tmp_path / "run")
    page = run.folder / "model" / "tunesmith.json"
    page.write_text(page.read_text().replace(read_manifest(run.folder / "model").fingerprint, "0" * 16))
    with pytest.raises(ModelError, match="tuned over another base"):
        load_base(str(run.folder))


def test_soft_prompts_heads_and_four_bits_are_refused_with_the_reason(tmp_path: Path):
    soft = tune(on_texts(tmp_path, "llama", technique="prompt", schedule=QUICK), tmp_path / "soft")
    with pytest.raises(ModelError, match="prompt trains virtual tokens, which cannot be merged into weights"):
        load_base(str(soft.folder))
    labels = tune(recipe(tmp_path, reviews(), "bert", schedule=QUICK), tmp_path / "labels")
    with pytest.raises(ModelError, match="tuned for classify with its own head"):
        load_base(str(labels.folder))
    lora = tune(on_texts(tmp_path, "llama", schedule=QUICK), tmp_path / "lora")
    with pytest.raises(ModelError, match="leave `quantize` out"):
        load_base(str(lora.folder), options=LoadOptions(quantize="nf4"))
