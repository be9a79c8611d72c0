"""Conversion of EPUB books: the chapters in reading order."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from tunesmith.data.documents.document import Document, one_line
from tunesmith.data.documents.formats.html import html_document
from tunesmith.data.documents.formats.zip_xml import open_zip, parse_xml, read_part
from tunesmith.errors import DataError

CONTAINER = "META-INF/container.xml"
PAGES = ("application/xhtml+xml", "text/html")


def epub_document(data: bytes) -> Document:
    """Convert all chapters of the spine to one document; the number of a chapter is its page.

    Raises:
        DataError: the book is encrypted or broken, or has no chapters.
    """
    archive = open_zip(data)
    if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
        raise DataError("copy-protected (DRM); give a copy without DRM")
    roots = parse_xml(read_part(archive, CONTAINER), part=CONTAINER).xpath("//*[local-name()='rootfile']/@full-path")
    if not roots:
        raise DataError(f"{CONTAINER} lists no book; download the file again")
    package = parse_xml(read_part(archive, roots[0]), part=roots[0])
    items = {item.get("id"): item for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")}
    spine = package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref")
    title = one_line("".join(package.xpath("(//*[local-name()='metadata']/*[local-name()='title'])[1]//text()")))
    chapters = [items[name] for name in spine if name in items]
    parts = []
    for number, item in enumerate(chapters, 1):
        if item.get("media-type") not in PAGES or "nav" in (item.get("properties") or "").split():
            continue
        path = posixpath.normpath(posixpath.join(posixpath.dirname(roots[0]), unquote(urlsplit(item.get("href")).path)))
        parts.append(_on_page(html_document(read_part(archive, path)), number))
    if not parts:
        raise DataError("no chapters; download the file again")
    return Document(
        tuple(block for part in parts for block in part.blocks),
        title,
        tuple(pair for part in parts for pair in part.pairs),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _on_page(document: Document, page: int) -> Document:
    blocks = tuple(replace(block, page=page) for block in document.blocks)
    return replace(document, blocks=blocks, pairs=tuple(replace(pair, page=page) for pair in document.pairs))
