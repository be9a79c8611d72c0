"""Lines of a PDF page, and removal of running heads, page numbering and tables of contents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.documents.document import Cells, plain


@dataclass(frozen=True, slots=True)
class Line:
    """A printed line. Coordinates and sizes are in points, from the left and the top of the page."""

    text: str
    x0: float
    x1: float
    top: float
    bottom: float
    page: int
    size: float = 10.0  # type size of most letters
    bold: bool = False
    mono: bool = False
    edge: bool = False  # in the top or bottom tenth of the page


@dataclass(frozen=True, slots=True)
class RuledTable:
    """A ruled table and its coordinates in points."""

    cells: Cells
    x0: float
    x1: float
    top: float
    bottom: float
    page: int


EVERYWHERE = 3  # pages on which a line must repeat at one height to be a running head
CONTENTS = 5  # lines with dot leaders on one page that make it a table of contents
_LEADERS = re.compile(r"(?:\.\s?){4,}\s*[\divxlc]+\s*$", re.IGNORECASE)
_PAGE_NUMBER = re.compile(r"(?:page\s+)?[\divxlc]{1,6}(?:\s*(?:/|of)\s*\d+)?", re.IGNORECASE)
_OUTER_NUMBER = re.compile(r"^(\d{1,5})\b(?![.\d])|(?<![.\d])\b(\d{1,5})$")


def without_edges(parts: Sequence[Line | RuledTable]) -> list[Line | RuledTable]:
    """Remove running heads, page numbering and lines of a table of contents."""
    lines = [part for part in parts if isinstance(part, Line)]
    pages = max((part.page for part in parts), default=0)
    repeated = _repeated([line for line in lines if line.edge], pages)
    offset = _offset([line for line in lines if line.edge], pages)
    leaders = Counter(line.page for line in lines if _LEADERS.search(line.text))
    contents = {page for page, count in leaders.items() if count >= CONTENTS}

    def is_outside_text(line: Line) -> bool:
        if _LEADERS.search(line.text) or (line.page in contents and re.search(r"\s[\divxlc]+$", line.text)):
            return True
        numbered = offset is not None and any(number - line.page == offset for number in _outer(line))
        return line.edge and (bool(_PAGE_NUMBER.fullmatch(line.text)) or numbered or _signature(line) in repeated)

    return [part for part in parts if isinstance(part, RuledTable) or not is_outside_text(part)]


def _repeated(lines: Sequence[Line], pages: int) -> set[tuple[str, int]]:
    """Return the signatures of edge lines that repeat on several pages."""
    pages_of: dict[tuple[str, int], set[int]] = {}
    for line in lines:
        pages_of.setdefault(_signature(line), set()).add(line.page)
    enough = min(EVERYWHERE, max(2, pages))
    return {signature for signature, occurrences in pages_of.items() if len(occurrences) >= enough}


def _signature(line: Line) -> tuple[str, int]:
    """Return the text with digits and Roman numerals masked, and the height on the page in steps of 4 points."""
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", plain(line.text)), round(line.top / 4)


def _offset(lines: Sequence[Line], pages: int) -> int | None:
    """Return printed minus actual page number if a third of the pages agree on it, else None."""
    counts: Counter[int] = Counter()
    for line in lines:
        counts.update({number - line.page for number in _outer(line)})
    best = counts.most_common(1)
    return best[0][0] if best and best[0][1] >= max(EVERYWHERE, pages // 3) else None


def _outer(line: Line) -> Iterator[int]:
    """Yield the integers at the start and the end of a line."""
    for start, end in _OUTER_NUMBER.findall(line.text):
        yield int(start or end)
