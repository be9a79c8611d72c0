"""Loading of documents for retrieval, and splitting into chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.documents.cache import CollectStore
from tunesmith.data.documents.convert import EMPTY
from tunesmith.data.documents.document import Document
from tunesmith.data.documents.find_files import find
from tunesmith.data.documents.formats.plain_text import text_document
from tunesmith.data.documents.passages import passages, repeated, without
from tunesmith.data.documents.worker_pool import convert_all
from tunesmith.data.readers.read import read_rows
from tunesmith.data.readers.row import Row, refuse
from tunesmith.errors import DataError

# Extensions of files whose rows are documents; any other file is one document.
ROWS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
# A first line of at most this many characters, followed by an empty line, is the title of the document.
TITLE = 120


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A document before it is split."""

    doc_id: str
    digest: str  # SHA-256 of the file or text, to detect changes
    document: Document


@dataclass(frozen=True, slots=True)
class Pages:
    """All documents of a source."""

    pages: list[SourceDocument]
    notes: list[str]  # warnings about the conversion, for the user


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document, the unit of retrieval."""

    id: str  # `doc_id#number`, from 1
    doc_id: str
    digest: str  # of the document
    section: str  # headings above the chunk, joined by " > "
    text: str


def read_pages(source: str, *, store: CollectStore, offline: bool = False) -> Pages:
    """Load all documents of a source.

    Args:
        source: a folder, a document, or a file of rows with the columns doc_id and text.
        store: cache of converted documents; only new files are converted.
        offline: do not access the network for rows of a hub data set.

    Raises:
        DataError: a document cannot be read, or two rows have the same doc_id.
    """
    if Path(source).suffix.lower() in ROWS:
        return Pages(_pages_of(read_rows(source, offline=offline)), [])
    files = find([source])
    sources = {item.path: item for item in files.sources}
    documents = {path: document for path, item in sources.items() if (document := store.document(item.kept))}
    failed = dict(files.unreadable)
    new = [path for path in sources if path not in documents]
    for result in convert_all(new) if new else ():
        if result.document is None:
            failed[sources[result.path].doc_id] = result.error
        else:
            documents[result.path] = result.document
            store.keep(sources[result.path].kept, result.document)
    errors = [f"{doc_id}: {error}" for doc_id, error in sorted(failed.items())]
    if set(failed.values()) - {EMPTY}:  # without all documents, answers may be missing
        refuse(errors)
    loaded = (SourceDocument(sources[path].doc_id, sources[path].sha256, doc) for path, doc in documents.items())
    pages = sorted(loaded, key=lambda page: page.doc_id)
    notes = [f"skipped {error}" for error in errors]
    notes += [f"{page.doc_id}: {note}" for page in pages for note in page.document.notes]
    if files.skipped:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(files.skipped.items()))
        notes.insert(0, f"{source}: skipped files of unsupported types: {kinds}")
    return Pages(pages, notes)


def page_of_text(doc_id: str, text: str) -> SourceDocument:
    """Convert plain text to a document; a short first line followed by an empty one is its title."""
    head, _, body = text.strip().partition("\n\n")
    titled = bool(body.strip()) and "\n" not in head and len(head) <= TITLE
    document = text_document((body if titled else text).encode(errors="replace"))
    title = head.encode(errors="replace").decode() if titled else document.title
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return SourceDocument(doc_id, digest, Document(document.blocks, title, notes=document.notes))


def _pages_of(rows: Sequence[Row]) -> list[SourceDocument]:
    """Convert rows to documents; passages of one document (same doc_id, different id) become one document."""
    rows = _join_passages(rows)
    pages = []
    for row in rows:
        text = row.fields.get("text")
        name = row.fields.get("doc_id", row.fields.get("id"))
        if "text" in row.fields and name is not None and not isinstance(text, str):
            raise DataError(f"{row.where}: expected a string in column text, got {text!r:.60}; fix or drop the row")
        if not isinstance(text, str) or name is None:
            columns = sorted(row.fields)
            raise DataError(f"{row.where}: expected the columns doc_id and text, found {columns}; rename them")
        try:
            pages.append(page_of_text(str(name), text))
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
    first: dict[str, str] = {}
    fix = "give each row its own id, or join the texts"
    duplicates = [
        f"{row.where}: document {page.doc_id!r} also appears in {earlier}; {fix}"
        for row, page in zip(rows, pages, strict=True)
        if (earlier := first.setdefault(page.doc_id, row.where)) != row.where
    ]
    if duplicates:
        refuse(duplicates)
    return pages


def _join_passages(rows: Sequence[Row]) -> list[Row]:
    """Replace the passages of one document by one row at the position of the first."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        doc_id = row.fields.get("doc_id")
        is_passage = isinstance(row.fields.get("text"), str) and None not in (doc_id, row.fields.get("id"))
        groups.setdefault(("document", str(doc_id)) if is_passage else row.where, []).append(row)
    joined = list[Row]()
    for group in groups.values():
        if len({str(row.fields.get("id")) for row in group}) == len(group) > 1:
            text = "\n\n".join(str(row.fields["text"]) for row in group)
            group = [replace(group[0], fields={**group[0].fields, "text": text})]
        joined += group
    return joined


def cut(pages: Sequence[SourceDocument], size: int) -> list[Chunk]:
    """Split documents into chunks of at most `size` characters, without the text that most of them repeat."""
    boilerplate = repeated([page.document.blocks for page in pages])
    chunks = list[Chunk]()
    for page in pages:
        blocks = without(page.document.blocks, boilerplate)
        # Short passages are kept: a telephone number may be the answer to a question.
        parts = passages(blocks, size=size, joined=False, title=page.document.title, fewest=0)
        chunks += [
            Chunk(f"{page.doc_id}#{number}", page.doc_id, page.digest, " > ".join(passage.section), passage.text)
            for number, passage in enumerate(parts, 1)
        ]
    return chunks
