"""From lines on pages to blocks: what is a heading, where a paragraph ends, what stands on every page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.data.collect.document import Block
from tunesmith.data.collect.lines import Line, RuledTable, without_edges

# A heading is this much larger than the text, or bold and by itself; longer ones are paragraphs. A footnote is smaller.
LARGER, SMALLER, LONGEST_HEADING, LONGEST_BOLD = 1.12, 0.9, 200, 2
_BULLET = re.compile(r"^[•◦▪●○■□–—*·‣⁃∙➢✓-]\s+(?=\S)")
_NUMBERED = re.compile(r"^(?:\(?(\d{1,3}|[a-z])[.)])\s+(?=\S)")
_ENDS = (".", "!", "?", ":", ";", "。", "！", "？")
CHARACTER = 0.6


def blocks_of(found: Sequence[Line | RuledTable]) -> list[Block]:
    """The blocks of a document, in the order of its lines; running heads and tables of contents are left out."""
    kept = without_edges(found)
    sizes: Counter[float] = Counter()
    for line in kept:
        if isinstance(line, Line) and not line.mono:
            sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0] if sizes else 10.0
    words = _vocabulary(kept)
    groups = _notes_later(list(_groups(kept, body)), body)
    ranks = _ranks(groups, body)
    return list(_joined(_block(group, body, ranks, words) for group in groups))


def _vocabulary(found: Sequence[Line | RuledTable]) -> set[str]:
    """Every word that stands inside a line, to tell a hyphen of the word from one of the line end."""
    return {
        word
        for line in found
        if isinstance(line, Line)
        for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line.text.casefold())
    }


def _is_heading(line: Line, body: float) -> bool:
    if (
        line.mono
        or len(line.text) > LONGEST_HEADING
        or _BULLET.match(line.text)
        or not any(map(str.isalpha, line.text))
    ):
        return False
    return line.size >= LARGER * body or (line.bold and line.size >= 0.95 * body)


def _groups(found: Sequence[Line | RuledTable], body: float) -> Iterator[list[Line] | RuledTable]:
    """Runs of lines that are one block, in their order."""
    run: list[Line] = []
    for part in found:
        if isinstance(part, RuledTable):
            if run:
                yield run
            yield part
            run = []
            continue
        if run and _parts(run, part, body):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _parts(run: list[Line], line: Line, body: float) -> bool:
    """Whether a line begins a new block after `run`."""
    last = run[-1]
    if line.page != last.page or (line.mono == last.mono and abs(line.size - last.size) > 0.6):
        return True
    if _is_heading(line, body) != _is_heading(last, body):
        return True
    gap, height = line.top - last.bottom, last.bottom - last.top
    # A line of a paragraph may be one long file name; code stands apart or further in.
    if line.mono != last.mono and (gap > 0.4 * height or abs(line.x0 - last.x0) > 1):
        return True
    if line.top < last.top or gap > (1.6 if line.mono else 0.6) * height:
        return True
    if line.mono:
        return False
    if _BULLET.match(line.text) or (_NUMBERED.match(line.text) and _starts(line, run[0])):
        return True
    # A first line that is set in: by more than a letter, under a line that ended early or a sentence that ended.
    indent = line.x0 - last.x0
    inside = bool(_BULLET.match(run[0].text) or _NUMBERED.match(run[0].text))
    return indent > line.size and last.text.endswith(_ENDS) and not (inside and len(run) == 1)


def _starts(line: Line, first: Line) -> bool:
    """Whether a number at the start of a line begins an item and is not just the next word."""
    return abs(line.x0 - first.x0) > 2 or bool(_NUMBERED.match(first.text))


def _ranks(groups: Sequence[list[Line] | RuledTable], body: float) -> dict[float, int]:
    """Type size of headings -> their level, the largest first; bold ones of about the text's size are the last."""
    looks = {_look(group[0], body) for group in groups if isinstance(group, list) and _heads(group, body)}
    return {look: min(6, place) for place, look in enumerate(sorted(looks, reverse=True), 1)}


def _look(line: Line, body: float) -> float:
    return line.size if line.size >= LARGER * body else 0.0


def _notes_later(groups: list[list[Line] | RuledTable], body: float) -> list[list[Line] | RuledTable]:
    """The groups with footnotes put behind a paragraph that goes on over the page end below them."""
    found: list[list[Line] | RuledTable] = []
    notes: list[list[Line] | RuledTable] = []
    for group in groups:
        if isinstance(group, list) and group[0].size <= SMALLER * body:
            notes.append(group)
            continue
        goes_on = isinstance(group, list) and group[0].text[:1].islower()
        found += [group, *notes] if goes_on else [*notes, group]
        notes = []
    return [*found, *notes]


def _heads(group: list[Line], body: float) -> bool:
    """Whether a run of lines is a heading: long bold runs at the size of the text are emphasis."""
    if not all(_is_heading(line, body) for line in group):
        return False
    return group[0].size >= LARGER * body or len(group) <= LONGEST_BOLD


def _block(group: list[Line] | RuledTable, body: float, ranks: dict[float, int], words: set[str]) -> Block:
    if isinstance(group, RuledTable):
        return Block("table", "", 0, group.page, group.cells)
    first = group[0]
    if all(line.mono for line in group) and (len(group) > 1 or " " in first.text):
        return Block("code", _code(group), 0, first.page)
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
    """Two lines as one: a hyphen at the end goes where the rest of the text knows the word without it."""
    tail, head = re.search(r"([^\W\d_]+(?:-[^\W\d_]+)*)[-\u2010]$", text), re.match(r"[^\W\d_]+", line)
    if not tail or not head:
        return f"{text} {line}" if not text.endswith("-") else text + line
    whole, kept = (tail[1] + head[0]).casefold(), f"{tail[1]}-{head[0]}".casefold()
    if not head[0][0].islower() or (kept in words and whole not in words):
        return text + line
    return text[:-1] + line


def _code(group: list[Line]) -> str:
    """Lines as they stand, set in by as many spaces as there is room for."""
    left = min(line.x0 for line in group)
    return "\n".join(" " * round((line.x0 - left) / (CHARACTER * line.size)) + line.text for line in group)


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks with those that a page end cut in two made whole: paragraphs, code, and tables of one header."""
    last: Block | None = None
    for block in blocks:
        if last is None:
            last = block
            continue
        whole = _whole(last, block)
        if whole is None:
            yield last
            last = block
        else:
            last = whole
    if last is not None:
        yield last


def _whole(last: Block, block: Block) -> Block | None:
    """One block of two that a page end parted, or None."""
    if last.page == block.page or last.kind == "heading":
        return None
    if last.kind in ("paragraph", "item") and block.kind == "paragraph":
        open_end = not last.text.endswith(_ENDS) and block.text[:1].islower()
        return replace(last, text=join(last.text, block.text, set())) if open_end else None
    if last.kind == block.kind == "table" and last.cells[0] == block.cells[0]:
        return replace(last, cells=last.cells + block.cells[1:])
    return None
