"""Extraction of question-answer pairs: from FAQ markup, headings with a question mark, and lines that begin with Q:."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tunesmith.data.documents.document import Block, Document, QuestionAnswer, markdown, plain

# Question marks of Latin, Greek, Arabic, Chinese and Japanese text.
MARKS = ("?", "？", "؟", "\u037e", "⁇")
_NUMBER = re.compile(
    r"^(?:(?:Q|Question)\s*\d*\s*[.:)]\s*|(?:Q\s*)?\d+(?:\.\d+)*[.:)]\s+"
    # Without punctuation a number may be part of the question: 3 days late, 2.5 GB.
    r"|Q\s*\d+\s+|\d+(?:\.\d+)+\s+(?=(?-i:[A-Z][a-z]|[^\x00-\x7f])))",
    re.IGNORECASE,
)
_QUESTION_LINE = re.compile(r"^(?:Q|Question)\s*\d*\s*[.:)]\s+(.+)$", re.IGNORECASE | re.DOTALL)
_ANSWER_PREFIX = re.compile(r"^(?:A|Answer)\s*\d*\s*[.:)]\s+", re.IGNORECASE)
# Question and answer in one paragraph.
_BOTH = re.compile(r"^(?:Q|Question)\s*\d*\s*[.:)]\s+(.+?)\s+(?:A|Answer)\s*\d*\s*[.:)]\s+(.+)$", re.I | re.DOTALL)
_FIRST_QUESTION = re.compile(r"^(Q|Question)\s*\d*\s*([.:)])\s+\S", re.IGNORECASE)
_FIRST_ANSWER = re.compile(r"\s(A|Answer)\s*\d*\s*([.:)])\s", re.IGNORECASE)
LONGEST_TERM = 80  # characters
DEFINITION = "What does {term} mean{where}?"


def pairs(document: Document) -> list[QuestionAnswer]:
    """Return each question once, with its answer; pairs from markup take precedence over pairs from the layout."""
    unique: dict[str, QuestionAnswer] = {}
    marked = [
        _as_question(pair, document.title)
        for pair in document.pairs
        if pair.kind != "definition" or _is_term(pair.question)
    ]
    for pair in (*marked, *_by_layout(document.blocks)):
        if plain(pair.question) and plain(pair.answer):
            unique.setdefault(plain(pair.question), pair)
    return list(unique.values())


def is_question(text: str) -> bool:
    """Return whether a heading is a question."""
    text = text.rstrip(" *_\"'”’»)")
    # A question mark directly after code is syntax: ?`args`?
    return text.endswith(MARKS) and not text[:-1].endswith("`")


def bare(text: str) -> str:
    """Remove the number or the Q before a question."""
    return _NUMBER.sub("", text).strip() or text


def _is_term(text: str) -> bool:
    """Return whether a definition list entry is a term or a question, not a section number or a sentence."""
    word = re.match(r"[\W_]*[^\W\d_]{2,}", text)
    return is_question(text) or (word is not None and len(text) <= LONGEST_TERM)


def _as_question(pair: QuestionAnswer, title: str) -> QuestionAnswer:
    """Turn a definition into a question that names its document; questions only lose their number."""
    if pair.kind != "definition":
        return QuestionAnswer(bare(pair.question), pair.answer, pair.kind, pair.page)
    if is_question(pair.question):
        return QuestionAnswer(bare(pair.question), pair.answer, "faq", pair.page)
    question = DEFINITION.format(term=pair.question.rstrip(" :."), where=f" in {title}" if title else "")
    return QuestionAnswer(question, pair.answer, "definition", pair.page)


def _by_layout(blocks: Sequence[Block]) -> Iterator[QuestionAnswer]:
    """Find pairs by layout: a question heading or Q: line with the blocks below it, or Q: and A: in one paragraph."""
    for start, block in enumerate(blocks):
        inline_pairs = _inline_pairs(block.text) if block.kind in ("paragraph", "item") else []
        for pair in inline_pairs:
            yield QuestionAnswer(" ".join(pair[1].split()), pair[2].strip(), "faq", block.page)
        if not inline_pairs and (question := _question_of(block)):
            answer = list(blocks[start + 1 : _end(blocks, start)])
            if answer:
                answer[0] = replace(answer[0], text=_ANSWER_PREFIX.sub("", answer[0].text))
            yield QuestionAnswer(question, markdown(answer), "faq", block.page)


def _inline_pairs(text: str) -> list[re.Match[str]]:
    """Split a paragraph of several pairs at the markers that its first question and answer use."""
    question, answer = _FIRST_QUESTION.match(text), _FIRST_ANSWER.search(text)
    if question is None or answer is None:
        return []
    answer_mark = re.compile(rf"\s{re.escape(answer[1])}\s*\d*\s*{re.escape(answer[2])}\s")
    parts = list[str]()
    for part in re.split(rf"\s+(?={re.escape(question[1])}\s*\d*\s*{re.escape(question[2])}\s+\S)", text):
        if parts and answer_mark.search(part) is None:  # not a new pair: it continues the one before
            part = f"{parts.pop()} {part}"
        parts.append(part)
    return [pair for part in parts if (pair := _BOTH.match(part))]


def _question_of(block: Block) -> str:
    """Return the question that a block is, or an empty string."""
    if block.kind in ("heading", "term") and is_question(block.text):
        return bare(block.text)
    line = _QUESTION_LINE.match(block.text) if block.kind in ("paragraph", "term", "heading") else None
    return " ".join(line[1].split()) if line else ""


def _end(blocks: Sequence[Block], start: int) -> int:
    """Return the index at which the answer ends: the next question, or a heading of the same or a higher rank."""
    rank = blocks[start].level if blocks[start].kind == "heading" else 7
    for index in range(start + 1, len(blocks)):
        block = blocks[index]
        if _question_of(block) or (block.kind == "heading" and block.level <= rank):
            return index
    return len(blocks)
