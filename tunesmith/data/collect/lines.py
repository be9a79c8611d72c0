"""Lines of print, and which of them belong to the pages and not to the text: heads, feet, page numbers, contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.collect.document import Cells, plain


@dataclass(frozen=True, slots=True)
class Line:
    """A line of print; places and sizes are in points, from the left and the top of its page."""

    text: str
    x0: float
    x1: float
    top: float
    bottom: float
    page: int
    size: float = 10.0
    bold: bool = False
    mono: bool = False
    edge: bool = False


@dataclass(frozen=True, slots=True)
class RuledTable:
    """A ruled table and its place."""

    cells: Cells
    x0: float
    x1: float
    top: float
    bottom: float
    page: int


# On this many pages at one height, a line belongs to the pages; so many lines with leaders make a table of contents.
EVERYWHERE, CONTENTS = 3, 5
_LEADERS = re.compile(r"(?:\.\s?){4,}\s*[\divxlc]+\s*$", re.IGNORECASE)
_PAGE_NUMBER = re.compile(r"(?:page\s+)?[\divxlc]{1,6}(?:\s*(?:/|of)\s*\d+)?", re.IGNORECASE)
_OUTER_NUMBER = re.compile(r"^(\d{1,5})\b(?![.\d])|(?<![.\d])\b(\d{1,5})$")


def without_edges(found: Sequence[Line | RuledTable]) -> list[Line | RuledTable]:
    """The text alone: no running heads, page numbers and lines of a table of contents."""
    everywhere, offset = _everywhere(found), _offset(found)
    leaders = Counter(line.page for line in found if isinstance(line, Line) and _LEADERS.search(line.text))
    contents = {page for page, count in leaders.items() if count >= CONTENTS}

    def aside(line: Line) -> bool:
        if _LEADERS.search(line.text) or (line.page in contents and re.search(r"\s[\divxlc]+$", line.text)):
            return True
        counted = offset is not None and any(number - line.page == offset for number in _outer(line))
        return line.edge and (bool(_PAGE_NUMBER.fullmatch(line.text)) or counted or _place(line) in everywhere)

    return [part for part in found if isinstance(part, RuledTable) or not aside(part)]


def _everywhere(found: Sequence[Line | RuledTable]) -> set[tuple[str, int]]:
    """Texts, numbers aside, that stand at one height of the page's edge on several pages."""
    seen: dict[tuple[str, int], set[int]] = {}
    for line in found:
        if isinstance(line, Line) and line.edge:
            seen.setdefault(_place(line), set()).add(line.page)
    enough = min(EVERYWHERE, max(2, max((part.page for part in found), default=0)))
    return {place for place, pages in seen.items() if len(pages) >= enough}


def _place(line: Line) -> tuple[str, int]:
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", plain(line.text)), round(line.top / 4)


def _offset(found: Sequence[Line | RuledTable]) -> int | None:
    """How far the printed page numbers are from the real ones, where many pages agree on it."""
    counts: Counter[int] = Counter()
    for line in found:
        if isinstance(line, Line) and line.edge:
            counts.update({number - line.page for number in _outer(line)})
    pages = max((part.page for part in found), default=0)
    best = counts.most_common(1)
    return best[0][0] if best and best[0][1] >= max(EVERYWHERE, pages // 3) else None


def _outer(line: Line) -> Iterator[int]:
    """The numbers that a line begins or ends with."""
    for start, end in _OUTER_NUMBER.findall(line.text):
        yield int(start or end)
