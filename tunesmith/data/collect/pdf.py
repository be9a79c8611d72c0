"""PDF files as documents: lines of words with their place and type size, and ruled tables, for layout.py."""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunesmith.data.collect.document import Block, Document, one_line, tidy
from tunesmith.data.collect.layout import blocks_of
from tunesmith.data.collect.lines import Line, RuledTable
from tunesmith.errors import DataError

# Share of the type size between two letters from which on they belong to two words. A fixed distance joins the
# words of many TeX files, which have no space characters.
BETWEEN_WORDS = 0.15
SMALLEST = 3.0
MOST_PAGES = 20_000
RIGHT_TO_LEFT = 0.3  # share of letters from which on a reader has to look
_BOLD = re.compile(r"bold|black|heavy|semibold|demi", re.IGNORECASE)
_MONO = re.compile(r"mono|courier|consol|typewriter|fixed|cmtt|lmtt|menlo|terminal", re.IGNORECASE)
# Columns of text: the gap between them in points, how much of the page's words may cross it, and the least share
# of the words on either side.
GUTTER, CROSSING, EITHER_SIDE = 9.0, 0.02, 0.04


def pdf_document(data: bytes, heard: Callable[[int], None]) -> Document:
    """Headings by type size, paragraphs over line and page ends, lists, code and ruled tables, each with its page.

    `heard` is called after each page. Raises DataError for a file that is encrypted, broken or only pictures.
    """
    import pdfplumber
    from pdfminer.pdfexceptions import PDFException
    from pdfplumber.utils.exceptions import MalformedPDFException, PdfminerException

    try:
        with pdfplumber.open(io.BytesIO(data)) as pdf:
            if len(pdf.pages) > MOST_PAGES:
                raise DataError(f"{len(pdf.pages)} pages; split it into files of at most {MOST_PAGES}")
            found: list[Line | RuledTable] = []
            for number, page in enumerate(pdf.pages, 1):
                found += _page(page, number)
                page.close()
                heard(number)
            pages, title = len(pdf.pages), _title(pdf.metadata)
    except (PDFException, PdfminerException, MalformedPDFException) as error:
        raise DataError(_reason(error)) from error
    if not found:
        raise DataError(f"no text on its {pages} pages, so they are pictures; run OCR over it first")
    blocks = blocks_of(found)
    return Document(tuple(blocks), title or _first_heading(blocks), notes=_backwards(blocks))


def _backwards(blocks: Sequence[Block]) -> tuple[str, ...]:
    """A note where the page is written from the right: its letters come in the order in which they are drawn."""
    letters = [unicodedata.bidirectional(letter) for block in blocks for letter in block.text if letter.isalpha()]
    if sum(way in ("R", "AL") for way in letters) <= len(letters) * RIGHT_TO_LEFT:
        return ()
    return ("written from right to left, and a PDF may tell words backwards: look at them, or give docx or html",)


def _reason(error: Exception) -> str:
    """What is wrong with the file and what helps."""
    names = f"{type(error).__name__} {error!r} {error.__cause__!r} {error.__context__!r}"
    if "Password" in names or "Encryption" in names:
        return "encrypted; remove the password (qpdf --decrypt) and give the result"
    return "broken, no whole PDF; get it again, or print it to PDF anew"


def _title(metadata: Any) -> str:
    title = metadata.get("Title") if isinstance(metadata, dict) else None
    return one_line(title) if isinstance(title, str) else ""


def _first_heading(blocks: Sequence[Block]) -> str:
    return next((block.text for block in blocks if block.kind == "heading"), "")


def _page(page: Any, number: int) -> list[Line | RuledTable]:
    """Lines and tables of a page in reading order."""
    tables = [(table.bbox, cells) for table in page.find_tables() if (cells := _cells(table))]
    words = [word for word in _words(page) if not any(_inside(word, box) for box, _ in tables)]
    placed: list[Line | RuledTable] = [
        RuledTable(cells, box[0], box[2], box[1], box[3], number) for box, cells in tables
    ]
    lines: list[Line | RuledTable] = []
    for column in _columns(words, page):
        lines += _lines(column, number, page.height)
    return _with_tables(lines, placed)


def _words(page: Any) -> list[dict[str, Any]]:
    """Upright words of a readable size on the page itself."""
    found = page.extract_words(
        x_tolerance_ratio=BETWEEN_WORDS, extra_attrs=["fontname", "size", "upright"], keep_blank_chars=False
    )
    x0, top, x1, bottom = page.bbox
    return [
        word
        for word in found
        if word["upright"] and word["size"] >= SMALLEST and x0 - 1 <= word["x0"] and word["x1"] <= x1 + 1
        and top - 1 <= word["top"] and word["bottom"] <= bottom + 1
    ]  # fmt: skip


def _cells(table: Any) -> tuple[tuple[str, ...], ...]:
    """The texts of a ruled table; nothing for a box around text and for a grid that is mostly empty."""
    rows = [[tidy(cell or "") for cell in row] for row in table.extract(x_tolerance_ratio=BETWEEN_WORDS)]
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        return ()
    columns = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    kept = tuple(tuple(row[i] for i in columns) for row in rows)
    filled = sum(bool(cell) for row in kept for cell in row)
    return kept if len(columns) > 1 and filled * 2 >= len(kept) * len(columns) else ()


def _inside(word: dict[str, Any], box: tuple[float, float, float, float]) -> bool:
    middle, height = (word["x0"] + word["x1"]) / 2, (word["top"] + word["bottom"]) / 2
    return bool(box[0] <= middle <= box[2] and box[1] <= height <= box[3])


