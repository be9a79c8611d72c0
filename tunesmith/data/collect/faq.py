"""Question-answer pairs of a document, from its marked questions, its headings and its lines that begin with Q:."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunesmith.data.collect.document import Block, Document, QuestionAnswer, markdown, plain

# Question marks of Latin, Greek, Arabic, Chinese and Japanese text.
MARKS = ("?", "？", "؟", "\u037e", "⁇")
_NUMBER = re.compile(
    r"^(?:(?:Q|Question)\s*\d*\s*[.:)]\s*|(?:Q\s*)?\d+(?:\.\d+)*[.:)]\s+"
    # Without a mark behind it a number may be part of what is asked: 3 days late, 2.5 GB.
    r"|Q\s*\d+\s+|\d+(?:\.\d+)+\s+(?=(?-i:[A-Z][a-z]|[^\x00-\x7f])))",
    re.IGNORECASE,
)
_ASKED = re.compile(r"^(?:Q|Question)\s*\d*\s*[.:)]\s+(.+)$", re.IGNORECASE | re.DOTALL)
_ANSWERED = re.compile(r"^(?:A|Answer)\s*\d*\s*[.:)]\s+", re.IGNORECASE)
# After a line "Q: ..." the answer may stand in the same paragraph.
_BOTH = re.compile(r"^(?:Q|Question)\s*\d*\s*[.:)]\s+(.+?)\s+(?:A|Answer)\s*\d*\s*[.:)]\s+(.+)$", re.I | re.DOTALL)
_FIRST = re.compile(r"^(Q|Question)\s*\d*\s*([.:)])\s+\S", re.IGNORECASE)
_TOLD = re.compile(r"\s(A|Answer)\s*\d*\s*([.:)])\s", re.IGNORECASE)
LONGEST_TERM = 80
DEFINITION = "What does {term} mean{where}?"


def pairs(document: Document) -> list[QuestionAnswer]:
    """Each question once, with its answer: as the page's own marks have it, else as its layout shows."""
    found: dict[str, QuestionAnswer] = {}
    marked = [
        _as_question(pair, document.title)
        for pair in document.pairs
        if pair.kind != "definition" or _is_term(pair.question)
    ]
    for pair in (*marked, *_by_layout(document.blocks)):
        if plain(pair.question) and plain(pair.answer):
            found.setdefault(plain(pair.question), pair)
    return list(found.values())


def is_question(text: str) -> bool:
    """Whether a heading asks something."""
    text = text.rstrip(" *_\"'”’»)")
    # A mark right behind code is part of a syntax: ?`args`?
    return text.endswith(MARKS) and not text[:-1].endswith("`")


def bare(text: str) -> str:
    """A question without its number or its Q."""
    return _NUMBER.sub("", text).strip() or text


def _is_term(text: str) -> bool:
    """Whether somebody could ask what this means: a word, not the number of a section or a whole sentence."""
    word = re.match(r"[\W_]*[^\W\d_]{2,}", text)
    return is_question(text) or (word is not None and len(text) <= LONGEST_TERM)


def _as_question(pair: QuestionAnswer, title: str) -> QuestionAnswer:
    """A definition as a question that names its document; what already asks is a question of the page."""
    if pair.kind != "definition":
        return QuestionAnswer(bare(pair.question), pair.answer, pair.kind, pair.page)
    if is_question(pair.question):
        return QuestionAnswer(bare(pair.question), pair.answer, "faq", pair.page)
    asked = DEFINITION.format(term=pair.question.rstrip(" :."), where=f" in {title}" if title else "")
    return QuestionAnswer(asked, pair.answer, "definition", pair.page)


def _by_layout(blocks: Sequence[Block]) -> Iterator[QuestionAnswer]:
    """A heading or bold line that asks, and all up to the next of its rank; or a line that begins with Q:."""
    for start, block in enumerate(blocks):
        together = _together(block.text) if block.kind in ("paragraph", "item") else []
        for both in together:
            yield QuestionAnswer(" ".join(both[1].split()), both[2].strip(), "faq", block.page)
        if together:
            continue
        asked = _asks(block)
        if asked:
            answer = markdown(_unmarked(blocks[start + 1 : _end(blocks, start)]))
            yield QuestionAnswer(asked, answer, "faq", block.page)


def _together(text: str) -> list[re.Match[str]]:
    """Questions with their answers in one paragraph, told apart where others begin as the first two do."""
    first, told = _FIRST.match(text), _TOLD.search(text)
    if first is None or told is None:
        return []
    word, mark = re.escape(first[1]), re.escape(first[2])
    answer = re.compile(rf"\s{re.escape(told[1])}\s*\d*\s*{re.escape(told[2])}\s")
    parts = list[str]()
    for part in re.split(rf"\s+(?={word}\s*\d*\s*{mark}\s+\S)", text):
        if parts and answer.search(part) is None:  # no question with an answer: the one before goes on
            part = f"{parts.pop()} {part}"
        parts.append(part)
    return [both for part in parts if (both := _BOTH.match(part))]


def _asks(block: Block) -> str:
    """The question that a block is, or nothing."""
    if block.kind in ("heading", "term") and is_question(block.text):
        return bare(block.text)
    marked = _ASKED.match(block.text) if block.kind in ("paragraph", "term", "heading") else None
    return " ".join(marked[1].split()) if marked else ""


def _end(blocks: Sequence[Block], start: int) -> int:
    """Where the answer to the question at `start` ends: at the next question, or a heading of its rank or above."""
    rank = blocks[start].level if blocks[start].kind == "heading" else 7
    for place in range(start + 1, len(blocks)):
        block = blocks[place]
        if _asks(block) or (block.kind == "heading" and block.level <= rank):
            return place
    return len(blocks)


def _unmarked(blocks: Sequence[Block]) -> list[Block]:
    """The answer's blocks, the first without its A:."""
    if not blocks:
        return []
    first = blocks[0]
    return [Block(first.kind, _ANSWERED.sub("", first.text), first.level, first.page, first.cells), *blocks[1:]]
