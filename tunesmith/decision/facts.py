"""Facts changed in the documents, to see which arm then says the new one and which goes on with the old."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import regex
from rapidfuzz import fuzz, process

from tunesmith.data.collect.document import Block, Document, plain
from tunesmith.data.words import UNSPACED, unspaced
from tunesmith.decision.chunks import SourceDocument
from tunesmith.decision.recall import Origin

# So much is added to every digit; figures keep their length and their marks.
SHIFT = 3
_NUMERALS = "〇一二三四五六七八九十百千万億亿兩两"
_PART = f"[{_NUMERALS}]"
_JOINED = rf"[\w--[{UNSPACED}]]"


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer that is changed: the row that asks for it, what stood there and what stands there now."""

    row: int
    old: str
    new: str


class OtherAnswers:
    """For each answer another: a figure with other digits, or words that answer the most similar question."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        self._questions, self._answers = questions, answers
        self._worded = {place: plain(answer) for place, answer in enumerate(answers) if not re.search(r"\d", answer)}

    def of(self, row: int) -> str:
        """Empty where no other question has another answer without digits."""
        if row not in self._worded:
            return re.sub(r"\d", _other_digit, self._answers[row])
        old = f" {self._worded[row]} "  # neither may stand in the other: who says one would say both
        others = {
            place: self._questions[place]
            for place, answer in self._worded.items()
            if old not in f" {answer} " and f" {answer} " not in old
        }
        found = process.extractOne(self._questions[row], others, scorer=fuzz.ratio)
        return self._answers[found[2]] if found else ""


def _other_digit(digit: re.Match[str]) -> str:
    """Another digit, and never 0, so that no figure begins with it."""
    return str((int(digit[0]) + SHIFT) % 9 + 1)


def change(
    pages: Sequence[SourceDocument],
    questions: Sequence[str],
    answers: Sequence[str],
    origins: Sequence[Origin],
    *,
    most: int,
) -> tuple[list[SourceDocument], list[Fact]]:
    """The pages with at most `most` answers changed in the words that say them, and which these are.

    A row counts whose document is known and holds its evidence with the answer in it, letter for letter.
    """
    found = {page.doc_id: page for page in pages}
    others = OtherAnswers(questions, answers)
    facts: list[Fact] = []
    order = list(range(len(answers)))
    random.Random("facts").shuffle(order)  # rows of one kind often stand together
    for row in order:
        if len(facts) >= most:
            break
        page = found.get(origins[row].doc_id)
        if page is None:
            continue
        new = others.of(row)
        changed = _changed(page, origins[row].evidence, answers[row], new) if new else None
        if changed is not None:
            found[changed.doc_id] = changed
            facts.append(Fact(row, answers[row], new))
    return [found[page.doc_id] for page in pages], facts


def _changed(page: SourceDocument, evidence: str, old: str, new: str) -> SourceDocument | None:
    """The page with the answer replaced in the block that holds the evidence; None where none holds both."""
    wanted = f" {plain(evidence)} "
    # A new answer that stood there already would be taken for an old one by the next change.
    if any(regex.search(_whole(new), block.text, regex.V1) for block in page.document.blocks):
        return None
    for place, block in enumerate(page.document.blocks):
        if regex.search(_whole(old), block.text, regex.V1) and wanted in f" {plain(block.text)} ":
            text = regex.sub(_whole(old), lambda _: new, block.text, flags=regex.V1)
            blocks: tuple[Block, ...] = (
                *page.document.blocks[:place],
                replace(block, text=text),
                *page.document.blocks[place + 1 :],
            )
            document: Document = replace(page.document, blocks=blocks)
            return SourceDocument(page.doc_id, f"{page.digest}+", document)
    return None


def _whole(text: str) -> str:
    """A pattern for a text that is not a part of a longer word or figure; scripts without spaces part no words, and
    their numerals stand beside each other."""
    first, last = (_PART if one in _NUMERALS else "" if unspaced(one) else _JOINED for one in (text[:1], text[-1:]))
    before, after = (f"(?<!{first}|[,.])" if first else ""), (rf"(?!{last}|[,.]\d)" if last else "")
    return before + regex.escape(text) + after
