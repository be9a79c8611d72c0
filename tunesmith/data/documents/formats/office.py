"""Conversion of Word and PowerPoint files. Macros, linked files and pictures are never opened."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tunesmith.data.documents.document import Block, Document, one_line, tidy
from tunesmith.data.documents.formats.html import html_document
from tunesmith.data.documents.formats.zip_xml import open_zip, parse_xml, read_part
from tunesmith.errors import DataError

# Word uses these style names in every language; mammoth maps the other headings itself.
STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh\nr[style-name='Code'] => code"


def docx_document(data: bytes) -> Document:
    """Convert headings, paragraphs, lists, tables and footnotes of a Word file, without deleted and hidden text."""
    import mammoth

    _check(data, main="word/document.xml")
    result = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map=STYLES,
        convert_image=mammoth.images.img_element(lambda image: {}),
        external_file_access=False,
    )
    document = html_document(f"<body>{result.value}</body>".encode("utf-8", errors="replace"), declared="utf-8")
    title = next((block.text for block in document.blocks if block.kind == "heading"), "")
    return replace(document, title=title)


def _check(data: bytes, *, main: str) -> None:
    """Raise DataError unless this is an Office file of bounded size whose XML declares no entities."""
    archive = open_zip(data)
    if main not in archive.namelist():
        raise DataError(f"{main} is missing: not the file type of its extension; rename the file")
    for name in archive.namelist():
        if name.endswith((".xml", ".rels")):
            part = read_part(archive, name)
            head = part[:4096].replace(b"\x00", b"")  # UTF-16 has a zero byte in each of these letters
            if b"<!DOCTYPE" in head or b"<!ENTITY" in part.replace(b"\x00", b""):
                raise DataError(f"part {name} declares XML entities, rejected for safety; save the file again")
    parse_xml(read_part(archive, main), part=main)


def pptx_document(data: bytes) -> Document:
    """Convert the slides in order, each as a page: title as heading, then texts, tables and speaker notes."""
    import pptx
    from pptx.exc import PackageNotFoundError

    _check(data, main="ppt/presentation.xml")
    try:
        show = pptx.Presentation(io.BytesIO(data))
    except (PackageNotFoundError, KeyError, ValueError) as error:
        raise DataError("broken or incomplete presentation; open it and save it again") from error
    blocks = [block for page, slide in enumerate(show.slides, 1) for block in _slide(slide, page)]
    title = next((block.text for block in blocks if block.kind == "heading"), "")
    return Document(tuple(blocks), title)


def _slide(slide: Any, page: int) -> Iterator[Block]:
    heading = slide.shapes.title
    if heading is not None and one_line(heading.text):
        yield Block("heading", one_line(heading.text), 2, page)
    for shape in slide.shapes:
        # The title appears among the shapes as another object over the same element.
        if heading is None or shape.shape_id != heading.shape_id:
            yield from _shape(shape, page)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        text = tidy(slide.notes_slide.notes_text_frame.text)
        if text:
            yield Block("paragraph", text, 0, page)


def _shape(shape: Any, page: int, depth: int = 0) -> Iterator[Block]:
    if hasattr(shape, "shapes") and depth < 10:
        for inner in shape.shapes:
            yield from _shape(inner, page, depth + 1)
    elif getattr(shape, "has_table", False):
        cells = tuple(tuple(tidy(cell.text) for cell in row.cells) for row in shape.table.rows)
        yield Block("table", "", 0, page, cells)
    elif getattr(shape, "has_text_frame", False):
        lines = [(line.level, tidy(line.text)) for line in shape.text_frame.paragraphs if tidy(line.text)]
        kind = "item" if shape.is_placeholder and len(lines) > 1 else "paragraph"
        for level, text in lines:
            yield Block("item", text, level, page) if kind == "item" else Block("paragraph", text, 0, page)
