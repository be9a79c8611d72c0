"""Retrieval metrics (recall at k, MRR and nDCG@10), independent of the model that reads the chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tunesmith.data.documents.document import plain
from tunesmith.metrics.ranking import ndcg
from tunesmith.retrieval.chunks import Chunk
from tunesmith.retrieval.index import Hit

CUTS = (1, 3, 5, 10)  # k of recall at k


@dataclass(frozen=True, slots=True)
class Origin:
    """The location of an answer in the documents."""

    evidence: str  # the words that contain the answer
    doc_id: str = ""  # empty if unknown
    stated: bool = True  # by the row; else its answer stands for it


class Recall(BaseModel):
    """Recall at k, mean reciprocal rank and nDCG@10 of one search method."""

    model_config = ConfigDict(frozen=True)

    search: str  # fused, words or vectors, or the arm of a tuned retriever
    n: int  # rows
    recall: dict[int, float]  # k -> share of rows with a correct chunk among the first k
    mrr: float  # mean of 1 / rank of the first correct chunk, 0 if it is not found
    ndcg: float | None = None  # nDCG@10; None in comparisons of earlier versions


def right_chunks(chunks: Sequence[Chunk], origins: Sequence[Origin]) -> list[set[str]]:
    """Return the ids of the chunks that contain the evidence of each row."""
    by_document: dict[str, list[Chunk]] = {}
    by_word: dict[str, list[Chunk]] = {}
    texts = {chunk.id: f" {plain(chunk.text)} " for chunk in chunks}
    # Without a document, only the chunks with the rarest word of the evidence are searched.
    needs_words = any(not origin.doc_id for origin in origins)
    for chunk in chunks:
        by_document.setdefault(chunk.doc_id, []).append(chunk)
        for word in set(texts[chunk.id].split()) if needs_words else ():
            by_word.setdefault(word, []).append(chunk)
    correct = []
    for origin in origins:
        evidence = plain(origin.evidence)
        rarest = min((by_word.get(word, []) for word in evidence.split()), key=len, default=[])
        candidates = by_document.get(origin.doc_id, []) if origin.doc_id else rarest
        correct.append({chunk.id for chunk in candidates if evidence and f" {evidence} " in texts[chunk.id]})
    return correct


def recall(search: str, hits: Sequence[Sequence[Hit]], right: Sequence[set[str]]) -> Recall:
    """Compute recall, MRR and nDCG@10 over the rows whose evidence is in a chunk.

    Args:
        search: name of the search method.
        hits: the retrieved chunks of each row, best first.
        right: ids of the correct chunks of each row.

    Raises:
        ValueError: no row has a correct chunk.
    """
    known = [(ids, correct) for ids, correct in zip(ids_of(hits), right, strict=True) if correct]
    ranks = [next((rank for rank, name in enumerate(ids, 1) if name in correct), 0) for ids, correct in known]
    if not ranks:
        raise ValueError("no row has a known correct chunk")
    shares = {cut: sum(0 < rank <= cut for rank in ranks) / len(ranks) for cut in CUTS}
    return Recall(
        search=search,
        n=len(ranks),
        recall=shares,
        mrr=sum(1 / rank for rank in ranks if rank) / len(ranks),
        ndcg=float(ndcg([correct for _, correct in known], [ids for ids, _ in known]).mean()),
    )


def ids_of(hits: Sequence[Sequence[Hit]]) -> list[list[str]]:
    """Return the ids of the retrieved chunks of each row, best first."""
    return [[hit.chunk.id for hit in row_hits] for row_hits in hits]


def origins_of(
    rows: Sequence[Mapping[str, object]], answers: Sequence[str], *, evidence: str, document: str
) -> list[Origin]:
    """Read evidence and document of each row.

    Args:
        rows: the fields of each row.
        answers: the evidence of rows without an evidence column.
        evidence: name of the column with the words that contain the answer; empty if there is none.
        document: name of the column with the document id; empty if there is none.
    """
    return [
        Origin(cell(row, evidence) or answer, cell(row, document), stated=bool(cell(row, evidence)))
        for row, answer in zip(rows, answers, strict=True)
    ]


def cell(row: Mapping[str, object], column: str) -> str:
    """Return the value of a column as text, or an empty string if it is missing."""
    value = row.get(column) if column else None
    return "" if value is None else str(value)
