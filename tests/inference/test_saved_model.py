"""A tuned model on disk: the same answers after loading, and nothing foreign or broken is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.bases import LORA, base, folder, labelled, policy, template
from tests.tiny import CHATML, tiny_decoder
from tunesmith.data.tokenization.chat_template import Template
from tunesmith.data.tokenization.messages import Message
from tunesmith.errors import CheckpointError, TemplateError
from tunesmith.inference.identify import MANIFEST_FILE, ModelManifest, find_model, read_manifest
from tunesmith.inference.local_model import LocalModel
from tunesmith.inference.saved_model import load, save_model
from tunesmith.models.loading.checkpoint import MANIFEST, write_folder
from tunesmith.objectives import Classify, Instruct
from tunesmith.techniques import Full, Lora

TEXTS = ("This phone is good", "hi", "This battery is bad and I do not like it.")
OBJECTIVES = {
    "words": Classify(output="words"),
    "linear": Classify(output="linear"),
    "instruct": Instruct(max_new_tokens=5),
}


def tuned(out: Path, kind: str, technique: Full | Lora, name: str = "instruct") -> LocalModel:
    """A model whose numbers are not its base's, in a run folder."""
    found = base(kind)
    objective = OBJECTIVES[name].bind(labelled(4), found.family) if name != "instruct" else OBJECTIVES[name]
    made = policy(kind, technique, lively=0.05)
    made.head = objective.head(made)
    if made.head is not None:
        with torch.no_grad():
            for value in made.head.parameters():
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(2)))
    form = Template(found.tokenizer, chat=found.family == "decoder")
    model = LocalModel(made, form, objective, 128, temperature=1.7)
    about = ModelManifest(
        base=str(folder(kind)),
        fingerprint=found.fingerprint,
        family=found.family,
        objective=objective,
        technique=technique,
        template_hash=form.hash,
        limit=128,
        temperature=1.7,
    )
    write_folder(out / "model", lambda half: save_model(half, model, about))
    return model


def logits(model: LocalModel) -> torch.Tensor:
    return model.label_logits(TEXTS)


# ------------------------------------------------------------------ the same after loading


@pytest.mark.parametrize("technique", [Full(), LORA, Lora(rank=4, dora=True)], ids=["full", "lora", "dora"])
@pytest.mark.parametrize(("kind", "name"), [("llama", "words"), ("gemma", "linear"), ("bert", "linear")])
def test_a_loaded_classifier_has_the_logits_it_was_saved_with(
    kind: str, name: str, technique: Full | Lora, tmp_path: Path
):
    made = tuned(tmp_path, kind, technique, name)
    found = load(tmp_path)
    assert torch.equal(logits(found), logits(made))
    assert found.classify(TEXTS) == made.classify(TEXTS)
    assert (found.limit, found.temperature, found.objective) == (128, 1.7, made.objective)
    assert not any(value.requires_grad for value in found.policy.network.parameters())


@pytest.mark.parametrize("technique", [Full(), LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_loaded_writer_gives_the_answers_it_was_saved_with(kind: str, technique: Full | Lora, tmp_path: Path):
    made = tuned(tmp_path, kind, technique)
    assert load(tmp_path).generate(TEXTS) == made.generate(TEXTS)


def test_a_run_is_found_by_its_folder_or_by_the_models(tmp_path: Path):
    tuned(tmp_path, "llama", LORA)
    assert find_model(tmp_path) == find_model(tmp_path / "model") == tmp_path / "model"
    assert find_model(str(tmp_path)) == tmp_path / "model"


def test_no_file_of_a_saved_adapter_holds_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder("llama").parent))
    tuned(tmp_path, "llama", LORA)
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == f"~/{folder('llama').name}"
    for file in (tmp_path / "model").iterdir():
        assert str(folder("llama").parent).encode() not in file.read_bytes(), file.name
    assert len(load(tmp_path).generate(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_folders_tokenizer_asks_in_the_format_that_was_trained(kind: str, tmp_path: Path):
    tuned(tmp_path, kind, LORA)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    chat = [{"role": "user", "content": "hi"}]
    said = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert said == theirs.decode(template(kind).prompt([Message("user", "hi")]))


def test_a_model_folder_holds_safetensors_and_text_only(tmp_path: Path):
    tuned(tmp_path, "bert", Full(), "linear")
    suffixes = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".jinja"}
    assert (tmp_path / "model" / "head.safetensors").exists()


# ------------------------------------------------------------------ refused


def edit(file: Path, **changes: object) -> None:
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | changes))


