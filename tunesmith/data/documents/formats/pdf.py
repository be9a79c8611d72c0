"""Conversion of PDF files: words are grouped into lines with coordinates and type size, and into ruled tables."""

from __future__ import annotations

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tunesmith.data.documents.document import Block, Document, one_line, tidy
from tunesmith.data.documents.formats.pdf_layout import blocks_of
from tunesmith.data.documents.formats.pdf_lines import Line, RuledTable
from tunesmith.errors import DataError

# Distance between two letters of different words, as a share of the type size. A fixed distance joins the words of
# many TeX files, which contain no space characters.
BETWEEN_WORDS = 0.15
SMALLEST = 3.0  # type size in points; smaller text is not readable
MOST_PAGES = 20_000
RIGHT_TO_LEFT = 0.3  # share of right-to-left letters that triggers a warning
_BOLD = re.compile(r"bold|black|heavy|semibold|demi", re.IGNORECASE)
_MONO = re.compile(r"mono|courier|consol|typewriter|fixed|cmtt|lmtt|menlo|terminal", re.IGNORECASE)
# Two columns of text.
GUTTER = 9.0  # points between them
CROSSING = 0.02  # greatest share of the words that may cross the gutter
EITHER_SIDE = 0.04  # least share of the words in each column


def pdf_document(data: bytes, on_page: Callable[[int], None]) -> Document:
    """Convert headings, paragraphs, lists, code and ruled tables, each with its page.

    Raises:
        DataError: the file is encrypted, broken, too long, or contains only images.
    """
    import pdfplumber
    from pdfminer.pdfexceptions import PDFException
    from pdfplumber.utils.exceptions import MalformedPDFException, PdfminerException

    try:
        with pdfplumber.open(io.BytesIO(data)) as pdf:
            if len(pdf.pages) > MOST_PAGES:
                raise DataError(f"{len(pdf.pages)} pages; split it into files of at most {MOST_PAGES}")
            parts: list[Line | RuledTable] = []
            for number, page in enumerate(pdf.pages, 1):
                parts += _page(page, number)
                page.close()
                on_page(number)
            pages = len(pdf.pages)
            title = pdf.metadata.get("Title") if isinstance(pdf.metadata, dict) else None
    except (PDFException, PdfminerException, MalformedPDFException) as error:
        names = f"{type(error).__name__} {error!r} {error.__cause__!r} {error.__context__!r}"
        if "Password" in names or "Encryption" in names:
            raise DataError("encrypted; remove the password (qpdf --decrypt) and give the result") from error
        raise DataError("broken or incomplete PDF; download it again, or print it to PDF again") from error
    if not parts:
        raise DataError(f"no text on its {pages} pages, only images; run OCR on it first")
    blocks = blocks_of(parts)
    heading = next((block.text for block in blocks if block.kind == "heading"), "")
    name = one_line(title) if isinstance(title, str) else ""
    return Document(tuple(blocks), name or heading, notes=_right_to_left_note(blocks))


