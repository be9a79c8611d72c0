"""Layout analysis of PDF lines: headings, paragraphs, list items, code, footnotes and tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.data.documents.document import Block
from tunesmith.data.documents.formats.pdf_lines import Line, RuledTable, without_edges

# Type size relative to the text: headings are at least LARGER, footnotes at most SMALLER.
LARGER = 1.12
SMALLER = 0.9
LONGEST_HEADING = 200  # characters
LONGEST_BOLD = 2  # lines of a bold heading at the size of the text; longer runs are emphasis
_BULLET = re.compile(r"^[•◦▪●○■□–—*·‣⁃∙➢✓-]\s+(?=\S)")
_NUMBERED = re.compile(r"^(?:\(?(\d{1,3}|[a-z])[.)])\s+(?=\S)")
_ENDS = (".", "!", "?", ":", ";", "。", "！", "？")
CHARACTER = 0.6  # width of a monospaced character, relative to the type size


def blocks_of(parts: Sequence[Line | RuledTable]) -> list[Block]:
    """Return the blocks of a document in the order of its lines, without running heads and tables of contents."""
    parts = without_edges(parts)
    lines = [part for part in parts if isinstance(part, Line)]
    sizes: Counter[float] = Counter()
    for line in lines:
        if not line.mono:
            sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0] if sizes else 10.0
    # The vocabulary distinguishes a hyphen of the word from one of the line end.
    words = {word for line in lines for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line.text.casefold())}
    groups = _notes_later(list(_groups(parts, body)), body)
    # Levels by type size, the largest first. Bold headings at about the size of the text are the last level.
    looks = {_look(group[0], body) for group in groups if isinstance(group, list) and _heads(group, body)}
    ranks = {look: min(6, rank) for rank, look in enumerate(sorted(looks, reverse=True), 1)}
    return list(_joined(_block(group, body, ranks, words) for group in groups))


def _is_heading(line: Line, body: float) -> bool:
    if (
        line.mono
        or len(line.text) > LONGEST_HEADING
        or _BULLET.match(line.text)
        or not any(map(str.isalpha, line.text))
    ):
        return False
    return line.size >= LARGER * body or (line.bold and line.size >= 0.95 * body)


def _groups(parts: Sequence[Line | RuledTable], body: float) -> Iterator[list[Line] | RuledTable]:
    """Group consecutive lines that form one block."""
    run: list[Line] = []
    for part in parts:
        if isinstance(part, RuledTable):
            if run:
                yield run
            yield part
            run = []
            continue
        if run and _starts_block(run, part, body):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _starts_block(run: list[Line], line: Line, body: float) -> bool:
    """Return whether a line begins a new block after `run`."""
    last = run[-1]
    if line.page != last.page or (line.mono == last.mono and abs(line.size - last.size) > 0.6):
        return True
    if _is_heading(line, body) != _is_heading(last, body):
        return True
    gap = line.top - last.bottom
    height = last.bottom - last.top
    # A paragraph may contain a line that is one long file name; code is indented or separated by a gap.
    if line.mono != last.mono and (gap > 0.4 * height or abs(line.x0 - last.x0) > 1):
        return True
    if line.top < last.top or gap > (1.6 if line.mono else 0.6) * height:
        return True
    if line.mono:
        return False
    first = run[0]
    if _BULLET.match(line.text):
        return True
    # A number starts an item if it is indented or follows another item; otherwise it is just the next word.
    if _NUMBERED.match(line.text) and (abs(line.x0 - first.x0) > 2 or _NUMBERED.match(first.text)):
        return True
    # An indented first line: by more than a letter, after a sentence that ended.
    indent = line.x0 - last.x0
    in_item = bool(_BULLET.match(first.text) or _NUMBERED.match(first.text))
    return indent > line.size and last.text.endswith(_ENDS) and not (in_item and len(run) == 1)


def _look(line: Line, body: float) -> float:
    return line.size if line.size >= LARGER * body else 0.0


def _notes_later(groups: list[list[Line] | RuledTable], body: float) -> list[list[Line] | RuledTable]:
    """Move footnotes behind a paragraph that continues on the next page."""
    ordered: list[list[Line] | RuledTable] = []
    notes: list[list[Line] | RuledTable] = []
    for group in groups:
        if isinstance(group, list) and group[0].size <= SMALLER * body:
            notes.append(group)
            continue
        continues = isinstance(group, list) and group[0].text[:1].islower()
        ordered += [group, *notes] if continues else [*notes, group]
        notes = []
    return [*ordered, *notes]


def _heads(group: list[Line], body: float) -> bool:
    """Return whether a run of lines is a heading: long bold runs at the size of the text are emphasis."""
    if not all(_is_heading(line, body) for line in group):
        return False
    return group[0].size >= LARGER * body or len(group) <= LONGEST_BOLD


def _block(group: list[Line] | RuledTable, body: float, ranks: dict[float, int], words: set[str]) -> Block:
    if isinstance(group, RuledTable):
        return Block("table", "", 0, group.page, group.cells)
    first = group[0]
    if all(line.mono for line in group) and (len(group) > 1 or " " in first.text):
        left = min(line.x0 for line in group)
        code = (" " * round((line.x0 - left) / (CHARACTER * line.size)) + line.text for line in group)
        return Block("code", "\n".join(code), 0, first.page)
    text = first.text
    for line in group[1:]:
        text = join(text, line.text, words)
    if _heads(group, body):
        return Block("heading", text, ranks[_look(first, body)], first.page)
    bullet = _BULLET.match(text)
    if bullet or _NUMBERED.match(text):
        return Block("item", text[bullet.end() :] if bullet else text, 0, first.page)
    return Block("paragraph", text, 0, first.page)


def join(text: str, line: str, words: set[str]) -> str:
    """Join two lines; a hyphen at the line end is dropped unless `words` contains only the hyphenated form."""
    tail = re.search(r"([^\W\d_]+(?:-[^\W\d_]+)*)[-\u2010]$", text)
    head = re.match(r"[^\W\d_]+", line)
    if not tail or not head:
        return f"{text} {line}" if not text.endswith("-") else text + line
    solid = (tail[1] + head[0]).casefold()
    hyphenated = f"{tail[1]}-{head[0]}".casefold()
    if not head[0][0].islower() or (hyphenated in words and solid not in words):
        return text + line
    return text[:-1] + line


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Join blocks that a page break split: paragraphs, items, and tables with the same header."""
    last: Block | None = None
    for block in blocks:
        joined = _join_blocks(last, block) if last is not None else None
        if joined is None and last is not None:
            yield last
        last = block if joined is None else joined
    if last is not None:
        yield last


def _join_blocks(last: Block, block: Block) -> Block | None:
    """Join two blocks that a page break split; return None for two separate blocks."""
    if last.page == block.page or last.kind == "heading":
        return None
    if last.kind in ("paragraph", "item") and block.kind == "paragraph":
        open_end = not last.text.endswith(_ENDS) and block.text[:1].islower()
        return replace(last, text=join(last.text, block.text, set())) if open_end else None
    if last.kind == block.kind == "table" and last.cells[0] == block.cells[0]:
        return replace(last, cells=last.cells + block.cells[1:])
    return None
