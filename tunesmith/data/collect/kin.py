"""Which rows say the same: what a model wrote from a passage, and the row of the document that holds it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.data.collect.rows import Made
from tunesmith.data.collect.written import WriterQuestion
from tunesmith.data.words import words_of

# So many words in a row are seldom in two passages of a document.
RUN = 5


def named(rows: Sequence[Made]) -> list[Made]:
    """The rows of the documents, each with a `source_id` of its own."""
    return [row | {"source_id": source_id(_text(row))} for row in rows]


def linked(asked: Sequence[WriterQuestion], rows: Sequence[Made]) -> list[WriterQuestion]:
    """The requests, each with the source of the row that holds most of its passage; its own where none holds any.

    So a split by `source_id` keeps a passage and what was written from it on one side.
    """
    known: dict[tuple[str, str], str] = {}
    for row in rows:
        for run in _runs(_text(row)):
            known.setdefault((str(row["doc_id"]), run), str(row["source_id"]))
    found = []
    for request in asked:
        keys = ((request.part.doc_id, run) for run in _runs(request.passage))
        best = Counter(known[key] for key in keys if key in known).most_common(1)
        found.append(replace(request, source=best[0][0] if best else source_id(request.passage)))
    return found


def source_id(text: str) -> str:
    """A short name of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


def _text(row: Made) -> str:
    return "\n".join(str(row[name]) for name in ("question", "answer", "text") if name in row)


def _runs(text: str) -> Iterator[str]:
    """Every run of words, each as one text."""
    words = words_of(text)
    return (" ".join(words[at : at + RUN]) for at in range(len(words) - RUN + 1))
