"""What the order of rows is computed from: a vector of length 1 for each text. N texts, D features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import DataError

Vectors = NDArray[np.float32]

# Width of the TF-IDF vectors, words that are kept, and tokens of a text that an encoder reads.
WIDTH, MOST_WORDS, MOST_TOKENS = 128, 50_000, 128
BATCH = 32
TFIDF = "tfidf"


def make_vectors(
    texts: Sequence[str], *, features: str, keep: Path, offline: bool, told: Callable[[str], None]
) -> Vectors:
    """[N, D] for "tfidf" or for the name of an encoder; an encoder's are kept in the file `keep`."""
    if features == TFIDF:
        return tfidf_vectors(texts)
    digest = hashlib.sha256("\x1e".join([features, *texts]).encode()).hexdigest()
    found = _kept(keep, digest)
    if found is None:
        told(f"{features} reads {len(texts)} texts once; this takes a while")
        found = encoder_vectors(texts, model=features, offline=offline)
        _keep(found, keep, digest)
    return found


def tfidf_vectors(texts: Sequence[str]) -> Vectors:
    """[N, D]: words and pairs of words, weighed by TF-IDF and brought to at most 128 numbers by SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=MOST_WORDS
    )
    try:
        counts = words.fit_transform(texts)
    except ValueError:  # no text holds a word
        return np.ones((len(texts), 1), dtype=np.float32)
    width = min(WIDTH, counts.shape[1] - 1, len(texts) - 1)
    if width < 1:
        return np.ones((len(texts), 1), dtype=np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):  # texts that are all alike have no variance to explain
        return _unit(TruncatedSVD(width, random_state=0).fit_transform(counts))


def encoder_vectors(texts: Sequence[str], *, model: str, offline: bool) -> Vectors:
    """[N, D]: the mean of an encoder's last states over the first 128 tokens of each text."""
    import torch

    from tunesmith.data.template import Encoded, Template, Tokens
    from tunesmith.model.batch import collate
    from tunesmith.model.load import load_base
    from tunesmith.model.policy import Policy

    base = load_base(model, offline=offline)
    if base.family != "encoder":
        raise DataError(f"--features {model}: a decoder; name an encoder such as minilm-l6, or {TFIDF}")
    policy = Policy.over(base.network, family=base.family, reference=nullcontext)
    policy.train(False)
    template = Template(base.tokenizer, chat=False)
    read = [template.document(text, limit=MOST_TOKENS).ids for text in texts]
    # Nothing is learned from these: a row's last learned id would be left out of its own vector.
    rows = [Encoded((Tokens(ids, [False] * len(ids)),), "") for ids in read]
    by_length = sorted(range(len(rows)), key=lambda row: rows[row].length)
    found = np.zeros((len(rows), policy.hidden), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = by_length[start : start + BATCH]
            found[batch] = policy.pooled(collate([rows[row] for row in batch], share=False)).numpy()
    return _unit(found)


def _unit(vectors: NDArray[np.floating]) -> Vectors:
    """The rows at length 1; a row of zeros stays what it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


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
