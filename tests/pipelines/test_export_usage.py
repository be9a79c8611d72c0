"""A merged export answers through transformers' own classes: same labels, probabilities and rewards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, pipeline

from tests.pipelines.conftest import recipe, reviews, topics, tune
from tests.pipelines.tune.test_domain import on_texts
from tunesmith.errors import Refused
from tunesmith.inference.export import sequence_classifier
from tunesmith.inference.export.masked_lm import masked_language_model
from tunesmith.inference.export.usage import read_usage
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load
from tunesmith.models.mlm_head import MaskedHead
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.report.schema import Export

pytestmark = pytest.mark.usefixtures("small_world")
EXACT = 1e-4


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.pipelines.export.export.write_reports", lambda folder: None)


def made(run: Path, out: Path, dtype: str = "") -> Export:
    return export(run, ExportRequest.of("merged", dtype), out=out, on_event=lambda event: None, offline=True)


def run_of(place: Path, rows: list[dict[str, Any]], kind: str, **parts: Any) -> Path:
    return tune(recipe(place, rows, kind, schedule={"probe": False}, **parts), place / "run").folder


def pairs(count: int = 40) -> list[dict[str, Any]]:
    return [{"prompt": f"number {i}", "chosen": f"it is {i % 3}", "rejected": f"no {i}"} for i in range(count)]


def spread(run: Path) -> None:
    """Give the head weights that make the outputs of a tiny model differ between texts."""
    file = run / "model" / "head.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in load_file(file).items()}
    save_file(weights, file)
    (run / "model" / "manifest.json").unlink(missing_ok=True)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
@pytest.mark.parametrize("several", [False, True])
def test_an_encoder_classifies_in_the_pipeline_as_it_was_tuned(tmp_path: Path, kind: str, several: bool):
    run = run_of(tmp_path, topics() if several else reviews(), kind)
    manifest = run / "model" / "tunesmith.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"temperature": 1.7}))
    spread(run)
    found = made(run, tmp_path / "out")
    assert (found.compared, found.same_answers, found.faults) == ("labels", 1.0, ())
    assert found.max_difference is not None
    assert found.max_difference < EXACT
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.problem_type == f"{'multi' if several else 'single'}_label_classification"
    assert config.architectures[0].endswith("ForSequenceClassification")
    assert not (tmp_path / "out" / "head.safetensors").exists()
    # A long text is truncated as in Tunesmith, and a batch is padded.
    texts = ["good " * 700, "bad"]
    classify = pipeline("text-classification", model=str(tmp_path / "out"), top_k=None, truncation=True, batch_size=2)
    for ours, theirs in zip(load(run).classify(texts), classify(texts), strict=True):
        assert {one["label"]: one["score"] for one in theirs} == pytest.approx(ours.probabilities, abs=EXACT)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_16_bits_change_a_probability_by_no_more_than_the_bound(tmp_path: Path, kind: str, dtype: str):
    run = run_of(tmp_path, reviews(), kind)
    assert made(run, tmp_path / "out", dtype).faults == ()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "llama"])
def test_a_reward_model_scores_in_the_pipeline_as_it_was_tuned(tmp_path: Path, kind: str):
    run = run_of(tmp_path, pairs(), kind, objective="reward")
    spread(run)
    found = made(run, tmp_path / "out")
    assert (found.compared, found.same_answers, found.faults) == ("preferences", 1.0, ())
    assert found.max_difference is not None
    assert found.max_difference < EXACT
    assert AutoConfig.from_pretrained(tmp_path / "out").num_labels == 1


@pytest.mark.long
@pytest.mark.parametrize("output", ["linear", "words"])
@pytest.mark.parametrize("rows", [reviews, topics])
def test_a_decoder_classifies_in_the_code_of_its_readme_as_it_was_tuned(tmp_path: Path, output: str, rows: Any):
    if output == "words" and rows is topics:
        pytest.skip("several labels are never words")
    run = run_of(tmp_path, rows(), "llama", objective={"kind": "classify", "output": output})
    if output == "linear":
        spread(run)
    found = made(run, tmp_path / "out")
    assert (found.compared, found.same_answers, found.faults) == ("labels", 1.0, ())
    assert found.max_difference is not None
    assert found.max_difference < EXACT


@pytest.mark.long
@pytest.mark.parametrize("kind", ["qwen3", "gemma", "gpt2"])
def test_a_family_whose_class_has_no_bias_keeps_the_head_beside_the_weights(tmp_path: Path, kind: str):
    run = run_of(tmp_path, reviews(), kind, objective={"kind": "classify", "output": "linear"})
    spread(run)
    found = made(run, tmp_path / "out")
    assert (found.compared, found.same_answers, found.faults) == ("labels", 1.0, ())
    assert (tmp_path / "out" / "head.safetensors").exists()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "transformers has no class for this family" in text
    assert "pipeline_tag: other" in text


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_a_tuned_encoder_fills_masks_in_the_pipeline(tmp_path: Path, kind: str):
    run = tune(on_texts(tmp_path, kind, schedule={"epochs": 1, "probe": False}), tmp_path / "run").folder
    found = made(run, tmp_path / "out")
    assert (found.compared, found.same_answers, found.faults) == ("words", 1.0, ())
    assert found.max_difference is not None
    assert found.max_difference < EXACT


@pytest.mark.parametrize(
    ("kind", "settings", "same"),
    [
        ("BertConfig", {}, True),
        ("BertConfig", {"hidden_act": "relu"}, False),
        ("MobileBertConfig", {"embedding_size": 16, "intra_bottleneck_size": 16}, False),
    ],
)
def test_a_masked_head_is_exported_as_the_class_of_the_family_only_where_it_computes_the_same(
    kind: str, settings: dict[str, Any], same: bool
):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    network = AutoModel.from_config(getattr(transformers, kind)(vocab_size=64, **sizes, **settings))
    head = MaskedHead(network)
    torch.nn.init.normal_(head.bias)
    tokenizer = SimpleNamespace(all_special_ids=[0, 1])
    model: Any = SimpleNamespace(
        policy=SimpleNamespace(head=head, network=network), template=SimpleNamespace(tokenizer=tokenizer)
    )
    assert (masked_language_model(model) is not None) is same


def test_the_readme_shows_the_code_that_was_executed(tmp_path: Path):
    made(run_of(tmp_path, reviews(), "bert"), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    usage = read_usage(tmp_path / "out")
    assert usage is not None
    assert usage.code(".") in text
    assert "pipeline_tag: text-classification" in text


def test_an_export_whose_probabilities_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = sequence_classifier.linear_head

    def spoilt(model: LocalModel) -> Any:
        head = whole(model)
        return head and replace(head, bias=head.bias + torch.arange(len(head.bias)))

    monkeypatch.setattr(sequence_classifier, "linear_head", spoilt)
    run = run_of(tmp_path, reviews(), "bert")
    with pytest.raises(Refused, match=r"a probability differs by .*, expected at most 1e-04;.*do not use it"):
        made(run, tmp_path / "out")
