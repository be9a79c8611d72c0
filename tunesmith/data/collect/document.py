"""What every kind of file is turned into: blocks of readable text in their order, and question-answer pairs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunesmith.data.words import words_of

Kind = Literal["heading", "paragraph", "item", "term", "code", "table"]
Cells = tuple[tuple[str, ...], ...]

# Written into every stored document: one that another version made is made again.
VERSION = 2

# Controls, invisible marks, text direction and tag characters: none can be seen, all can carry hidden orders.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
                     "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]")  # fmt: skip
# Joiners that change how Persian, Indic scripts and emoji are read.
_JOINERS = "\u200c\u200d"
# PowerPoint ends a line within a paragraph by \x0b.
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x85\u2028\u2029]")
_LIGATURES = {ord(c): t for c, t in zip("ﬀﬁﬂﬃﬄﬅﬆ", ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True)}


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, paragraph, list item, term, code or table. `page` counts from 1 where the file has pages.

    `level` is 1-6 for a heading, and for an item in how many other lists it lies. `cells` are a table's rows, the
    first its header.
    """

    kind: Kind
    text: str
    level: int = 0
    page: int | None = None
    cells: Cells = ()


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its answer; `kind` says what the file showed them as: faq, definition or tool."""

    question: str
    answer: str
    kind: str = "faq"
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A call that a program offers; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """A file as blocks; `notes` are things that the user should know about how it was read."""

    blocks: tuple[Block, ...]
    title: str = ""
    pairs: tuple[QuestionAnswer, ...] = ()
    tools: tuple[Tool, ...] = ()
    notes: tuple[str, ...] = field(default=())


def clean(text: str) -> str:
    """The text in NFC without what cannot be seen; spaces are kept."""
    text = _LINE_ENDS.sub("\n", text)
    text = _UNSEEN.sub(lambda found: found[0] if found[0] in _JOINERS else "", text.translate(_LIGATURES))
    return unicodedata.normalize("NFC", text)


def one_line(text: str) -> str:
    """The cleaned text with single spaces."""
    return " ".join(clean(text).split())


def tidy(text: str) -> str:
    """The cleaned text with single spaces in each line and no blank lines."""
    lines = (" ".join(line.split()) for line in clean(text).split("\n"))
    return "\n".join(line for line in lines if line)


def plain(text: str) -> str:
    """The words alone: equal for texts that differ in form only."""
    return " ".join(words_of(text))


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, a blank line between any two that are not items of one list."""
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
    """One block as Markdown."""
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
    """A table as Markdown; an empty one is nothing."""
    if not cells:
        return ""
    lines = ["| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def to_json(document: Document) -> dict[str, Any]:
    """The document as JSON has it."""
    return {"version": VERSION, **asdict(document)}


def from_json(value: Mapping[str, Any]) -> Document:
    """The document that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    if value["version"] != VERSION:
        raise ValueError("made by another version")
    blocks = (Block(**{**b, "cells": tuple(tuple(map(str, row)) for row in b["cells"])}) for b in value["blocks"])
    pairs, tools = (QuestionAnswer(**pair) for pair in value["pairs"]), (Tool(**tool) for tool in value["tools"])
    return Document(tuple(blocks), value["title"], tuple(pairs), tuple(tools), tuple(value["notes"]))
