"""Groups of rows: a synthetic row shares its `source_id` with the document row that contains its passage."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.data.collect.rows import Made
from tunesmith.data.collect.written import WriterQuestion
from tunesmith.data.words import words_of

# Consecutive words. A run of five is seldom in two passages of one document.
RUN = 5


def named(rows: Sequence[Made]) -> list[Made]:
    """Add a `source_id` to each document row, a digest of its text."""
    return [row | {"source_id": source_id(_text(row))} for row in rows]


def linked(asked: Sequence[WriterQuestion], rows: Sequence[Made]) -> list[WriterQuestion]:
    """Set the source of each request to the row that contains most of its passage.

    A split by `source_id` then keeps a passage and the rows generated from it in one split.

    Args:
        asked: the requests to the model.
        rows: the document rows, with `source_id` (see `named`).

    Returns:
        The requests with their source; a digest of the passage if no row shares a run of words with it.
    """
    source_of: dict[tuple[str, str], str] = {}
    for row in rows:
        for run in _runs(_text(row)):
            source_of.setdefault((str(row["doc_id"]), run), str(row["source_id"]))
    requests = []
    for request in asked:
        keys = ((request.part.doc_id, run) for run in _runs(request.passage))
        best = Counter(source_of[key] for key in keys if key in source_of).most_common(1)
        requests.append(replace(request, source=best[0][0] if best else source_id(request.passage)))
    return requests


def source_id(text: str) -> str:
    """Return a digest of a text: 12 hex digits."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _text(row: Made) -> str:
    return "\n".join(str(row[name]) for name in ("question", "answer", "text") if name in row)


def _runs(text: str) -> Iterator[str]:
    """Return every run of `RUN` consecutive words, separated by spaces."""
    words = words_of(text)
    return (" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1))
