"""Questions and answers that a page states for machines: schema.org FAQPage as JSON-LD and as microdata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tunesmith.data.collect.document import QuestionAnswer

DEEPEST = 40


def schema_pairs(root: Any) -> Iterator[QuestionAnswer]:
    """Every question with its answer in the page's JSON-LD; what is not JSON is passed over."""
    for script in root.iter("script"):
        if (script.get("type") or "").strip().lower() != "application/ld+json":
            continue
        try:
            value = json.loads(script.text or "")
        except (ValueError, RecursionError):
            continue
        yield from _questions(value, DEEPEST)


def _questions(value: Any, depth: int) -> Iterator[QuestionAnswer]:
    """Questions anywhere inside a JSON value."""
    if depth == 0:
        return
    if isinstance(value, list):
        for item in value:
            yield from _questions(item, depth - 1)
    elif isinstance(value, dict):
        kinds = value.get("@type")
        if "Question" in (kinds if isinstance(kinds, list) else [kinds]):
            question, answer = _word(value, "name", "text"), _answer(value)
            if question and answer:
                yield QuestionAnswer(question, answer)
        for item in value.values():
            yield from _questions(item, depth - 1)


def _answer(question: dict[str, Any]) -> str:
    """The accepted answer, else the first that somebody suggested."""
    for key in ("acceptedAnswer", "suggestedAnswer"):
        found = question.get(key)
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, dict) and (text := _word(first, "text", "name")):
            return text
    return ""


def _word(value: dict[str, Any], *keys: str) -> str:
    return next((value[key] for key in keys if isinstance(value.get(key), str) and value[key].strip()), "")


def microdata_pairs(root: Any) -> Iterator[QuestionAnswer]:
    """Every question that the page marks with `itemtype` and `itemprop`, its parts as HTML."""
    from lxml import etree

    for item in root.xpath(".//*[contains(@itemtype, 'schema.org/Question')]"):
        name = item.xpath(".//*[@itemprop='name']")
        text = item.xpath(".//*[contains(@itemtype, 'schema.org/Answer')]//*[@itemprop='text']")
        if name and text:
            inside = (text[0].text or "") + "".join(etree.tostring(child, encoding="unicode") for child in text[0])
            yield QuestionAnswer(" ".join("".join(name[0].itertext()).split()), inside)
