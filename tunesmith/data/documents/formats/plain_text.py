"""Conversion of plain text and Markdown."""

from __future__ import annotations

import re
import tomllib
from collections import deque
from dataclasses import replace

from tunesmith.data.documents.document import Block, Document, clean, one_line
from tunesmith.data.documents.encoding import decode

_UNDERLINE = re.compile(r"([=\-~^\"'#*+`])\1{2,}\s*")
_ITEM = re.compile(r"(\s*)(?:[-*+•◦▪·–]|(\d+|[a-z])[.)])\s+(?=\S)")
_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)\n(?:\1|\.\.\.)[ \t]*\n", re.DOTALL)


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
        # List items; a line without a bullet continues the item before.
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
    if all(line.startswith("    ") or not line.strip() for line in lines):
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        return [Block("code", "\n".join(line[indent:].rstrip() for line in lines))]
    return [Block("paragraph", one_line("\n".join(lines)))]


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

    from tunesmith.data.documents.formats.html import html_document

    text, note = decode(data)
    text = _FRONT_MATTER.sub(
        lambda match: "" if _is_front_matter(match[1], match[2]) else match[0], text.replace("\r\n", "\n")
    )
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    document = html_document(page.encode("utf-8", errors="replace"), declared="utf-8")
    title = next((block.text for block in document.blocks if block.kind == "heading"), "")
    return replace(document, title=title, notes=(note,) if note else ())
