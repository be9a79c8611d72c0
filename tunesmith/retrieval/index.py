"""Retrieval index: BM25 for words, sentence embeddings for meaning, and reciprocal rank fusion of both.

Shapes: C chunks, Q questions, D embedding width. On disk the index is a folder of JSON lines and safetensors, see
`docs/decisions/0009-index-of-plain-files.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config import Documents
from tunesmith.data.files import move, quoted, write_whole
from tunesmith.data.text.words import searched
from tunesmith.errors import DataError
from tunesmith.events import EventHandler, StageStarted
from tunesmith.models.sentence_embeddings import Encoder, open_encoder
from tunesmith.progress import track
from tunesmith.retrieval.chunks import Chunk

FloatArray = NDArray[np.float32]
Ranker = Callable[[Sequence[tuple[str, str]]], Sequence[float]]  # scores how well passages answer questions

# Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): 1 / (60 + rank), over the first 100 of each list.
RANK = 60
DEEP = 100
# Chosen on 500 training questions of bench/compare/factbook, which are in none of its tests: in a chunk of two
# sentences a repeated word adds little, and a paraphrased question is found by its meaning.
K1 = 0.5
B = 0.3
WEIGHTS = {"words": 0.5, "vectors": 1.0}
LIMIT = 256  # tokens of a chunk or question that are embedded
CHUNKS_PER_WRITE = 1000  # chunks embedded between two writes to disk
CANDIDATES = 50  # chunks of a question that a ranker scores
SEARCHED = 256  # questions per similarity matrix
CHUNKS = "chunks.jsonl"
VECTORS = "vectors.safetensors"
INSTALL = f"pip install {quoted('tunesmith[rag]')}"


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved chunk."""

    chunk: Chunk
    score: float  # higher is better; comparable within one search only


@dataclass(slots=True)
class Index:
    """A searchable list of chunks, see `open_index`."""

    chunks: list[Chunk]
    search: str  # default search: fused, words or vectors
    encoder: Encoder | None = None
    vectors: FloatArray | None = None  # [C, D], each of length 1
    embedded: int = 0  # chunks that were embedded now, not read from disk
    words: Any = None  # BM25 over the chunks
    ranker: Ranker | None = None  # ranks the first `CANDIDATES` chunks again

    def find(self, questions: Sequence[str], *, shown: int, search: str = "") -> list[list[Hit]]:
        """Return the best `shown` chunks for each question, best first; `search` overrides the default."""
        if not questions:
            return []
        if self.ranker is not None and not search:
            return self._ranked_again(questions, shown)
        method = search or self.search
        methods = {"words": self._by_words, "vectors": self._by_vectors}
        rankings = {name: rank(questions) for name, rank in methods.items() if method in (name, "fused")}
        hits = []
        for row in range(len(questions)):
            best = fused([(WEIGHTS[name], ranking[row]) for name, ranking in rankings.items()])[:shown]
            hits.append([Hit(self.chunks[index], score) for index, score in best])
        return hits

    def _ranked_again(self, questions: Sequence[str], shown: int) -> list[list[Hit]]:
        """Return the chunks of the search with the highest scores of the ranker."""
        assert self.ranker is not None
        found = self.find(questions, shown=max(shown, CANDIDATES), search=self.search)
        pairs = [(question, hit.chunk.text) for question, hits in zip(questions, found, strict=True) for hit in hits]
        scores = iter(self.ranker(pairs))
        scored = [[Hit(hit.chunk, next(scores)) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: -hit.score)[:shown] for hits in scored]

    def _by_words(self, questions: Sequence[str]) -> list[list[int]]:
        """Rank chunk indices by BM25, [Q] lists; chunks without any word of the question are dropped."""
        return _retrieved(self.words, questions, len(self.chunks))

    def _by_vectors(self, questions: Sequence[str]) -> list[list[int]]:
        """Rank chunk indices by cosine, [Q] lists."""
        assert self.encoder is not None
        assert self.vectors is not None
        return rank_by_vectors(self.encoder.vectors(questions, LIMIT, questions=True), self.vectors)


def rank_by_vectors(queries: FloatArray, vectors: FloatArray) -> list[list[int]]:
    """Rank the first `DEEP` of C vectors [C, D] for each query [Q, D] by the cosine, [Q] lists of indices."""
    ranked = list[list[int]]()
    deep = min(DEEP, len(vectors))
    for start in range(0, len(queries), SEARCHED):
        cosines = queries[start : start + SEARCHED] @ vectors.T
        best = np.argpartition(-cosines, deep - 1, axis=1)[:, :deep]
        order = np.take_along_axis(cosines, best, axis=1).argsort(axis=1)[:, ::-1]
        ranked += [[int(index) for index in row] for row in np.take_along_axis(best, order, axis=1)]
    return ranked


def rank_by_words(texts: Sequence[str], questions: Sequence[str]) -> list[list[int]]:
    """Rank texts by BM25 for each question, [Q] lists of indices; texts without any of its words are dropped."""
    words = [_content_words(text) for text in texts]
    return _retrieved(_word_index(words), questions, len(texts)) if any(words) else [[] for _ in questions]


def reciprocal_ranks(words: Sequence[Sequence[int]], vectors: Sequence[Sequence[int]]) -> list[list[int]]:
    """Fuse the rankings of each question by words and by vectors, as an index does."""
    return [
        [index for index, _ in fused([(WEIGHTS["words"], by_word), (WEIGHTS["vectors"], by_vector)])][:DEEP]
        for by_word, by_vector in zip(words, vectors, strict=True)
    ]


