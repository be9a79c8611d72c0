"""Documents cut into chunks that say where they are from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.collect.document import Document
from tunesmith.data.collect.passages import passages, repeated, without
from tunesmith.data.collect.pool import convert_all
from tunesmith.data.collect.sources import find
from tunesmith.data.collect.store import CollectStore
from tunesmith.data.collect.text import text_document
from tunesmith.data.rows import Row, read_rows, refuse
from tunesmith.errors import DataError

# Endings of files whose rows are documents; everything else is a document itself.
ROWS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# A first line of at most this many characters, with an empty one after it, names the document.
TITLE = 120


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document before it is cut: `digest` tells whether it changed."""

    doc_id: str
    digest: str
    document: Document


@dataclass(frozen=True, slots=True)
class Pages:
    """All documents of a source, and what the user should know about how they were read."""

    pages: list[SourceDocument]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `id` names it, `doc_id` and `section` say where it stands."""

    id: str
    doc_id: str
    digest: str
    section: str
    text: str


def read_pages(source: str, *, store: CollectStore, offline: bool = False) -> Pages:
    """Every document of a folder or file, or of rows with the columns doc_id and text. Raises DataError.

    What files were turned into lies in the store, so that only new ones are converted.
    """
    if Path(source).suffix.lower() in ROWS:
        return Pages(_pages_of(read_rows(source, offline=offline)), [])
    found = find([source])
    known = {one.path: document for one in found.sources if (document := store.document(one.kept))}
    sources = {one.path: one for one in found.sources}
    failed = dict(found.unreadable)
    new = [path for path in sources if path not in known]
    for done in convert_all(new) if new else ():
        if done.document is None:
            failed[sources[done.path].doc_id] = done.error
        else:
            known[done.path] = done.document
            store.keep(sources[done.path].kept, done.document)
    if failed:  # an answer may stand in the one that is missing
        refuse([f"{doc_id}: {why}" for doc_id, why in sorted(failed.items())])
    read = (SourceDocument(sources[path].doc_id, sources[path].sha256, document) for path, document in known.items())
    pages = sorted(read, key=lambda page: page.doc_id)
    notes = [f"{page.doc_id}: {note}" for page in pages for note in page.document.notes]
    if found.skipped:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(found.skipped.items()))
        notes.insert(0, f"{source}: files that are no documents are left out: {kinds}")
    return Pages(pages, notes)


def page_of_text(doc_id: str, text: str) -> SourceDocument:
    """A document from plain text; a short first line that stands alone is its title."""
    head, _, body = text.strip().partition("\n\n")
    titled = bool(body.strip()) and "\n" not in head and len(head) <= TITLE
    document = text_document((body if titled else text).encode(errors="replace"))
    title = head.encode(errors="replace").decode() if titled else document.title
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return SourceDocument(doc_id, digest, Document(document.blocks, title, notes=document.notes))


def _pages_of(rows: Sequence[Row]) -> list[SourceDocument]:
    """The documents in rows, one each; or of passages of one document, each with an id of its own, all together."""
    rows = _joined(rows)
    pages = [_page_of(row) for row in rows]
    first: dict[str, str] = {}
    cure = "give each row an id of its own, or join the texts"
    twice = [
        f"{row.where}: the document {page.doc_id!r} stands in {before} too; {cure}"
        for row, page in zip(rows, pages, strict=True)
        if (before := first.setdefault(page.doc_id, row.where)) != row.where
    ]
    if twice:
        refuse(twice)
    return pages


def _joined(rows: Sequence[Row]) -> list[Row]:
    """The rows, those that are passages of one document as one row at the place of the first."""
    parts: dict[object, list[Row]] = {}
    for row in rows:
        name, own = (row.fields.get(key) for key in ("doc_id", "id"))
        told = isinstance(row.fields.get("text"), str) and name is not None and own is not None
        parts.setdefault(("document", str(name)) if told else row.where, []).append(row)
    found = list[Row]()
    for some in parts.values():
        if len({str(row.fields.get("id")) for row in some}) == len(some) > 1:
            text = "\n\n".join(str(row.fields["text"]) for row in some)
            some = [replace(some[0], fields={**some[0].fields, "text": text})]
        found += some
    return found


def _page_of(row: Row) -> SourceDocument:
    """The document in a row."""
    text, name = row.fields.get("text"), row.fields.get("doc_id", row.fields.get("id"))
    if not isinstance(text, str) or name is None:
        if "text" in row.fields and name is not None:
            raise DataError(f"{row.where}: the text of a document is {text!r:.60}; give it as text, or drop the row")
        raise DataError(f"{row.where}: a document has doc_id and text, found {sorted(row.fields)}; name the columns so")
    try:
        return page_of_text(str(name), text)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from None


def cut(pages: Sequence[SourceDocument], size: int) -> list[Chunk]:
    """The pages in chunks of at most `size` characters; what most of them repeat is left out."""
    everywhere = repeated([page.document.blocks for page in pages])
    return [chunk for page in pages for chunk in _cut(page, size, everywhere)]


def _cut(page: SourceDocument, size: int, everywhere: frozenset[str]) -> list[Chunk]:
    blocks = without(page.document.blocks, everywhere)
    # A telephone number may be the answer to a question, however few letters stand beside it.
    found = passages(blocks, size=size, joined=False, title=page.document.title, fewest=0)
    return [
        Chunk(f"{page.doc_id}#{number}", page.doc_id, page.digest, " > ".join(passage.section), passage.text)
        for number, passage in enumerate(found, 1)
    ]
