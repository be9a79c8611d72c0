"""Conversion of a file to a `Document`, by its extension."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tunesmith.data.bounded_yaml import parse_yaml
from tunesmith.data.documents.document import Document
from tunesmith.data.documents.encoding import decode
from tunesmith.data.documents.formats.epub import epub_document
from tunesmith.data.documents.formats.html import html_document
from tunesmith.data.documents.formats.office import docx_document, pptx_document
from tunesmith.data.documents.formats.openapi import tools_document
from tunesmith.data.documents.formats.pdf import pdf_document
from tunesmith.data.documents.formats.plain_text import markdown_document, text_document
from tunesmith.data.files import quoted
from tunesmith.errors import DataError

PageHandler = Callable[[int], None]  # receives the number of each converted page
LARGEST = 512 * 2**20  # bytes
EMPTY = "empty; give a file with text, or remove it"
INSTALL = f"pip install {quoted('tunesmith[collect]')}"


@dataclass(frozen=True, slots=True)
class Reader:
    """The function that reads one file type, and the libraries it needs."""

    read: Callable[[bytes, PageHandler], Document]
    needs: tuple[str, ...] = ()


def _tools(data: bytes) -> Document:
    text, _ = decode(data)
    try:
        return tools_document(json.loads(text) if text.lstrip()[:1] in ("{", "[") else parse_yaml(text))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"invalid JSON or YAML ({' '.join(str(error).split())[:120]}); fix this line") from error


HTML = Reader(lambda data, on_page: html_document(data), ("lxml", "charset_normalizer"))
MARKDOWN = Reader(lambda data, on_page: markdown_document(data), ("lxml", "markdown_it", "charset_normalizer"))
TEXT = Reader(lambda data, on_page: text_document(data), ("charset_normalizer",))
TOOLS = Reader(lambda data, on_page: _tools(data), ("charset_normalizer",))
READERS: Mapping[str, Reader] = {
    ".pdf": Reader(pdf_document, ("pdfplumber",)),
    ".docx": Reader(lambda data, on_page: docx_document(data), ("mammoth", "lxml")),
    ".pptx": Reader(lambda data, on_page: pptx_document(data), ("pptx", "lxml")),
    ".epub": Reader(lambda data, on_page: epub_document(data), ("lxml",)),
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".txt": TEXT,
    ".text": TEXT,
    ".rst": TEXT,
    ".json": TOOLS,
    ".yaml": TOOLS,
    ".yml": TOOLS,
}


def missing(suffix: str) -> list[str]:
    """Return the libraries that files with this extension need and that are not installed."""
    return [name for name in READERS[suffix].needs if importlib.util.find_spec(name) is None]


def convert(path: Path, on_page: PageHandler = lambda page: None) -> Document:
    """Convert a file to a document.

    Raises:
        DataError: the file cannot be converted; the message has the form `problem; fix`, without the path.
    """
    suffix = path.suffix.lower()
    if libraries := missing(suffix):
        raise DataError(f"needs {', '.join(libraries)}; run {INSTALL}")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise DataError(f"{size / 2**20:.0f} MiB; expected at most {LARGEST // 2**20} MiB; split it")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); check its permissions") from error
    if not data.strip():
        raise DataError(EMPTY)
    document = READERS[suffix].read(data, on_page)
    if not document.blocks and not document.pairs:
        raise DataError("no visible text; remove it, or save it as plain text")
    return document
