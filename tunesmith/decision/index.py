"""Chunks that can be found: BM25 for the words, vectors for the meaning, and both fused by their ranks.

C chunks, Q questions, D hidden. The store is a folder of JSON lines and safetensors:
`docs/decisions/0009-index-of-plain-files.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.files import write_whole
from tunesmith.data.words import searched
from tunesmith.decision.chunks import Chunk
from tunesmith.errors import DataError
from tunesmith.model.load import Base, load_base
from tunesmith.model.sentence import sentence_vectors
from tunesmith.recipe import Documents

Floats = NDArray[np.float32]

# Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): 1 / (60 + rank), over so many of each list.
RANK, DEEP = 60, 100
# Chosen on 500 training questions of bench/compare/factbook, which no test there sees: in a chunk of two sentences a
# word that stands twice says little more than once, and a question in words of its own is found by its meaning.
K1, B = 0.5, 0.3
WEIGHTS = {"words": 0.5, "vectors": 1.0}
# Tokens of a chunk or a question that its vector is made of; chunks written to the disk at a time.
LIMIT, AT_ONCE = 256, 1000
# Questions whose nearness to all chunks is held in memory at a time.
SEARCHED = 256
CHUNKS, VECTORS = "chunks.jsonl", "vectors.safetensors"
INSTALL = "pip install 'tunesmith[rag]'"


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found, the better one first; scores compare within one search only."""

    chunk: Chunk
    score: float


@dataclass(slots=True)
class Index:
    """Chunks with what finds them; `search` is fused, words or vectors."""

    chunks: list[Chunk]
    search: str
    encoder: Base | None = None
    vectors: Floats | None = None  # [C, D], each of length 1
    embedded: int = 0  # chunks whose vector was made now, not read from the store
    words: Any = None  # BM25 over the chunks

    def find(self, questions: Sequence[str], *, shown: int, search: str = "") -> list[list[Hit]]:
        """The best chunks for each question."""
        how = search or self.search
        ways = {"words": self._by_words, "vectors": self._by_vectors}
        lists = {name: ranked(questions) for name, ranked in ways.items() if how in (name, "fused")}
        found = []
        for row in range(len(questions)):
            best = fused([(WEIGHTS[name], ranks[row]) for name, ranks in lists.items()])[:shown]
            found.append([Hit(self.chunks[place], score) for place, score in best])
        return found

    def _by_words(self, questions: Sequence[str]) -> list[list[int]]:
        """[Q] lists of chunk numbers by BM25; chunks without any word of the question are left out."""
        asked = [_told(question) for question in questions]
        places, scores = self.words.retrieve(asked, k=min(DEEP, len(self.chunks)), show_progress=False)
        return [
            [int(place) for place, score in zip(row, line, strict=True) if score > 0]
            for row, line in zip(places, scores, strict=True)
        ]

    def _by_vectors(self, questions: Sequence[str]) -> list[list[int]]:
        """[Q] lists of chunk numbers by cosine."""
        assert self.encoder is not None
        assert self.vectors is not None
        asked, found = sentence_vectors(self.encoder, questions, LIMIT), list[list[int]]()
        deep = min(DEEP, len(self.chunks))
        for first in range(0, len(questions), SEARCHED):
            near = asked[first : first + SEARCHED] @ self.vectors.T
            best = np.argpartition(-near, deep - 1, axis=1)[:, :deep]
            order = np.take_along_axis(near, best, axis=1).argsort(axis=1)[:, ::-1]
            found += [[int(place) for place in row] for row in np.take_along_axis(best, order, axis=1)]
        return found