def has_words() -> bool:
    """Return whether the library of BM25 is installed."""
    return find_spec("bm25s") is not None


def _word_index(words: Sequence[Sequence[str]]) -> Any:
    index = _bm25s().BM25(k1=K1, b=B)
    index.index(words, show_progress=False)
    return index


def _retrieved(index: Any, questions: Sequence[str], count: int) -> list[list[int]]:
    queries = [_content_words(question) for question in questions]
    indices, scores = index.retrieve(queries, k=min(DEEP, count), show_progress=False)
    return [
        [int(index) for index, score in zip(row, row_scores, strict=True) if score > 0]
        for row, row_scores in zip(indices, scores, strict=True)
    ]


def fused(lists: Sequence[tuple[float, Sequence[int]]]) -> list[tuple[int, float]]:
    """Fuse weighted ranked lists by the sum of weight / (60 + rank), ranks from 1, to pairs of index and score.

    The best come first; ties are in the order of the index.
    """
    scores: dict[int, float] = {}
    for weight, ranking in lists:
        for rank, index in enumerate(ranking, 1):
            scores[index] = scores.get(index, 0.0) + weight / (RANK + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def open_index(
    folder: Path,
    chunks: Sequence[Chunk],
    *,
    settings: Documents,
    on_event: EventHandler,
    offline: bool = False,
) -> Index:
    """Build or update the index in a folder; only new texts are embedded.

    Args:
        folder: directory of the index, created if it does not exist.
        chunks: all chunks to be searched, [C].
        settings: search method and embedding model.
        on_event: receives progress events.
        offline: do not download the embedding model.

    Raises:
        DataError: there are no chunks, the folder cannot be read, or a library is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = Index(list(chunks), settings.search)
    if not chunks:
        raise DataError(f"{folder}: the documents contain no text; give other documents")
    if settings.search != "vectors":
        words = [_content_words(chunk.text) for chunk in chunks]
        if not any(words):
            raise DataError("documents: no words to search by; use documents.search: vectors")
        index.words = _word_index(words)
    if settings.search != "words":
        index.encoder = open_encoder(settings.encoder, offline=offline)
        store = _Store(folder, index.encoder.fingerprint)
        index.vectors, index.embedded = store.vectors(index.encoder, [chunk.text for chunk in chunks], on_event)
    lines = (json.dumps(asdict(chunk), ensure_ascii=False) for chunk in chunks)
    write_whole(folder / CHUNKS, "".join(f"{line}\n" for line in lines))
    return index


@dataclass(frozen=True, slots=True)
class _Store:
    """Cached embeddings by the digest of their text, for one encoder."""

    folder: Path
    fingerprint: str

    def vectors(self, encoder: Encoder, texts: Sequence[str], on_event: EventHandler) -> tuple[FloatArray, int]:
        """Return embeddings [C, D] and the number of new ones; embeddings of removed texts are deleted."""
        digests = [hashlib.sha256(text.encode(errors="replace")).digest()[:16] for text in texts]
        cached = self._read()
        new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in cached}
        batches = [list(new)[start : start + CHUNKS_PER_WRITE] for start in range(0, len(new), CHUNKS_PER_WRITE)]
        for batch in track(batches, "embedding", unit="chunks", size=len):
            cached |= zip(batch, encoder.vectors([new[digest] for digest in batch], LIMIT), strict=True)
            self._write(cached)
        if new:
            on_event(StageStarted(f"embedded {len(new)} new chunks"))
        current = set(digests)
        if len(cached) > len(current):
            self._write({digest: vector for digest, vector in cached.items() if digest in current})
        return np.stack([cached[digest] for digest in digests]), len(new)

    def _read(self) -> dict[bytes, FloatArray]:
        from safetensors import SafetensorError, safe_open

        file = self.folder / VECTORS
        if not file.exists():
            return {}
        try:
            with safe_open(file, framework="np") as opened:
                if (opened.metadata() or {}).get("encoder") != self.fingerprint:
                    return {}  # vectors of another encoder are not comparable
                digests = opened.get_tensor("digests")
                vectors = opened.get_tensor("vectors")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file}: damaged safetensors file ({error}); delete it, it will be recreated") from error
        return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}

    def _write(self, cached: dict[bytes, FloatArray]) -> None:
        from safetensors.numpy import save_file

        digests = np.frombuffer(b"".join(cached), dtype=np.uint8).reshape(len(cached), -1)
        partial = self.folder / f".{VECTORS}.half"
        partial.touch()
        mode = partial.stat().st_mode
        save_file(
            {"digests": np.ascontiguousarray(digests), "vectors": np.stack(list(cached.values()))},
            partial,
            metadata={"encoder": self.fingerprint},
        )
        partial.chmod(mode)  # safetensors creates files that only their owner may read
        move(partial, self.folder / VECTORS)


def _content_words(text: str) -> list[str]:
    """Return the words of a text without English stop words."""
    stop_words = _bm25s().stopwords.STOPWORDS_EN
    return [word for word in searched(text) if word not in stop_words]


def _bm25s() -> Any:
    """Import bm25s; raise DataError if it is not installed."""
    try:
        import bm25s
    except ImportError:
        raise DataError(f"documents.search: BM25 needs the library bm25s; run {INSTALL}") from None
    return bm25s