def test_another_base_of_the_same_shape_is_refused(tmp_path: Path):
    tuned(tmp_path, "llama", LORA)
    other = tiny_decoder(tmp_path / "other", "llama")
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    edit(tmp_path / "model" / MANIFEST_FILE, base=str(other))
    with pytest.raises(CheckpointError, match=r"tuned over another base .* found .*; give the base it was tuned on"):
        load(tmp_path)


def test_a_base_that_moved_is_still_the_same_base_and_the_edit_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = tuned(tmp_path, "llama", LORA, "words")
    moved = shutil.copytree(folder("llama"), tmp_path / "elsewhere")
    edit(tmp_path / "model" / MANIFEST_FILE, base=str(moved))
    assert torch.equal(logits(load(tmp_path)), logits(made))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'model' / MANIFEST_FILE}: edited since it was written; restore it if that was not you"
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_changed_chat_template_is_refused(kind: str, tmp_path: Path):
    tuned(tmp_path, kind, LORA)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = CHATML.replace("helpful", "terse").replace("<|im_end|>", tokenizer.eos_token)
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="missing or changed since it was written"):
        load(tmp_path)
    (tmp_path / "model" / MANIFEST).unlink()
    with pytest.raises(TemplateError, match="the chat template differs from the one this model was tuned with"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "technique", "name", "file"),
    [
        ("llama", LORA, "instruct", "adapter_model.safetensors"),
        ("llama", Full(), "instruct", "model.safetensors"),
        ("bert", LORA, "linear", "head.safetensors"),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "cut short", "missing"])
def test_damaged_weights_are_refused(kind, technique, name, file, damage, tmp_path: Path):
    tuned(tmp_path, kind, technique, name)
    path = tmp_path / "model" / file
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        whole[:-1] + bytes([whole[-1] ^ 1]) if damage == "flipped" else whole[: len(whole) // 2]
    )
    with pytest.raises(CheckpointError, match=rf"{file}: missing or changed since it was written; restore it"):
        load(tmp_path)


def test_a_folder_that_was_copied_without_its_manifest_still_opens_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = tuned(tmp_path, "llama", LORA, "words")
    (tmp_path / "model" / MANIFEST).unlink()
    assert torch.equal(logits(load(tmp_path)), logits(made))
    assert torch.equal(logits(load(tmp_path)), logits(made))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'model'}: manifest.json is missing, so nothing shows whether its files have changed; restore it"
    ]


def test_a_file_that_came_later_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tuned(tmp_path, "llama", LORA, "words")
    (tmp_path / "model" / "notes.md").write_text("mine")
    load(tmp_path)
    assert not caplog.records
    (tmp_path / "model" / "added_tokens.json").write_text("{}")
    load(tmp_path)
    assert "'added_tokens.json' is not of the run and may change its answers" in caplog.text


@pytest.mark.parametrize(
    ("changes", "finding"),
    [({"format": 2}, "Input should be 1"), ({"surprise": 1}, "Extra inputs are not permitted")],
)
def test_a_page_of_another_version_is_refused(changes: dict, finding: str, tmp_path: Path):
    tuned(tmp_path, "llama", LORA)
    edit(tmp_path / "model" / MANIFEST_FILE, **changes)
    with pytest.raises(
        CheckpointError, match=rf"{MANIFEST_FILE}: {finding}; written by another version or edited by hand"
    ):
        read_manifest(tmp_path / "model")


def test_a_page_that_is_no_json_is_refused(tmp_path: Path):
    tuned(tmp_path, "llama", LORA)
    (tmp_path / "model" / MANIFEST_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{MANIFEST_FILE}: not JSON .*; written by another version"):
        load(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path):
    tuned(tmp_path, "llama", LORA)
    (tmp_path / "model" / MANIFEST).unlink()
    for damage in ("{", "{}", "[]"):
        (tmp_path / "model" / "tokenizer.json").write_text(damage)
        with pytest.raises(CheckpointError, match="transformers cannot read it .*; or restore the folder"):
            load(tmp_path)
    (tmp_path / "model" / MANIFEST_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=f"{MANIFEST_FILE}: cannot be read"):
        load(tmp_path)


def test_a_loaded_model_knows_from_where_on_it_is_sure_enough(tmp_path: Path):
    made = tuned(tmp_path, "bert", LORA, "linear")
    page = json.loads((tmp_path / "model" / MANIFEST_FILE).read_text())
    assert load(tmp_path).threshold is None
    (tmp_path / "model" / MANIFEST_FILE).write_text(json.dumps(page | {"threshold": 0.7}))
    assert (load(tmp_path).threshold, made.threshold) == (0.7, None)


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"run: the name is empty"):  # not the current folder
        load("")
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no finished model in it; finish it with `tunesmith tune`"):
        find_model(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{MANIFEST_FILE} is missing"):
        read_manifest(tmp_path)
