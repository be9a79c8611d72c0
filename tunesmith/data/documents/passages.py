"""Splitting of a document into passages: whole sections if they fit, with the headings above each."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tunesmith.data.documents.document import Block, markdown, plain, render
from tunesmith.data.text.words import unspaced

# A passage with fewer letters is not informative enough for a row.
FEWEST_LETTERS = 20
# The end of a sentence, after closing quotes and brackets; Chinese and Japanese write no space there.
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+|(?<=[。！？])(?![。！？」』”’）])\s*|(?<=[。！？][」』”’）])\s*"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document."""

    text: str
    section: tuple[str, ...]  # the headings above it, outermost first
    page: int | None  # the page on which it begins


@dataclass(frozen=True, slots=True)
class _Piece:
    blocks: tuple[Block, ...]
    path: tuple[str, ...]
    size: int


def passages(
    blocks: Sequence[Block], *, size: int, joined: bool, title: str = "", fewest: int = FEWEST_LETTERS
) -> list[Passage]:
    """Split blocks into passages. Only the headers of split tables are repeated.

    Args:
        blocks: the blocks of a document, in order.
        size: greatest length of a passage, in characters.
        joined: merge neighbouring sections into one passage while they fit, with their headings (for training on
            running text). Otherwise each passage is of one section and its first line contains the title and the
            headings (for retrieval); headings without text below them are dropped.
        title: title of the document, for the first line.
        fewest: drop passages with fewer letters. Letters of scripts without spaces count twice, because they carry
            more information.
    """
    sections = _sections(blocks) if joined else (_titled(section, title) for section in _sections(blocks))
    pieces = [piece for section in sections for piece in _pieces(section, size, joined=joined)]
    if joined:
        pieces = _merged(pieces, size)
    return [
        passage
        for passage in (_passage(piece, joined=joined) for piece in pieces)
        if passage.text and sum(map(str.isalpha, passage.text)) + unspaced(passage.text) >= fewest
    ]


def _sections(blocks: Sequence[Block]) -> Iterator[_Piece]:
    """Yield the blocks under each heading, with the path of headings above them."""
    path: list[Block] = []
    run: list[Block] = []
    for block in blocks:
        if block.kind == "heading":
            if run:
                yield _piece(run, path)
            path = [above for above in path if above.level < block.level] + [block]
            run = []
        run.append(block)
    if run:
        yield _piece(run, path)


def _titled(section: _Piece, title: str) -> _Piece:
    known = not title or any(plain(title) in plain(name) or plain(name) in plain(title) for name in section.path[:1])
    return section if known else replace(section, path=(title, *section.path))


def _piece(blocks: Sequence[Block], path: Sequence[Block] | tuple[str, ...]) -> _Piece:
    names = tuple(above.text if isinstance(above, Block) else above for above in path)
    return _Piece(tuple(blocks), names, len(markdown(blocks)))


def _pieces(section: _Piece, size: int, *, joined: bool) -> Iterator[_Piece]:
    """Cut a section between its blocks; a block is cut only if it is too long by itself."""
    limit = size if joined else max(size // 2, size - len(" > ".join(section.path)) - 2)
    blocks = [part for block in section.blocks for part in _cut(block, limit)]
    if not joined:
        blocks = [block for block in blocks if block.kind != "heading"]
    run: list[Block] = []
    remaining = deque(blocks)
    while remaining:
        block = remaining.popleft()
        if run and len(markdown([*run, block])) > limit:
            only_headings = all(part.kind == "heading" for part in run)  # a heading stays with the text below it
            parts = _cut(block, max(limit // 2, limit - len(markdown(run)) - 2)) if only_headings else []
            if len(parts) > 1:
                remaining.extendleft(reversed(parts))
                continue
            if not only_headings:
                yield _piece(run, section.path)
                run = []
        run.append(block)
    if run:
        yield _piece(run, section.path)


def _merged(pieces: Sequence[_Piece], size: int) -> list[_Piece]:
    merged: list[_Piece] = []
    for piece in pieces:
        if merged and merged[-1].size + 2 + piece.size <= size:
            last = merged[-1]
            merged[-1] = _Piece((*last.blocks, *piece.blocks), last.path, last.size + 2 + piece.size)
        else:
            merged.append(piece)
    return merged


def _passage(piece: _Piece, *, joined: bool) -> Passage:
    text = markdown(piece.blocks)
    if not joined and piece.path and text:
        text = f"{' > '.join(piece.path)}\n\n{text}"
    return Passage(text, piece.path, next((block.page for block in piece.blocks if block.page), None))


def _cut(block: Block, size: int) -> list[Block]:
    """Return the block, or its parts if it is longer than `size`: rows of a table, lines of code, sentences."""
    if len(render(block)) <= size or block.kind == "heading":
        return [block]
    if block.kind == "table":
        head = block.cells[0]
        limit = max(1, size - len(render(replace(block, cells=(head,)))) - 1)
        parts: list[Block] = []
        used = size
        for row in block.cells[1:]:
            length = sum(map(len, row)) + 3 * len(row) + 2
            if length > limit:  # too long even alone below the header: as text, which can be cut anywhere
                text = "\n".join(f"{name}: {cell}" for name, cell in zip(head, row, strict=True) if cell)
                parts += _cut(Block("paragraph", text, 0, block.page), size)
                used = size
            elif used + length > limit:
                parts.append(replace(block, cells=(head, row)))
                used = length
            else:
                parts[-1] = replace(block, cells=(*parts[-1].cells, row))
                used += length
        return parts or [block]
    if block.kind == "code":
        code = [line for whole in block.text.split("\n") for line in _chopped(whole, size - 8)]
        return [replace(block, text="\n".join(lines)) for lines in _packed(code, size - 8, 1)]
    ends = [0, *(match.end() for match in _SENTENCE.finditer(block.text)), len(block.text)]
    sentences = (block.text[start:end] for start, end in pairwise(ends))  # each with the space behind it
    prose = [part for sentence in sentences for part in _chopped(sentence, size - 8)]
    return [replace(block, text="".join(run).strip()) for run in _packed(prose, size - 8, 0)]


def _packed(parts: Sequence[str], size: int, between: int) -> Iterator[list[str]]:
    run: list[str] = []
    used = 0
    for part in parts:
        if run and used + len(part) + between > size:
            yield run
            run = []
            used = 0
        run.append(part)
        used += len(part) + between
    if run:
        yield run


def _chopped(text: str, size: int) -> Iterator[str]:
    """Yield pieces of at most `size` characters, cut at a space if there is one in the second half."""
    start = 0
    while len(text) - start > size:
        end = text.rfind(" ", start + size // 2, start + size)
        end = start + size if end < 0 else end
        yield text[start:end]
        start = end
        while start < len(text) and text[start].isspace():
            start += 1
    yield text[start:]


def repeated(documents: Sequence[Sequence[Block]]) -> frozenset[str]:
    """Find boilerplate: normalized texts that occur in more than half of at least five documents, for `without`."""
    if len(documents) < 5:
        return frozenset()
    counts: dict[str, int] = {}
    for blocks in documents:
        for text in {plain(block.text) for block in blocks if block.kind in ("paragraph", "item", "term")}:
            counts[text] = counts.get(text, 0) + 1
    return frozenset(text for text, count in counts.items() if text and count > len(documents) / 2)


def without(blocks: Sequence[Block], texts: frozenset[str]) -> list[Block]:
    """Drop paragraphs, items and terms with one of these normalized texts."""
    return [block for block in blocks if block.kind in ("heading", "table", "code") or plain(block.text) not in texts]
