"""Conversion of plain text and Markdown, and detection of encodings."""

from __future__ import annotations

import codecs
import re
import tomllib
from collections import deque
from dataclasses import replace

from tunesmith.data.collect.document import Block, Document, clean, one_line
from tunesmith.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Encodings of DOS and old Macs. Windows text with a few accents is often mistaken for them, and such files are rare.
_OLD = [
    *(f"cp{page}" for page in (437, 720, 737, 775, 850, 852, 855, 857, 858, *range(860, 867), 869, 1006, 1125)),
    *(f"mac_{name}" for name in ("cyrillic", "greek", "iceland", "latin2", "roman", "turkish")),
    "hp_roman8", "kz1048", "ptcp154",
]  # fmt: skip
# These encodings are confused if there are few accents. In the languages below the central European ones are correct.
_LATIN = ("cp1250", "cp1252", "cp1257", *(f"iso8859_{number}" for number in (2, 4, 10, 13, 14, 15, 16)), "latin_1")
_CENTRAL = frozenset(
    ("Croatian", "Czech", "Hungarian", "Polish", "Romanian", "Slovak", "Slovene", "Estonian", "Lithuanian", "Latvian")
)
SAMPLE = 200_000  # bytes used to detect an encoding
LOST = "\N{REPLACEMENT CHARACTER}"
# Up to this share of broken bytes among the non-ASCII characters, a file is treated as damaged UTF-8.
BROKEN_SHARE = 0.25
_UNDERLINE = re.compile(r"([=\-~^\"'#*+`])\1{2,}\s*")
_ITEM = re.compile(r"(\s*)(?:[-*+•◦▪·–]|(\d+|[a-z])[.)])\s+(?=\S)")
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)\n(?:\1|\.\.\.)[ \t]*\n", re.DOTALL)


def decode(data: bytes, *, declared: str = "") -> tuple[str, str]:
    """Decode the bytes of a file.

    Args:
        data: the bytes.
        declared: the encoding that the file declares; ignored if it is wrong.

    Returns:
        The text, and a note if the encoding was guessed or bytes are broken.

    Raises:
        DataError: the bytes are not text.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, errors="replace"), ""
    if declared:
        try:
            return data.decode(declared), ""
        except (LookupError, UnicodeDecodeError):
            pass  # a wrong declaration is ignored
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _guessed(data)
    if "\x00" in text:
        raise DataError("binary data (zero bytes) instead of text; rename the file to its real type")
    return text, ""


def _guessed(data: bytes) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    text = data.decode(errors="replace")
    others = sum(not letter.isascii() for letter in text)
    if "\x00" not in text and (lost := text.count(LOST)) <= BROKEN_SHARE * others:
        return text, f"invalid UTF-8 at {lost} positions, read as {LOST}; fix these characters"
    # ASCII lines are equal in all encodings, so only the others are a useful sample. With zero bytes the encoding
    # has two bytes per letter, and lines end differently.
    lines = [data] if b"\x00" in data else [line for line in data.split(b"\n") if not line.isascii()]
    best = from_bytes(b"\n".join(lines)[:SAMPLE], cp_exclusion=_OLD).best()
    if best is None:
        raise DataError("unknown text encoding; save it as UTF-8")
    western = best.encoding in _LATIN and best.language not in _CENTRAL
    name = "cp1252" if western else best.encoding
    return data.decode(name, errors="replace"), f"not UTF-8, read as {name}; check its accents, or save it as UTF-8"


def text_document(data: bytes) -> Document:
    """Convert paragraphs, underlined headings, lists and indented code of a plain text; hard line breaks are joined.

    Raises:
        DataError: the bytes are not text.
    """
    text, note = decode(data)
    chunks = re.split(r"\n[ \t]*\n", clean(text.replace("\f", "\n\n")).expandtabs(4))
    ranks: list[str] = []
    blocks = [block for chunk in chunks if chunk.strip() for block in _chunk(chunk.strip("\n"), ranks)]
    title = next((block.text for block in blocks if block.kind == "heading"), "")
    return Document(tuple(blocks), title, notes=(note,) if note else ())


def _chunk(chunk: str, ranks: list[str]) -> list[Block]:
    """Return the blocks of consecutive lines; new underlines of headings are appended to `ranks`, outermost first."""
    lines = deque(chunk.split("\n"))
    headings = list[Block]()
    while len(lines) > 1:
        if len(lines) > 2 and _UNDERLINE.fullmatch(lines[0]) and _UNDERLINE.fullmatch(lines[2]):
            lines.popleft()
        if not (_UNDERLINE.fullmatch(lines[1]) and lines[0].strip()):
            break
        mark, heading = lines[1].strip()[0], one_line(lines[0])
        if mark not in ranks:
            ranks.append(mark)
        headings.append(Block("heading", heading, min(6, ranks.index(mark) + 1)))
        lines.popleft()
        lines.popleft()
    return [*headings, *_body(list(lines))]


def _body(lines: list[str]) -> list[Block]:
    """Return the blocks below the headings: list items, code or a paragraph."""
    if not any(line.strip() for line in lines):
        return []
    if _ITEM.match(lines[0]):
        return _items(lines)
    if all(line.startswith("    ") or not line.strip() for line in lines):
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        return [Block("code", "\n".join(line[indent:].rstrip() for line in lines))]
    return [Block("paragraph", one_line("\n".join(lines)))]


def _items(lines: list[str]) -> list[Block]:
    """Return list items; a line without a bullet continues the item before."""
    items: list[tuple[int, str]] = []
    for line in lines:
        bullet = _ITEM.match(line)
        if bullet:
            mark = f"{bullet[2]}. " if bullet[2] else ""
            items.append((len(bullet[1]) // 2, mark + line[bullet.end() :]))
        else:
            level, text = items[-1]
            items[-1] = (level, f"{text} {line}")
    return [Block("item", one_line(text), min(level, 5)) for level, text in items]


def _is_front_matter(mark: str, text: str) -> bool:
    """Return whether a text contains keys and values, and is not just text between two horizontal rules."""
    import yaml

    try:
        return bool(tomllib.loads(text)) if mark == "+++" else isinstance(yaml.safe_load(text), dict)
    except (yaml.YAMLError, tomllib.TOMLDecodeError):
        return False


def markdown_document(data: bytes) -> Document:
    """Convert a Markdown file, with raw HTML and tables and without its front matter."""
    from markdown_it import MarkdownIt

    from tunesmith.data.collect.html import html_document

    text, note = decode(data)
    text = _FRONT_MATTER.sub(
        lambda match: "" if _is_front_matter(match[1], match[2]) else match[0], text.replace("\r\n", "\n")
    )
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    document = html_document(page.encode("utf-8", errors="replace"), declared="utf-8")
    title = next((block.text for block in document.blocks if block.kind == "heading"), "")
    return replace(document, title=title, notes=(note,) if note else ())
