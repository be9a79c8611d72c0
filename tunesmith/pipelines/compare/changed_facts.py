"""Changed facts in documents, to measure which arm gives the new answer and which repeats the old one."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import regex
from rapidfuzz import fuzz, process

from tunesmith.data.documents.document import plain
from tunesmith.data.text.words import UNSPACED, unspaced
from tunesmith.retrieval.chunks import SourceDocument
from tunesmith.retrieval.recall import Origin

SHIFT = 3  # added to every digit; a changed value keeps its length and punctuation
_NUMERALS = "〇一二三四五六七八九十百千万億亿兩两"
_PART = f"[{_NUMERALS}]"
_JOINED = rf"[\w--[{UNSPACED}]]"


@dataclass(frozen=True, slots=True)
class Fact:
    """A changed answer."""

    row: int  # index of the row that asks for it
    old: str
    new: str


class OtherAnswers:
    """Substitute answers: other digits, or the answer to the most similar question if it contains no digit."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        self._questions = questions
        self._answers = answers
        self._without_digits = {i: plain(answer) for i, answer in enumerate(answers) if not re.search(r"\d", answer)}

    def of(self, row: int) -> str:
        """Return the substitute, or an empty string if no other question has a different answer without digits."""
        if row not in self._without_digits:
            # Never 0, so that no value begins with it.
            return re.sub(r"\d", lambda digit: str((int(digit[0]) + SHIFT) % 9 + 1), self._answers[row])
        old = f" {self._without_digits[row]} "  # neither may contain the other, or one answer would match both
        others = {
            i: self._questions[i]
            for i, answer in self._without_digits.items()
            if old not in f" {answer} " and f" {answer} " not in old
        }
        best = process.extractOne(self._questions[row], others, scorer=fuzz.ratio)
        return self._answers[best[2]] if best else ""


def change(
    pages: Sequence[SourceDocument],
    questions: Sequence[str],
    answers: Sequence[str],
    origins: Sequence[Origin],
    *,
    most: int,
) -> tuple[list[SourceDocument], list[Fact]]:
    """Change at most `most` answers in the documents, and return all documents and the changed answers.

    A row is used if its document is known and contains its evidence with the exact answer in it.
    """
    changed_pages = {page.doc_id: page for page in pages}
    others = OtherAnswers(questions, answers)
    facts: list[Fact] = []
    order = list(range(len(answers)))
    random.Random("facts").shuffle(order)  # similar rows are often adjacent
    for row in order:
        if len(facts) >= most:
            break
        page = changed_pages.get(origins[row].doc_id)
        if page is None:
            continue
        new = others.of(row)
        changed = _changed(page, origins[row].evidence, answers[row], new) if new else None
        if changed is not None:
            changed_pages[changed.doc_id] = changed
            facts.append(Fact(row, answers[row], new))
    return [changed_pages[page.doc_id] for page in pages], facts


def _changed(page: SourceDocument, evidence: str, old: str, new: str) -> SourceDocument | None:
    """Replace the answer in the block that contains the evidence; return None if no block contains both."""
    evidence_words = f" {plain(evidence)} "
    # If the page already contained the new answer, the next change would mistake it for an old one.
    if any(regex.search(_whole(new), block.text, regex.V1) for block in page.document.blocks):
        return None
    blocks = list(page.document.blocks)
    for index, block in enumerate(blocks):
        if regex.search(_whole(old), block.text, regex.V1) and evidence_words in f" {plain(block.text)} ":
            blocks[index] = replace(block, text=regex.sub(_whole(old), lambda _: new, block.text, flags=regex.V1))
            return SourceDocument(page.doc_id, f"{page.digest}+", replace(page.document, blocks=tuple(blocks)))
    return None


def _whole(text: str) -> str:
    """Return a pattern for a text that is not part of a longer word or value.

    Scripts without spaces have no word boundaries, but a numeral must not be next to another one.
    """
    first, last = (_PART if end in _NUMERALS else "" if unspaced(end) else _JOINED for end in (text[:1], text[-1:]))
    before = f"(?<!{first}|[,.])" if first else ""
    after = rf"(?!{last}|[,.]\d)" if last else ""
    return before + regex.escape(text) + after
