"""What the order of rows is computed from: a vector of length 1 for each text. N texts, D features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tunesmith.annotation.active_learning import Vectors, tfidf_vectors
from tunesmith.errors import DataError

# Tokens of a text that an encoder reads.
MOST_TOKENS = 128
TFIDF = "tfidf"


def make_vectors(
    texts: Sequence[str], *, features: str, keep: Path, offline: bool, log: Callable[[str], None]
) -> Vectors:
    """[N, D] for "tfidf" or for the name of an encoder; an encoder's are kept in the file `keep`."""
    if features == TFIDF:
        return tfidf_vectors(texts)
    digest = hashlib.sha256("\x1e".join([features, *texts]).encode()).hexdigest()
    found = _kept(keep, digest)
    if found is None:
        log(f"{features} reads {len(texts)} texts once; this takes a while")
        found = encoder_vectors(texts, model=features, offline=offline)
        _keep(found, keep, digest)
    return found


def encoder_vectors(texts: Sequence[str], *, model: str, offline: bool) -> Vectors:
    """[N, D]: the mean of an encoder's last states over the first 128 tokens of each text."""
    from tunesmith.models.loading.load import load_base
    from tunesmith.models.sentence_embeddings import sentence_vectors

    base = load_base(model, offline=offline)
    if base.family != "encoder":
        raise DataError(f"--features {model}: a decoder; name an encoder such as minilm-l6, or {TFIDF}")
    return sentence_vectors(base, texts, MOST_TOKENS)


def _kept(path: Path, digest: str) -> Vectors | None:
    """The vectors in the file, if they were made of the same texts by the same model."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            same = (file.metadata() or {}).get("sha256") == digest
            return np.asarray(file.get_tensor("vectors"), dtype=np.float32) if same else None
    except (SafetensorError, OSError):
        return None  # a half-written file is made again


def _keep(vectors: Vectors, path: Path, digest: str) -> None:
    from safetensors.numpy import save_file

    half = path.with_name(f".{path.name}.half")
    save_file({"vectors": vectors}, half, metadata={"sha256": digest})
    half.replace(path)
