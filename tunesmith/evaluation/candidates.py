"""Candidates: the passages that a search finds for a query, for a model that ranks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from tunesmith.config import AnyObjective
from tunesmith.data.files import is_there, sha256_of_file
from tunesmith.errors import CheckpointError
from tunesmith.evaluation.predict import BASELINES
from tunesmith.inference.identify import ModelManifest
from tunesmith.models.kept_answers import once
from tunesmith.models.loading.checkpoint import EDITABLE, MODEL_FILE, file_digests
from tunesmith.models.loading.load import fingerprint_of
from tunesmith.models.loading.locate import locate
from tunesmith.models.sentence_embeddings import open_encoder
from tunesmith.objectives.base import Retriever
from tunesmith.retrieval.index import LIMIT, rank_by_vectors, rank_by_words, reciprocal_ranks


def candidates(passages: Sequence[str], queries: Sequence[str], retriever: Retriever) -> list[list[int]]:
    """Return indices of the passages that a search finds for each query, best first.

    Args:
        passages: the passages.
        queries: the queries.
        retriever: how they are searched, with an encoder that `locate_encoders` has downloaded; its `candidates` is not
            applied here.
    """
    rankings = []
    if retriever.search != "vectors":
        rankings.append(once(BASELINES, rank_by_words, list(passages), list(queries)))
    if retriever.search != "words":
        encoder = open_encoder(retriever.encoder, offline=True)
        vectors = encoder.vectors(passages, LIMIT)
        rankings.append(rank_by_vectors(encoder.vectors(queries, LIMIT, questions=True), vectors))
    return reciprocal_ranks(*rankings) if len(rankings) == 2 else rankings[0]


def encoder_fingerprints(objective: AnyObjective, *, where: str, offline: bool) -> dict[str, str]:
    """Return the fingerprints of the models that find candidates by vectors, by task; empty without any.

    Args:
        objective: of a run.
        where: the run, for errors.
        offline: do not access the network.

    Raises:
        CheckpointError: a model is not where the run has it.
        ModelError: a model cannot be read.
    """
    found = {}
    for task, part in objective.task_objectives.items():
        if (retriever := part.retriever) is None or retriever.search == "words":
            continue
        name = retriever.encoder
        if Path(name).is_absolute() and not is_there(name):
            raise CheckpointError(f"{where}: finds candidates by {name}, which is not there; restore it, or tune again")
        if name.lower().endswith(".gguf"):
            found[task] = sha256_of_file(Path(name).expanduser())[:16]
            continue
        folder = locate(name, offline=offline)
        if (folder / MODEL_FILE).exists():  # a run: its adapter, or its weights with pooling and prompts
            files = {file: digest for file, digest in file_digests(folder).items() if file not in EDITABLE}
            found[task] = sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
        else:
            found[task] = fingerprint_of(folder, where=name)
    return found


def check_encoders(manifest: ModelManifest, *, where: str, offline: bool) -> None:
    """Raise CheckpointError if a model that finds candidates is missing or another one than the run was tuned with.

    Args:
        manifest: of the run.
        where: the run, for errors.
        offline: do not access the network.
    """
    now = encoder_fingerprints(manifest.objective, where=where, offline=offline) if manifest.encoders else {}
    for task, fingerprint in manifest.encoders.items():
        retriever = manifest.objective.task_objectives[task].retriever
        if retriever is not None and now.get(task, fingerprint) != fingerprint:
            problem = f"its candidates were found by another {retriever.encoder}, which has changed since"
            raise CheckpointError(f"{where}: {problem}; tune again")
