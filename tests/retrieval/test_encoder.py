"""An embedding model pools and prompts as its files state; the index keeps such vectors apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bases import folder
from tunesmith.config import Documents
from tunesmith.errors import ModelError
from tunesmith.models.loading.load import load_base
from tunesmith.models.sentence_embeddings import Encoder, open_encoder, sentence_vectors
from tunesmith.retrieval.chunks import cut, page_of_text
from tunesmith.retrieval.index import open_index

TEXTS = ["a short text", "another text, which is quite a bit longer than the first", "x"]
LIMIT = 64


def stating(place: Path, kind: str, pooling: str, *, prompts: dict[str, str] | None = None) -> Path:
    """Copy a tiny model and add the files of sentence-transformers."""
    shutil.copytree(folder(kind), place)
    modules: list[dict[str, Any]] = [
        {"idx": row, "name": str(row), "path": path, "type": f"sentence_transformers.models.{name}"}
        for row, (path, name) in enumerate(
            (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        )
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    (place / "1_Pooling").mkdir()
    width = json.loads((place / "config.json").read_text())["hidden_size"]
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "lasttoken")}
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width} | modes))
    if prompts:
        (place / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return place


def states(name: Path, text: str) -> torch.Tensor:
    """Compute the last states of one text, [T, D], with transformers alone."""
    base = load_base(str(name))
    network = base.network if base.family == "encoder" else base.network.model
    with torch.inference_mode():
        return network(**base.tokenizer(text, return_tensors="pt")).last_hidden_state[0]


@pytest.mark.parametrize(("kind", "pooling", "place"), [("bert", "cls_token", 0), ("qwen3", "lasttoken", -1)])
def test_the_first_or_the_last_state_is_taken_if_the_model_says_so(tmp_path: Path, kind: str, pooling: str, place: int):
    pytest.importorskip("sentence_transformers")
    made = stating(tmp_path / "model", kind, pooling, prompts={"query": "find: ", "document": ""})
    encoder = open_encoder(str(made), offline=True)
    assert encoder.library is not None
    for questions, prompt in ((False, ""), (True, "find: ")):
        expected = torch.stack([states(made, prompt + text)[place] for text in TEXTS])
        vectors = encoder.vectors(TEXTS, LIMIT, questions=questions)
        assert vectors == pytest.approx(torch.nn.functional.normalize(expected, dim=1).numpy(), abs=1e-5)


def test_a_mean_without_prompts_is_ours_and_equals_that_of_the_library(tmp_path: Path):
    library = pytest.importorskip("sentence_transformers")
    made = stating(tmp_path / "model", "bert", "mean_tokens")
    encoder = open_encoder(str(made), offline=True)
    assert encoder.library is None
    plain = open_encoder(str(folder("bert")), offline=True)
    assert encoder.fingerprint == plain.fingerprint == load_base(str(made)).fingerprint
    theirs = Encoder(None, library.SentenceTransformer(str(made), device="cpu"), "")
    assert encoder.vectors(TEXTS, LIMIT) == pytest.approx(theirs.vectors(TEXTS, LIMIT), abs=1e-5)
    assert np.array_equal(plain.vectors(TEXTS, LIMIT), sentence_vectors(load_base(str(made)), TEXTS, LIMIT))


def test_an_index_does_not_mix_vectors_of_two_poolings(tmp_path: Path):
    pytest.importorskip("sentence_transformers")
    chunks = cut([page_of_text("a", "Arda\n\nHeight:\n107 m"), page_of_text("b", "Brin\n\nHeight:\n114 m")], 80)

    def embedded(model: Path) -> int:
        settings = Documents(source="here", size=80, search="vectors", encoder=str(model))
        index = open_index(tmp_path / "index", chunks, settings=settings, on_event=lambda event: None, offline=True)
        assert len(index.find(["How high is Arda?"], shown=1)[0]) == 1
        return index.embedded

    cls = stating(tmp_path / "cls", "bert", "cls_token")
    assert [embedded(folder("bert")), embedded(cls), embedded(cls)] == [2, 2, 0]
    (cls / "config_sentence_transformers.json").write_text('{"prompts": {"document": "passage: "}}')
    assert embedded(cls) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: (made / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json is missing; download"),
        (lambda made: (made / "1_Pooling" / "pytorch_model.bin").touch(), "is code or pickled weights"),
        (lambda made: (made / "modules.json").write_text("[1"), "modules.json is damaged"),
        (
            lambda made: (made / "modules.json").write_text('[{"type": "os.system", "path": ""}]'),
            "os.system is code or pickled weights",
        ),
        (
            lambda made: (made / "modules.json").write_text(
                '[{"type": "sentence_transformers.models.Router", "path": ""}]'
            ),
            "Router is code or pickled weights",
        ),
        (
            lambda made: (made / "modules.json").write_text(
                '[{"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"}]'
            ),
            "Pooling is code or pickled weights",
        ),
        (
            lambda made: (made / "1_Pooling" / "config.json").write_text('{"activation_function": "os.system"}'),
            "1_Pooling/config.json names os.system",
        ),
    ],
)
def test_what_is_damaged_or_would_run_code_is_refused(tmp_path: Path, change: Any, message: str):
    made = stating(tmp_path / "model", "bert", "cls_token")
    change(made)
    with pytest.raises(ModelError, match=message):
        open_encoder(str(made), offline=True)


def test_the_files_of_pooling_are_downloaded_and_other_folders_are_not(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    from tunesmith.models.loading.locate import locate

    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options) or "there")
    locate("somebody/model")
    names = ["config.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/model.json", "1_Pooling/x.bin"]
    kept = huggingface_hub.utils.filter_repo_objects(
        names, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == names[:3]