def fused(lists: Sequence[tuple[float, Sequence[int]]]) -> list[tuple[int, float]]:
    """Numbers of several weighted ranked lists, best first: the sum of weight / (60 + rank), ranks from 1."""
    scores: dict[int, float] = {}
    for weight, ranks in lists:
        for rank, place in enumerate(ranks, 1):
            scores[place] = scores.get(place, 0.0) + weight / (RANK + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def open_index(
    folder: Path,
    chunks: Sequence[Chunk],
    *,
    settings: Documents,
    listen: Callable[[dict[str, Any]], None],
    offline: bool = False,
) -> Index:
    """The index of these chunks, kept in the folder; only texts that it did not hold yet get a vector.

    Raises DataError for a folder that cannot be read and where a library is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = Index(list(chunks), settings.search)
    if not chunks:
        raise DataError(f"{folder}: no text in the documents; give others")
    if settings.search != "vectors":
        index.words = _bm25([chunk.text for chunk in chunks])
    if settings.search != "words":
        index.encoder = load_base(settings.encoder, offline=offline)
        store = _Store(folder, index.encoder.fingerprint)
        index.vectors, index.embedded = store.vectors(index.encoder, [chunk.text for chunk in chunks], listen)
    lines = (json.dumps(asdict(chunk), ensure_ascii=False) for chunk in chunks)
    write_whole(folder / CHUNKS, "".join(f"{line}\n" for line in lines))
    return index


@dataclass(frozen=True, slots=True)
class _Store:
    """Vectors by the digest of their text, for one encoder."""

    folder: Path
    fingerprint: str

    def vectors(self, base: Base, texts: Sequence[str], listen: Callable[[dict[str, Any]], None]) -> tuple[Floats, int]:
        """[C, D] for these texts, and how many were made now; texts that are gone are dropped from the store."""
        digests = [hashlib.sha256(text.encode(errors="replace")).digest()[:16] for text in texts]
        known = self._read()
        new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
        for start in range(0, len(new), AT_ONCE):
            some = list(new)[start : start + AT_ONCE]
            made = sentence_vectors(base, [new[digest] for digest in some], LIMIT)
            known |= zip(some, made, strict=True)
            self._write(known)
            listen(
                {"event": "stage", "text": f"{min(start + AT_ONCE, len(new))} of {len(new)} new chunks have vectors"}
            )
        wanted = set(digests)
        if len(known) > len(wanted):
            self._write({digest: vector for digest, vector in known.items() if digest in wanted})
        return np.stack([known[digest] for digest in digests]), len(new)

    def _read(self) -> dict[bytes, Floats]:
        from safetensors import SafetensorError, safe_open

        file = self.folder / VECTORS
        if not file.exists():
            return {}
        try:
            with safe_open(file, framework="np") as opened:
                if (opened.metadata() or {}).get("encoder") != self.fingerprint:
                    return {}  # another encoder's vectors compare with nothing here
                digests, vectors = opened.get_tensor("digests"), opened.get_tensor("vectors")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file}: not a whole safetensors file ({error}); delete it, it is made again") from error
        return {digest.tobytes(): vector for digest, vector in zip(digests, vectors, strict=True)}

    def _write(self, known: dict[bytes, Floats]) -> None:
        from safetensors.numpy import save_file

        digests = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
        half = self.folder / f".{VECTORS}.half"
        save_file(
            {"digests": np.ascontiguousarray(digests), "vectors": np.stack(list(known.values()))},
            half,
            metadata={"encoder": self.fingerprint},
        )
        half.replace(self.folder / VECTORS)


def _told(text: str) -> list[str]:
    """The words of a text that tell it from others."""
    common = _bm25s().stopwords.STOPWORDS_EN
    return [word for word in searched(text) if word not in common]


def _bm25(texts: Sequence[str]) -> Any:
    """What finds these texts by their words."""
    made = _bm25s().BM25(k1=K1, b=B)
    words = [_told(text) for text in texts]
    if not any(words):
        raise DataError("documents: no words to search by; take documents.search: vectors")
    made.index(words, show_progress=False)
    return made


def _bm25s() -> Any:
    """The library of BM25. Raises DataError where it is missing."""
    try:
        import bm25s
    except ImportError:
        raise DataError(f"documents.search: BM25 needs a library that is not here; {INSTALL}") from None
    return bm25s
