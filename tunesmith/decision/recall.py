"""Does retrieval find the chunk that answers? Measured apart from what a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tunesmith.data.collect.document import plain
from tunesmith.decision.chunks import Chunk
from tunesmith.decision.index import Hit

CUTS = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row's answer stands: the words that say it, and the document where that is known."""

    evidence: str
    doc_id: str = ""


class Recall(BaseModel):
    """How often a right chunk is among the first k, and the mean of 1 / its rank (0 where it is not found)."""

    model_config = ConfigDict(frozen=True)

    search: str
    n: int
    recall: dict[int, float]
    mrr: float


def right_chunks(chunks: Sequence[Chunk], origins: Sequence[Origin]) -> list[set[str]]:
    """For each row the ids of the chunks that hold its evidence; empty where no chunk does."""
    by_document: dict[str, list[Chunk]] = {}
    texts = {chunk.id: f" {plain(chunk.text)} " for chunk in chunks}
    for chunk in chunks:
        by_document.setdefault(chunk.doc_id, []).append(chunk)
    holding = _by_word(chunks, texts) if any(not origin.doc_id for origin in origins) else {}
    found = []
    for origin in origins:
        wanted = plain(origin.evidence)
        rarest = min((holding.get(word, []) for word in wanted.split()), key=len, default=[])
        among = by_document.get(origin.doc_id, []) if origin.doc_id else rarest
        found.append({chunk.id for chunk in among if wanted and f" {wanted} " in texts[chunk.id]})
    return found


def _by_word(chunks: Sequence[Chunk], texts: Mapping[str, str]) -> dict[str, list[Chunk]]:
    """Word -> the chunks that hold it: not each row has to be sought in each chunk."""
    holding: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        for word in set(texts[chunk.id].split()):
            holding.setdefault(word, []).append(chunk)
    return holding


def recall(search: str, hits: Sequence[Sequence[Hit]], right: Sequence[set[str]]) -> Recall:
    """Recall and MRR over the rows whose answer stands in some chunk. Raises ValueError without any."""
    ranks = [_rank(found, wanted) for found, wanted in zip(hits, right, strict=True) if wanted]
    if not ranks:
        raise ValueError("no row whose right chunk is known")
    shares = {cut: sum(0 < rank <= cut for rank in ranks) / len(ranks) for cut in CUTS}
    return Recall(search=search, n=len(ranks), recall=shares, mrr=sum(1 / rank for rank in ranks if rank) / len(ranks))


def _rank(hits: Sequence[Hit], wanted: set[str]) -> int:
    """The place of the first right chunk, from 1; 0 where there is none."""
    return next((rank for rank, hit in enumerate(hits, 1) if hit.chunk.id in wanted), 0)


def origins_of(rows: Sequence[Mapping[str, object]], answers: Sequence[str], columns: tuple[str, str]) -> list[Origin]:
    """Where each row says its answer stands; `columns` are those of the evidence and of the document, or empty."""
    evidence, document = columns
    return [
        Origin(cell(row, evidence) or answer, cell(row, document)) for row, answer in zip(rows, answers, strict=True)
    ]


def cell(row: Mapping[str, object], column: str) -> str:
    """What stands in a column as text, empty where nothing does; 0 is something."""
    value = row.get(column) if column else None
    return "" if value is None else str(value)
