"""Plain text and Markdown as documents, and how bytes become text."""

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
# What DOS and old Macs wrote: a few accents of Windows look like it, and hardly a file is.
_OLD = [
    *(f"cp{page}" for page in (437, 720, 737, 775, 850, 852, 855, 857, 858, *range(860, 867), 869, 1006, 1125)),
    *(f"mac_{name}" for name in ("cyrillic", "greek", "iceland", "latin2", "roman", "turkish")),
    "hp_roman8", "kz1048", "ptcp154",
]  # fmt: skip
# By few letters these are taken for one another; in which languages it is the central European one.
_LATIN = ("cp1250", "cp1252", "cp1257", *(f"iso8859_{number}" for number in (2, 4, 10, 13, 14, 15, 16)), "latin_1")
_CENTRAL = frozenset(
    ("Croatian", "Czech", "Hungarian", "Polish", "Romanian", "Slovak", "Slovene", "Estonian", "Lithuanian", "Latvian")
)
SAMPLE = 200_000  # bytes by which an encoding is told
# Of the characters that are not ASCII; up to it a file is UTF-8 with a few broken bytes.
LOST, BROKEN_SHARE = "\N{REPLACEMENT CHARACTER}", 0.25
_UNDERLINE = re.compile(r"([=\-~^\"'#*+`])\1{2,}\s*")
_ITEM = re.compile(r"(\s*)(?:[-*+•◦▪·–]|(\d+|[a-z])[.)])\s+(?=\S)")
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)\n(?:\1|\.\.\.)[ \t]*\n", re.DOTALL)


def decode(data: bytes, *, declared: str = "") -> tuple[str, str]:
    """The text of a file, and a note where its encoding had to be guessed.

    Raises DataError for bytes that are no text.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name, errors="replace"), ""
    if declared:
        try:
            return data.decode(declared), ""
        except (LookupError, UnicodeDecodeError):
            pass  # a page that names the wrong encoding is read as if it named none
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _guessed(data)
    if "\x00" in text:
        raise DataError("zero bytes, so it is no text; give a file of its real kind")
    return text, ""


def _guessed(data: bytes) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    text = data.decode(errors="replace")
    others = sum(not letter.isascii() for letter in text)
    if "\x00" not in text and (lost := text.count(LOST)) <= BROKEN_SHARE * others:
        return text, f"bytes that are no UTF-8 at {lost} places, read as {LOST}; mend them"
    found = from_bytes(_telling(data), cp_exclusion=_OLD).best()
    if found is None:
        raise DataError("bytes that are text in no encoding; save it as UTF-8")
    western = found.encoding in _LATIN and found.language not in _CENTRAL
    name = "cp1252" if western else found.encoding
    return data.decode(name, errors="replace"), f"not UTF-8, read as {name}; look at its accents, or save it as UTF-8"


def _telling(data: bytes) -> bytes:
    """The lines that are not ASCII, by which encodings are told: the others look alike in all of them."""
    if b"\x00" in data:  # two bytes a letter, whose lines end otherwise
        return data[:SAMPLE]
    return b"\n".join(line for line in data.split(b"\n") if not line.isascii())[:SAMPLE]


def text_document(data: bytes) -> Document:
    """Paragraphs, underlined headings, lists and indented code of a plain text; hard line ends are joined."""
    text, note = decode(data)
    chunks = re.split(r"\n[ \t]*\n", clean(text.replace("\f", "\n\n")).expandtabs(4))
    ranks: list[str] = []
    blocks = [block for chunk in chunks if chunk.strip() for block in _chunk(chunk.strip("\n"), ranks)]
    title = next((block.text for block in blocks if block.kind == "heading"), "")
    return Document(tuple(blocks), title, notes=(note,) if note else ())


def _chunk(chunk: str, ranks: list[str]) -> list[Block]:
    """The blocks of lines without a blank line between; `ranks` are the underlines met so far, outermost first."""
    lines, found = deque(chunk.split("\n")), list[Block]()
    while len(lines) > 1:
        if len(lines) > 2 and _UNDERLINE.fullmatch(lines[0]) and _UNDERLINE.fullmatch(lines[2]):
            lines.popleft()
        if not (_UNDERLINE.fullmatch(lines[1]) and lines[0].strip()):
            break
        mark, heading = lines[1].strip()[0], one_line(lines[0])
        if mark not in ranks:
            ranks.append(mark)
        found.append(Block("heading", heading, min(6, ranks.index(mark) + 1)))
        lines.popleft()
        lines.popleft()
    return [*found, *_rest(list(lines))]


def _rest(lines: list[str]) -> list[Block]:
    """The blocks of lines under all headings."""
    if not any(line.strip() for line in lines):
        return []
    if _ITEM.match(lines[0]):
        return _items(lines)
    if all(line.startswith("    ") or not line.strip() for line in lines):
        return [Block("code", _dedent(lines))]
    return [Block("paragraph", one_line("\n".join(lines)))]


def _items(lines: list[str]) -> list[Block]:
    """List items; a line that is further in goes on with the item before."""
    found: list[tuple[int, str]] = []
    for line in lines:
        start = _ITEM.match(line)
        if start:
            mark = f"{start[2]}. " if start[2] else ""
            found.append((len(start[1]) // 2, mark + line[start.end() :]))
        else:
            level, text = found[-1]
            found[-1] = (level, f"{text} {line}")
    return [Block("item", one_line(text), min(level, 5)) for level, text in found]


def _dedent(lines: list[str]) -> str:
    least = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[least:].rstrip() for line in lines)


def _are_keys(mark: str, text: str) -> bool:
    """Whether a text is the keys and values of a front matter, not what stands between two rules."""
    import yaml

    try:
        return bool(tomllib.loads(text)) if mark == "+++" else isinstance(yaml.safe_load(text), dict)
    except (yaml.YAMLError, tomllib.TOMLDecodeError):
        return False


def markdown_document(data: bytes) -> Document:
    """A Markdown file, its raw HTML and tables included; a front matter is left out."""
    from markdown_it import MarkdownIt

    from tunesmith.data.collect.html import html_document

    text, note = decode(data)
    text = _FRONT_MATTER.sub(
        lambda found: "" if _are_keys(found[1], found[2]) else found[0], text.replace("\r\n", "\n")
    )
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    document = html_document(page.encode("utf-8", errors="replace"), declared="utf-8")
    title = next((block.text for block in document.blocks if block.kind == "heading"), "")
    return replace(document, title=title, notes=(note,) if note else ())
