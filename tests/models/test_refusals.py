"""Loading base models: what is refused at the door, and in which words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, XLMConfig

from tunesmith.errors import ModelError
from tunesmith.models.families import family_of
from tunesmith.models.loading.load import load_base
from tunesmith.models.loading.locate import LoadOptions
from tunesmith.models.loading.weight_files import check_finite


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny decoder that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def refusal(name: str | Path, **options: Any) -> str:
    """The one line that loading this raises."""
    with pytest.raises(ModelError) as caught:
        load_base(str(name), **options)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(name).split("/")[-1]) or str(name) in line
    return line


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl"])
def test_a_folder_with_only_a_pickle_is_refused_unread(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"x": 1}))
    line = refusal(folder)
    assert f"{name} is a pickle and may run code" in line
    assert "convert it to safetensors" in line


def test_a_tokenizer_whose_chats_the_embedding_has_no_room_for_is_refused(folder: Path) -> None:
    kept = AutoTokenizer.from_pretrained(folder)
    kept.add_tokens(["<|turn|>"], special_tokens=True)
    kept.save_pretrained(folder)
    load_base(str(folder))  # a token that is never written is no harm
    kept.chat_template = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{{ eos_token }}{% endfor %}"
    kept.save_pretrained(folder)
    line = refusal(folder)
    assert "its chat template uses '<|turn|>', which has no embedding; call resize_token_embeddings" in line


def test_an_adapter_alone_is_told_from_a_model(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "this is an adapter, not a whole model; name its base model here" in refusal(folder)


def test_an_adapter_beside_a_whole_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "a whole model and an adapter in one folder; move adapter_config.json" in refusal(folder)


def test_a_pickle_file_is_refused_by_name(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "safetensors" in refusal(folder / "pytorch_model.bin")
    assert "name the folder" in refusal(folder / "model.safetensors")


class Evil:
    """What an attacker puts into a pickle: touching a file stands for any code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_beside_the_safetensors_is_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    assert load_base(str(folder)).family == "decoder"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..\\x.safetensors", "a.bin", ".."])
def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    assert "do not use this model" in refusal(folder)


