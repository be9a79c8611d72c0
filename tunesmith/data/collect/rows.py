"""Rows of each shape that `collect` makes from documents; every row says where it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.collect.document import Block, Document
from tunesmith.data.collect.faq import pairs
from tunesmith.data.collect.passages import passages

Made = dict[str, object]
# Characters in a row: what fits `data.max_tokens` of 512 in European languages.
SIZE = 1_800
# Columns that say where a row is from; a table's own column of such a name gets a line under it.
ORIGIN = ("doc_id", "page", "section", "origin", "sha256", "source_id")


@dataclass(frozen=True, slots=True)
class DocumentPart:
    """A document with its name in rows, its digest, and its blocks without what stands in all of them."""

    doc_id: str
    sha256: str
    document: Document
    blocks: Sequence[Block]

    def origin(self, kind: str, page: int | None = None) -> Made:
        """The columns that every row ends with."""
        return {"doc_id": self.doc_id, "page": page, "origin": kind, "sha256": self.sha256}


def domain_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Running text in pieces of at most `size` characters."""
    for passage in passages(part.blocks, size=size, joined=True):
        yield {"text": passage.text, **part.origin("document", passage.page)}


def rag_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Passages to be found, each of one section; `id` names each."""
    found = passages(part.blocks, size=size, joined=False, title=part.document.title)
    for number, passage in enumerate(found, 1):
        section = " > ".join(passage.section)
        yield {
            "id": f"{part.doc_id}#{number}",
            "text": passage.text,
            "section": section,
            **part.origin("document", passage.page),
        }


def instruct_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Questions and answers; an answer keeps its whole length."""
    for pair in pairs(Document(tuple(part.blocks), part.document.title, part.document.pairs)):
        yield {"question": pair.question, "answer": pair.answer, **part.origin(pair.kind, pair.page)}


def table_rows(part: DocumentPart, size: int = SIZE) -> Iterator[Made]:
    """Every line of every table, its columns named by the table's first line."""
    number = 0
    for block in part.blocks:
        if block.kind != "table" or len(block.cells) < 2:
            continue
        number += 1
        names = _names(block.cells[0])
        for cells in block.cells[1:]:
            found = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
            if len(found) > 1:  # one cell alone is a heading inside the table
                yield {**found, "table": number, **part.origin("table", block.page)}


def _names(header: Sequence[str]) -> list[str]:
    """Column names: each its own, none blank, none of those that collect adds."""
    names: list[str] = []
    for number, cell in enumerate(header, 1):
        name = re.sub(r"\s+", " ", cell).strip() or f"column {number}"
        while name in names or name in (*ORIGIN, "table"):
            name += "_"
        names.append(name)
    return names


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows can be made: from a part and a longest text in characters, and what they are for, in words."""

    rows: Callable[[DocumentPart, int], Iterator[Made]]
    about: str


SHAPES: Mapping[str, Shape] = {
    "domain": Shape(domain_rows, "running text, to learn the language of a field"),
    "instruct": Shape(instruct_rows, "questions and answers: FAQ pages, definitions, calls"),
    "rag": Shape(rag_rows, "passages of one section each, to be found"),
    "table": Shape(table_rows, "a row for each line of a table"),
}


def once(rows: Sequence[Made]) -> tuple[list[Made], int]:
    """The rows without exact copies, the first of each kept, and how many went."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        said = (str(value) for name, value in row.items() if name not in (*ORIGIN, "id", "table"))
        text = "\x1f".join(" ".join(value.split()) for value in said)
        if text not in seen:
            seen.add(text)
            kept.append(row)
    return kept, len(rows) - len(kept)