def _right_to_left_note(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return a warning for right-to-left text: a PDF stores its letters in the order in which they are painted."""
    directions = [unicodedata.bidirectional(letter) for block in blocks for letter in block.text if letter.isalpha()]
    if sum(direction in ("R", "AL") for direction in directions) <= len(directions) * RIGHT_TO_LEFT:
        return ()
    return ("right-to-left text may be reversed in a PDF; check the words, or give docx or html",)


def _page(page: Any, number: int) -> list[Line | RuledTable]:
    """Return lines and tables of a page in reading order."""
    tables = [(table.bbox, cells) for table in page.find_tables() if (cells := _cells(table))]
    words = [word for word in _words(page) if not any(_inside(word, box) for box, _ in tables)]
    parts: list[Line | RuledTable] = []
    for column in _columns(words, page):
        parts += _lines(column, number, page.height)
    # Each table comes before the first line below it in its own column.
    for (x0, top, x1, bottom), cells in sorted(tables, key=lambda table: table[0][1]):
        below = (i for i, line in enumerate(parts) if line.top >= top and line.x0 < x1 and line.x1 > x0)
        parts.insert(next(below, len(parts)), RuledTable(cells, x0, x1, top, bottom, number))
    return parts


def _words(page: Any) -> list[dict[str, Any]]:
    """Return upright words of a readable size inside the page."""
    words = page.extract_words(
        x_tolerance_ratio=BETWEEN_WORDS, extra_attrs=["fontname", "size", "upright"], keep_blank_chars=False
    )
    x0, top, x1, bottom = page.bbox
    return [
        word
        for word in words
        if word["upright"] and word["size"] >= SMALLEST and x0 - 1 <= word["x0"] and word["x1"] <= x1 + 1
        and top - 1 <= word["top"] and word["bottom"] <= bottom + 1
    ]  # fmt: skip


def _cells(table: Any) -> tuple[tuple[str, ...], ...]:
    """Return the texts of a ruled table; none for a box around text or a grid that is mostly empty."""
    rows = [[tidy(cell or "") for cell in row] for row in table.extract(x_tolerance_ratio=BETWEEN_WORDS)]
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        return ()
    columns = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    cells = tuple(tuple(row[i] for i in columns) for row in rows)
    filled = sum(bool(cell) for row in cells for cell in row)
    return cells if len(columns) > 1 and filled * 2 >= len(cells) * len(columns) else ()


def _inside(word: dict[str, Any], box: tuple[float, float, float, float]) -> bool:
    x, y = (word["x0"] + word["x1"]) / 2, (word["top"] + word["bottom"]) / 2
    return bool(box[0] <= x <= box[2] and box[1] <= y <= box[3])


def _columns(words: list[dict[str, Any]], page: Any) -> list[list[dict[str, Any]]]:
    """Return runs of words in reading order; an empty vertical strip divides the page into two columns."""
    gutter = _gutter(words, page)
    if gutter is None:
        return [words]
    runs: list[list[dict[str, Any]]] = []
    band: list[dict[str, Any]] = []
    for line in _by_line(words):
        # A line spans both columns if a word crosses the gutter or the gap there is only a word space.
        left = [word["x1"] for word in line if word["x1"] <= gutter]
        right = [word["x0"] for word in line if word["x0"] >= gutter]
        word_space = bool(left and right) and min(right) - max(left) < GUTTER * 0.7
        if word_space or any(word["x0"] < gutter < word["x1"] for word in line):
            runs += [*_sides(band, gutter), line]
            band = []
        else:
            band += line
    return [run for run in (*runs, *_sides(band, gutter)) if run]


def _sides(words: list[dict[str, Any]], gutter: float) -> list[list[dict[str, Any]]]:
    return [[word for word in words if word["x1"] <= gutter], [word for word in words if word["x1"] > gutter]]


def _gutter(words: list[dict[str, Any]], page: Any) -> float | None:
    """Return the x near the middle of the page that almost no word crosses, with running text on either side."""
    if len(words) < 60:
        return None
    width = page.bbox[2] - page.bbox[0]
    for share in (0.5, 0.48, 0.52, 0.46, 0.54, 0.44, 0.56, 0.42, 0.58):
        x = page.bbox[0] + share * width
        crossing = sum(word["x0"] < x + GUTTER / 2 and word["x1"] > x - GUTTER / 2 for word in words)
        left = [word for word in words if word["x1"] <= x]
        enough = min(len(left), len(words) - len(left) - crossing) >= EITHER_SIDE * len(words)
        if crossing <= CROSSING * len(words) and enough and _is_running_text(left):
            return float(x)
    return None


def _is_running_text(words: list[dict[str, Any]]) -> bool:
    """Return whether most lines are full, as in running text, and not short entries of a table."""
    lines = _by_line(words)
    x0, x1 = min(word["x0"] for word in words), max(word["x1"] for word in words)
    full = sum(max(word["x1"] for word in line) - x0 > 0.8 * (x1 - x0) for line in lines)
    return full >= 0.5 * len(lines) and len(lines) >= 5


def _by_line(words: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group words into lines from top to bottom, each from left to right."""
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
            edge=bool(run[0]["bottom"] < 0.1 * height or run[0]["top"] > 0.9 * height),
        )  # fmt: skip


def _size(run: list[dict[str, Any]]) -> float:
    """Return the type size of most letters, rounded to half a point; monospaced words count only if alone."""
    sizes: Counter[float] = Counter()
    for word in [word for word in run if not _MONO.search(word["fontname"])] or run:
        sizes[round(2 * word["size"]) / 2] += len(word["text"])
    return sizes.most_common(1)[0][0]


def _spaced(run: list[dict[str, Any]]) -> Iterator[str]:
    """Yield words and visible spaces; a font change inside a word is not a space."""
    last: dict[str, Any] | None = None
    for word in run:
        if last is not None and word["x0"] - last["x1"] > BETWEEN_WORDS * min(word["size"], last["size"]):
            yield " "
        raised = last is not None and word["size"] < 0.8 * last["size"] and word["bottom"] < last["bottom"] - 1
        if raised and last is not None and word["text"].isdigit():
            yield f"^{word['text']}" if last["text"][-1:].isdigit() else f" [{word['text']}]"
            last = {**last, "x1": word["x1"]}
            continue
        yield word["text"]
        last = word