@pytest.mark.parametrize(
    ("index", "finding"),
    [
        ('{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors is missing"),
        ('{"weight_map": []}', "lists no weights"),
        ("[]", "expected a JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_broken_index_is_refused(folder: Path, index: str, finding: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert finding in refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_weight_file_that_is_cut_short_is_refused(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "model.safetensors is cut short or damaged" in refusal(folder)


def test_a_weight_file_that_claims_a_giant_header_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes((2**62).to_bytes(8, "little") + weights.read_bytes()[8:])
    assert "cut short or damaged" in refusal(folder)


def test_weights_that_may_not_be_read_are_not_called_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_rights(*_: object, **__: object) -> None:
        raise FileNotFoundError("No such file or directory")  # what safetensors says then, too

    monkeypatch.setattr("safetensors.safe_open", without_rights)
    assert "model.safetensors may not be read by this user" in refusal(folder)


def test_a_git_lfs_pointer_is_called_by_its_name(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "Git LFS pointer" in refusal(folder)


def test_missing_weights_are_refused_instead_of_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = refusal(folder)
    assert "1 weights are missing" in line
    assert "model.layers.1.mlp.down_proj.weight" in line


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight contains NaN" in refusal(folder)


def test_finite_weights_whose_sum_is_infinite_are_weights() -> None:
    large = torch.nn.Linear(4, 4, dtype=torch.float16)
    torch.nn.init.constant_(large.weight, 60_000.0)
    assert not large.weight.sum().isfinite()
    check_finite(large, where="large")


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 64},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"rope_parameters": 3},
        {"num_hidden_layers": None},
    ],
)
def test_a_senseless_configuration_is_one_line_and_no_traceback(folder: Path, values: dict[str, Any]) -> None:
    change(folder, **values)
    refusal(folder)


def test_weights_of_another_size_are_named_with_both_sizes(folder: Path) -> None:
    change(folder, intermediate_size=96)
    assert "mlp.down_proj.weight is (32, 64) in the files and (32, 96) by config.json" in refusal(folder)


def test_code_from_the_repository_is_never_run(folder: Path) -> None:
    change(folder, model_type="own_thing", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    assert "auto_map" in refusal(folder)


def test_a_known_family_ignores_the_code_that_lies_beside_it(folder: Path) -> None:
    change(folder, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    assert type(load_base(str(folder)).network).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation_internal", "_implementation"])
def test_a_configuration_that_asks_for_foreign_kernels_is_refused(folder: Path, key: str) -> None:
    change(folder, **{key: "someone/kernels"})
    assert "code from elsewhere" in refusal(folder)
    change(folder, **{key: "sdpa"}, text_config={key: "someone/kernels:main"})
    assert "code from elsewhere" in refusal(folder)


@pytest.mark.long
def test_native_kernels_of_a_hub_are_off_where_their_package_is_installed(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("print('imported')")
    (tmp_path / "kernels-0.18.2.dist-info").mkdir()
    (tmp_path / "kernels-0.18.2.dist-info" / "METADATA").write_text("Name: kernels\nVersion: 0.18.2\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def output(first: str) -> str:
        script = f"{first}\nfrom transformers.utils import is_kernels_available\nprint(is_kernels_available())"
        command = [sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    assert output("") == "True\n"
    loading = "from tunesmith.cli import terminal\nterminal.hush()\nimport tunesmith.models.loading.load, bitsandbytes"
    assert output(loading) == "False\n"


def test_an_encoder_decoder_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "config.json").write_text(T5Config().to_json_string())
    assert "t5 is an encoder-decoder" in refusal(folder)


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        ({"model_type": "vit"}, "neither a text decoder nor a text encoder"),
        ({"model_type": "chameleon"}, "reads images or sound in the same layers as text"),
        ({"model_type": "bert-generation"}, "neither a text decoder nor a text encoder"),
        ({"model_type": "nonesuch"}, "does not support the model type 'nonesuch'"),
        ({}, "has no model_type"),
    ],
)
def test_other_kinds_of_networks_are_refused(config: dict[str, Any], finding: str) -> None:
    with pytest.raises(ModelError, match=finding):
        family_of(config, where="x")


def test_a_decoder_whose_code_asserts_something_is_refused_in_one_line(tmp_path: Path, tiny_llama: Path) -> None:
    config = XLMConfig(vocab_size=320, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert "xlm does not support a KV cache, which generation requires; choose" in refusal(tmp_path)


def test_a_headless_decoder_is_refused_when_its_head_would_be_random(folder: Path) -> None:
    change(folder, tie_word_embeddings=False)
    assert "lm_head.weight" in refusal(folder)


def test_an_adapter_or_a_run_folder_is_told_from_a_model(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "an adapter, not a whole model" in refusal(folder)
    assert "config.json is missing" in refusal(tmp_path)


def test_a_misspelt_alias_gets_the_nearest_one() -> None:
    assert "did you mean smollm2-135m?" in refusal("smollm-135m")
    assert "did you mean minilm-l6?" in refusal("MiniLM-L6")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "../x", "a/b/c", "what is this?", ""])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    assert "no such folder" in refusal(name)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_that_is_out_of_reach_names_the_models_that_are_there(offline: bool) -> None:
    line = refusal("someone/their-model", offline=offline)
    assert "offline" in line if offline else "cannot be reached" in line
    assert "smollm2-135m, minilm-l6" in line


def test_the_hub_is_asked_for_safetensors_and_json_only(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tiny_llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_base("someone/model").folder == tiny_llama
    assert asked["name"] == "someone/model"
    assert not any(name.endswith((".bin", ".py", "*")) for name in asked["allow_patterns"])


def test_a_name_that_the_hub_does_not_know_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **options: Any) -> str:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "the Hub has no such model" in refusal("someone/model")


@pytest.mark.parametrize("options", [LoadOptions(dtype="float8"), LoadOptions(quantize="int3")])
def test_unknown_options_are_refused(tiny_llama: Path, options: LoadOptions) -> None:
    with pytest.raises(ModelError, match="use"):
        load_base(str(tiny_llama), options=options)


def test_four_bits_without_their_library_name_the_cure(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'tunesmith\[quantize\]'"):
        load_base(str(tiny_llama), options=LoadOptions(quantize="nf4"))


def test_an_unfinished_run_is_told_to_be_finished_and_a_name_of_300_letters_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="no finished model in it; finish it with `tunesmith tune`"):
        load_base(str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        load_base("n" * 300, offline=True)
