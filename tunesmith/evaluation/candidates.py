"""Candidates: the passages that a search finds for a query, for a model that ranks them."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.evaluation.predict import BASELINES
from tunesmith.models.kept_answers import once
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
