"""The common form of every converted file: blocks of visible text in order, and question-answer pairs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.data.text.words import words_of

Kind = Literal["heading", "paragraph", "item", "term", "code", "table"]
Cells = tuple[tuple[str, ...], ...]

# Stored in every cached document. A document of another version is converted again.
VERSION = 2

# Control, zero-width, bidirectional and tag characters: they are invisible and can hide instructions to a model.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
                     "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]")  # fmt: skip
# Zero-width joiners change the meaning of Persian, Indic scripts and emoji, so they are kept.
_JOINERS = "\u200c\u200d"
# PowerPoint writes \x0b as the line break inside a paragraph.
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x85\u2028\u2029]")
_LIGATURES = {ord(c): t for c, t in zip("ﬀﬁﬂﬃﬄﬅﬆ", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True)}


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, paragraph, list item, term, code block or table."""

    kind: Kind
    text: str
    level: int = 0  # heading: 1 to 6; item: number of enclosing lists
    page: int | None = None  # from 1; None for file types without pages
    cells: Cells = ()  # rows of a table, the first is its header


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its answer, as the file contains them."""

    question: str
    answer: str
    kind: str = "faq"  # faq, definition or tool
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an API offers."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of type object


@dataclass(frozen=True, slots=True)
class Document:
    """A converted file."""

    blocks: tuple[Block, ...]
    title: str = ""
    pairs: tuple[QuestionAnswer, ...] = ()
    tools: tuple[Tool, ...] = ()
    notes: tuple[str, ...] = ()  # warnings about the conversion, for the user


def clean(text: str) -> str:
    """Return the text in NFC without invisible characters; spaces are kept."""
    text = _LINE_ENDS.sub("\n", text)
    text = _UNSEEN.sub(lambda match: match[0] if match[0] in _JOINERS else "", text.translate(_LIGATURES))
    return unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """Return the cleaned text with single spaces."""
    return " ".join(clean(text).split())


def tidy(text: str) -> str:
    """Return the cleaned text with single spaces in each line and no blank lines."""
    lines = (" ".join(line.split()) for line in clean(text).split("\n"))
    return "\n".join(line for line in lines if line)


def plain(text: str) -> str:
    """Return the normalized words of a text, separated by spaces: equal for texts that differ only in form."""
    return " ".join(words_of(text))


def markdown(blocks: Sequence[Block]) -> str:
    """Render blocks as Markdown, with a blank line between any two that are not items of one list."""
    parts: list[str] = []
    before = ""
    for block in blocks:
        text = render(block)
        if not text:
            continue
        if parts:
            parts.append("\n" if block.kind == before == "item" else "\n\n")
        parts.append(text)
        before = block.kind
    return "".join(parts)


def render(block: Block) -> str:
    """Render one block as Markdown."""
    if block.kind == "heading":
        return f"{'#' * min(6, max(1, block.level))} {block.text}"
    if block.kind == "table":
        return table_text(block.cells)
    if block.kind == "code":
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
        return f"{fence}\n{block.text}\n{fence}"
    if block.kind == "item":
        mark = "" if re.match(r"(\d+|[a-z])[.)] ", block.text) else "- "
        indent = "  " * block.level
        return f"{indent}{mark}" + block.text.replace("\n", f"\n{indent}  ")
    return block.text


def table_text(cells: Cells) -> str:
    """Render a table as Markdown, or an empty string for an empty table."""
    if not cells:
        return ""
    lines = ["| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def to_json(document: Document) -> dict[str, Any]:
    """Return the document as a JSON-serializable dictionary."""
    return {"version": VERSION, **asdict(document)}


def from_json(value: Mapping[str, Any]) -> Document:
    """Restore a document written by `to_json`; raise KeyError, TypeError or ValueError for anything else."""
    if value["version"] != VERSION:
        raise ValueError("made by another version")
    blocks = (Block(**{**b, "cells": tuple(tuple(map(str, row)) for row in b["cells"])}) for b in value["blocks"])
    return Document(
        blocks=tuple(blocks),
        title=value["title"],
        pairs=tuple(QuestionAnswer(**pair) for pair in value["pairs"]),
        tools=tuple(Tool(**tool) for tool in value["tools"]),
        notes=tuple(value["notes"]),
    )