def _columns(words: list[dict[str, Any]], page: Any) -> list[list[dict[str, Any]]]:
    """The words in runs to be read one after the other: two columns where an empty strip parts the page."""
    gutter = _gutter(words, page)
    if gutter is None:
        return [words]
    runs: list[list[dict[str, Any]]] = []
    band: list[dict[str, Any]] = []
    for line in _by_line(words):
        crosses = any(word["x0"] < gutter < word["x1"] for word in line) or _bridges(line, gutter)
        if crosses:
            runs += [*_sides(band, gutter), line]
            band = []
        else:
            band += line
    return [run for run in (*runs, *_sides(band, gutter)) if run]


def _bridges(line: list[dict[str, Any]], gutter: float) -> bool:
    """Whether a line goes on over the middle with no more than a word's distance there."""
    left, right = [w["x1"] for w in line if w["x1"] <= gutter], [w["x0"] for w in line if w["x0"] >= gutter]
    return bool(left and right) and min(right) - max(left) < GUTTER * 0.7


def _sides(words: list[dict[str, Any]], gutter: float) -> list[list[dict[str, Any]]]:
    return [[word for word in words if word["x1"] <= gutter], [word for word in words if word["x1"] > gutter]]


def _gutter(words: list[dict[str, Any]], page: Any) -> float | None:
    """The x in the middle of the page that almost no word crosses, with running text on either side."""
    if len(words) < 60:
        return None
    width = page.bbox[2] - page.bbox[0]
    for share in (0.5, 0.48, 0.52, 0.46, 0.54, 0.44, 0.56, 0.42, 0.58):
        x = page.bbox[0] + share * width
        crossing = sum(word["x0"] < x + GUTTER / 2 and word["x1"] > x - GUTTER / 2 for word in words)
        left = [word for word in words if word["x1"] <= x]
        enough = min(len(left), len(words) - len(left) - crossing) >= EITHER_SIDE * len(words)
        if crossing <= CROSSING * len(words) and enough and _runs_on(left):
            return float(x)
    return None


def _runs_on(left: list[dict[str, Any]]) -> bool:
    """Whether lines left of the gap are full, as in running text, and not short entries of a table."""
    lines = _by_line(left)
    x0, x1 = min(word["x0"] for word in left), max(word["x1"] for word in left)
    full = sum(max(word["x1"] for word in line) - x0 > 0.8 * (x1 - x0) for line in lines)
    return full >= 0.5 * len(lines) and len(lines) >= 5


def _by_line(words: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Words that stand on one line, from left to right; lines from top to bottom."""
    lines: list[list[dict[str, Any]]] = []
    for word in sorted(words, key=lambda w: (w["top"] + w["bottom"], w["x0"])):
        middle = (word["top"] + word["bottom"]) / 2
        last = lines[-1] if lines else []
        if last and _middle(last[-1]) - 0.4 * word["size"] <= middle <= _middle(last[-1]) + 0.4 * word["size"]:
            last.append(word)
        else:
            lines.append([word])
    return [sorted(line, key=lambda w: w["x0"]) for line in lines]


def _middle(word: dict[str, Any]) -> float:
    return float(word["top"] + word["bottom"]) / 2


def _lines(words: list[dict[str, Any]], number: int, height: float) -> Iterator[Line]:
    for run in _by_line(words):
        text = one_line("".join(_spaced(run)))
        if not text:
            continue
        letters = sum(len(word["text"]) for word in run)
        bold = sum(len(word["text"]) for word in run if _BOLD.search(word["fontname"]))
        mono = sum(len(word["text"]) for word in run if _MONO.search(word["fontname"]))
        yield Line(
            text, run[0]["x0"], run[-1]["x1"], min(w["top"] for w in run), max(w["bottom"] for w in run), number,
            size=_size(run), bold=bold > 0.9 * letters, mono=mono > 0.9 * letters,
            edge=_edge(run, height),
        )  # fmt: skip


def _edge(run: list[dict[str, Any]], height: float) -> bool:
    """Whether a line stands where headers and footers do."""
    return bool(run[0]["bottom"] < 0.1 * height or run[0]["top"] > 0.9 * height)


def _size(run: list[dict[str, Any]]) -> float:
    """The type size of most letters of a line, in halves of a point; a file name in it does not count."""
    sizes: Counter[float] = Counter()
    for word in [word for word in run if not _MONO.search(word["fontname"])] or run:
        sizes[round(2 * word["size"]) / 2] += len(word["text"])
    return sizes.most_common(1)[0][0]


def _spaced(run: list[dict[str, Any]]) -> Iterator[str]:
    """The words with a space where there is one to see: a change of the font alone parts no word."""
    before: dict[str, Any] | None = None
    for word in run:
        if before is not None and word["x0"] - before["x1"] > BETWEEN_WORDS * min(word["size"], before["size"]):
            yield " "
        raised = before is not None and word["size"] < 0.8 * before["size"] and word["bottom"] < before["bottom"] - 1
        if raised and before is not None and word["text"].isdigit():
            yield f"^{word['text']}" if before["text"][-1:].isdigit() else f" [{word['text']}]"
            before = {**before, "x1": word["x1"]}
            continue
        yield word["text"]
        before = word


def _with_tables(lines: list[Line | RuledTable], tables: list[Line | RuledTable]) -> list[Line | RuledTable]:
    """Each table put before the first line that stands below it in its own column."""
    for table in sorted(tables, key=lambda t: t.top):
        place = next(
            (i for i, line in enumerate(lines) if line.top >= table.top and line.x0 < table.x1 and line.x1 > table.x0),
            len(lines),
        )
        lines.insert(place, table)
    return lines
