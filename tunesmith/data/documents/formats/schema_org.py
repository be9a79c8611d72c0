"""Extraction of schema.org questions and answers (FAQPage), from JSON-LD and microdata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tunesmith.data.documents.document import QuestionAnswer

DEEPEST = 40  # nested JSON values


def schema_pairs(root: Any) -> Iterator[QuestionAnswer]:
    """Yield every question with its answer in the JSON-LD of a page; invalid JSON is skipped."""
    for script in root.iter("script"):
        if (script.get("type") or "").strip().lower() != "application/ld+json":
            continue
        try:
            value = json.loads(script.text or "")
        except (ValueError, RecursionError):
            continue
        yield from _questions(value, DEEPEST)


def _questions(value: Any, depth: int) -> Iterator[QuestionAnswer]:
    """Yield the questions anywhere inside a JSON value."""
    if depth == 0:
        return
    if isinstance(value, list):
        for item in value:
            yield from _questions(item, depth - 1)
    elif isinstance(value, dict):
        kinds = value.get("@type")
        if "Question" in (kinds if isinstance(kinds, list) else [kinds]):
            question = _first_text(value, "name", "text")
            answer = _answer(value)
            if question and answer:
                yield QuestionAnswer(question, answer)
        for item in value.values():
            yield from _questions(item, depth - 1)


def _answer(question: dict[str, Any]) -> str:
    """Return the accepted answer, else the first suggested one."""
    for key in ("acceptedAnswer", "suggestedAnswer"):
        answers = question.get(key)
        first = answers[0] if isinstance(answers, list) and answers else answers
        if isinstance(first, dict) and (text := _first_text(first, "text", "name")):
            return text
    return ""


def _first_text(value: dict[str, Any], *keys: str) -> str:
    return next((value[key] for key in keys if isinstance(value.get(key), str) and value[key].strip()), "")


def microdata_pairs(root: Any) -> Iterator[QuestionAnswer]:
    """Yield every question marked with `itemtype` and `itemprop`; answers are HTML."""
    from lxml import etree

    for item in root.xpath(".//*[contains(@itemtype, 'schema.org/Question')]"):
        name = item.xpath(".//*[@itemprop='name']")
        text = item.xpath(".//*[contains(@itemtype, 'schema.org/Answer')]//*[@itemprop='text']")
        if name and text:
            answer = (text[0].text or "") + "".join(etree.tostring(child, encoding="unicode") for child in text[0])
            yield QuestionAnswer(" ".join("".join(name[0].itertext()).split()), answer)
