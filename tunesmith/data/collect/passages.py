"""A document cut into passages: whole sections where they fit, with the headings that lead to each."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.collect.document import Block, markdown, plain, render
from tunesmith.data.words import unspaced

# A passage to make rows of that has fewer letters says nothing by itself.
FEWEST_LETTERS = 20
# Where a sentence ends, behind the marks that close it; Chinese and Japanese write no space there.
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+|(?<=[。！？])(?![。！？」』”’）])\s*|(?<=[。！？][」』”’）])\s*"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """Some text of a document: the headings above it, and the page that it begins on."""

    text: str
    section: tuple[str, ...]
    page: int | None


@dataclass(frozen=True, slots=True)
class _Piece:
    blocks: tuple[Block, ...]
    path: tuple[str, ...]
    size: int


def passages(
    blocks: Sequence[Block], *, size: int, joined: bool, title: str = "", fewest: int = FEWEST_LETTERS
) -> list[Passage]:
    """Passages of at most `size` characters. Nothing else is lost, but headings without text under them where passages
    are for finding; nothing stands twice, but heads of cut tables.

    With `joined`, neighbouring sections share a passage while they fit, headings and all: for reading. Without,
    each passage is of one section, and the title and its headings stand in its first line: for finding. One with
    fewer letters than `fewest` is left out.
    """
    sections = _sections(blocks) if joined else (_titled(section, title) for section in _sections(blocks))
    pieces = [piece for section in sections for piece in _pieces(section, size, joined=joined)]
    if joined:
        pieces = _merged(pieces, size)
    made = (_passage(piece, joined=joined) for piece in pieces)
    return [passage for passage in made if passage.text and _letters(passage.text) >= fewest]


def _letters(text: str) -> int:
    """Letters, those of scripts without spaces between words twice: they say as much."""
    return sum(map(str.isalpha, text)) + unspaced(text)


def _sections(blocks: Sequence[Block]) -> Iterator[_Piece]:
    """Runs of blocks under one heading, with the path of headings that leads there."""
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
    """A section cut between its blocks, and inside one only where it alone is too long."""
    room = size if joined else max(size // 2, size - len(" > ".join(section.path)) - 2)
    blocks = [part for block in section.blocks for part in _cut(block, room)]
    if not joined:
        blocks = [block for block in blocks if block.kind != "heading"]
    run: list[Block] = []
    left = deque(blocks)
    while left:
        block = left.popleft()
        if run and len(markdown([*run, block])) > room:
            under_heading = all(part.kind == "heading" for part in run)  # which goes with what follows
            parts = _cut(block, max(room // 2, room - len(markdown(run)) - 2)) if under_heading else []
            if len(parts) > 1:
                left.extendleft(reversed(parts))
                continue
            if not under_heading:
                yield _piece(run, section.path)
                run = []
        run.append(block)
    if run:
        yield _piece(run, section.path)


def _merged(pieces: Sequence[_Piece], size: int) -> list[_Piece]:
    found: list[_Piece] = []
    for piece in pieces:
        if found and found[-1].size + 2 + piece.size <= size:
            last = found[-1]
            found[-1] = _Piece((*last.blocks, *piece.blocks), last.path, last.size + 2 + piece.size)
        else:
            found.append(piece)
    return found


def _passage(piece: _Piece, *, joined: bool) -> Passage:
    text = markdown(piece.blocks)
    if not joined and piece.path and text:
        text = f"{' > '.join(piece.path)}\n\n{text}"
    return Passage(text, piece.path, next((block.page for block in piece.blocks if block.page), None))


def _cut(block: Block, size: int) -> list[Block]:
    """The block, or where it is longer than `size` its parts: rows of a table, lines of code, sentences."""
    if len(render(block)) <= size or block.kind == "heading":
        return [block]
    if block.kind == "table":
        return _cut_table(block, size)
    if block.kind == "code":
        parts = [line for whole in block.text.split("\n") for line in _chopped(whole, size - 8)]
        return [replace(block, text="\n".join(lines)) for lines in _packed(parts, size - 8, 1)]
    parts = [part for sentence in _sentences(block.text) for part in _chopped(sentence, size - 8)]
    return [replace(block, text="".join(told).strip()) for told in _packed(parts, size - 8, 0)]


def _sentences(text: str) -> Iterator[str]:
    """The sentences with the space behind each; together they are the text."""
    begin = 0
    for found in _SENTENCE.finditer(text):
        yield text[begin : found.end()]
        begin = found.end()
    yield text[begin:]


def _cut_table(block: Block, size: int) -> list[Block]:
    head, rows = block.cells[0], block.cells[1:]
    room = max(1, size - len(render(replace(block, cells=(head,)))) - 1)
    parts: list[Block] = []
    used = size
    for row in rows:
        length = sum(map(len, row)) + 3 * len(row) + 2
        if length > room:  # not even alone under the header: as text, which can be cut anywhere
            told = "\n".join(f"{name}: {cell}" for name, cell in zip(head, row, strict=True) if cell)
            parts += _cut(Block("paragraph", told, 0, block.page), size)
            used = size
        elif used + length > room:
            parts.append(replace(block, cells=(head, row)))
            used = length
        else:
            parts[-1] = replace(block, cells=(*parts[-1].cells, row))
            used += length
    return parts or [block]


def _packed(parts: Sequence[str], size: int, between: int) -> Iterator[list[str]]:
    run: list[str] = []
    used = 0
    for part in parts:
        if run and used + len(part) + between > size:
            yield run
            run, used = [], 0
        run.append(part)
        used += len(part) + between
    if run:
        yield run


def _chopped(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size`, cut at a space where there is one in the second half."""
    at = 0
    while len(text) - at > size:
        cut = text.rfind(" ", at + size // 2, at + size)
        cut = at + size if cut < 0 else cut
        yield text[at:cut]
        at = cut
        while at < len(text) and text[at].isspace():
            at += 1
    yield text[at:]


def repeated(documents: Sequence[Sequence[Block]]) -> frozenset[str]:
    """Texts that stand in more than half of at least five documents: what the site or the maker put on every page."""
    if len(documents) < 5:
        return frozenset()
    counts: dict[str, int] = {}
    for blocks in documents:
        for text in {plain(block.text) for block in blocks if block.kind in ("paragraph", "item", "term")}:
            counts[text] = counts.get(text, 0) + 1
    return frozenset(text for text, count in counts.items() if text and count > len(documents) / 2)


def without(blocks: Sequence[Block], texts: frozenset[str]) -> list[Block]:
    """The blocks whose text is none of these."""
    return [block for block in blocks if block.kind in ("heading", "table", "code") or plain(block.text) not in texts]
