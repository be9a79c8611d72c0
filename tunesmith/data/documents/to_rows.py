"""Conversion of documents to rows, one function per row format; every row contains its origin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.documents.document import Block, Document
from tunesmith.data.documents.faq import pairs
from tunesmith.data.documents.passages import passages

Made = dict[str, object]  # column -> value
# Characters in a row: fits into `data.max_tokens` of 512 in European languages.
SIZE = 1_800
# Columns with the origin of a row. An underscore is appended to a table column of the same name.
ORIGIN = ("doc_id", "page", "section", "origin", "sha256", "source_id")


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """A document and its identity."""

    doc_id: str  # name of the document in rows, see `Source`
    sha256: str  # of the file
    document: Document
    blocks: Sequence[Block]  # without the boilerplate of all documents

    def origin(self, kind: str, page: int | None = None) -> Made:
        """Return the columns at the end of every row."""
        return {"doc_id": self.doc_id, "page": page, "origin": kind, "sha256": self.sha256}


def domain_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Yield running text in rows of at most `size` characters."""
    for passage in passages(part.blocks, size=size, joined=True):
        yield {"text": passage.text, **part.origin("document", passage.page)}


def rag_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Yield passages for retrieval, each of one section and with an `id`."""
    for number, passage in enumerate(passages(part.blocks, size=size, joined=False, title=part.document.title), 1):
        yield {
            "id": f"{part.doc_id}#{number}",
            "text": passage.text,
            "section": " > ".join(passage.section),
            **part.origin("document", passage.page),
        }


def instruct_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Yield questions and answers; answers are not shortened to `size`."""
    for pair in pairs(Document(tuple(part.blocks), part.document.title, part.document.pairs)):
        yield {"question": pair.question, "answer": pair.answer, **part.origin(pair.kind, pair.page)}


def table_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Yield every row of every table, with columns named by the header."""
    number = 0
    for block in part.blocks:
        if block.kind != "table" or len(block.cells) < 2:
            continue
        number += 1
        names = _names(block.cells[0])
        for cells in block.cells[1:]:
            row = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
            if len(row) > 1:  # a single cell is a heading inside the table
                yield {**row, "table": number, **part.origin("table", block.page)}


def _names(header: Sequence[str]) -> list[str]:
    """Return column names that are unique, not blank, and different from those that collect adds."""
    names: list[str] = []
    for number, cell in enumerate(header, 1):
        name = re.sub(r"\s+", " ", cell).strip() or f"column {number}"
        while name in names or name in (*ORIGIN, "table"):
            name += "_"
        names.append(name)
    return names


@dataclass(frozen=True, slots=True)
class Shape:
    """A row format of `tunesmith collect`."""

    rows: Callable[[DocumentPart, int], Iterator[Made]]  # of a document, with at most so much text (characters)
    about: str  # description for --help


SHAPES: Mapping[str, Shape] = {
    "domain": Shape(domain_rows, "running text, for domain adaptation"),
    "instruct": Shape(instruct_rows, "questions and answers: FAQ pages, definitions, calls"),
    "rag": Shape(rag_rows, "passages of one section each, for retrieval"),
    "table": Shape(table_rows, "one row per table row"),
}


def once(rows: Sequence[Made]) -> tuple[list[Made], int]:
    """Return rows without duplicates, apart from whitespace and origin, and the number of removed rows."""
    unique: dict[str, Made] = {}
    for row in rows:
        values = (str(value) for name, value in row.items() if name not in (*ORIGIN, "id", "table"))
        unique.setdefault("\x1f".join(" ".join(value.split()) for value in values), row)
    return list(unique.values()), len(rows) - len(unique)
