"""Features for active learning: a vector of length 1 for each text. N texts, D features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tunesmith.annotation.active_learning import Vectors, tfidf_vectors
from tunesmith.data.files import move
from tunesmith.errors import DataError

MAX_TOKENS = 128  # of a text, for an encoder
TFIDF = "tfidf"


def make_vectors(
    texts: Sequence[str], *, features: str, keep: Path, offline: bool, log: Callable[[str], None]
) -> Vectors:
    """Compute the features of texts, or load them if they were computed before.

    Args:
        texts: N texts.
        features: `tfidf`, or the name of an encoder.
        keep: safetensors file that caches the vectors of an encoder.
        offline: do not download the encoder.
        log: receives one line before an encoder runs.

    Returns:
        Vectors [N, D].

    Raises:
        DataError: the model is a decoder.
    """
    if features == TFIDF:
        return tfidf_vectors(texts)
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    from tunesmith.models.loading.load import load_base
    from tunesmith.models.sentence_embeddings import sentence_vectors

    base = load_base(features, offline=offline)
    if base.family != "encoder":
        raise DataError(f"--features {features}: a decoder; name an encoder such as minilm-l6, or {TFIDF}")
    digest = hashlib.sha256("\x1e".join([base.fingerprint, *texts]).encode()).hexdigest()
    if keep.is_file():
        try:
            with safe_open(keep, framework="numpy") as file:
                if (file.metadata() or {}).get("sha256") == digest:
                    return np.asarray(file.get_tensor("vectors"), dtype=np.float32)
        except (SafetensorError, OSError):
            pass  # an incomplete file is written again
    log(f"encoding {len(texts)} texts with {features}; later starts reuse the result")
    vectors = sentence_vectors(base, texts, MAX_TOKENS)  # means of the last states
    half = keep.with_name(f".{keep.name}.half")
    save_file({"vectors": vectors}, half, metadata={"sha256": digest})
    move(half, keep)
    return vectors
