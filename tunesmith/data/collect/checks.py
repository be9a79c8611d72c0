"""Is what a model wrote in the passage it was written from? Words, names and numbers are compared, not meaning."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import regex
from rapidfuzz import fuzz

from tunesmith.data.collect.document import Tool, plain
from tunesmith.data.collect.tools import call, faults
from tunesmith.data.words import UNSPACED

# Share of an answer's words that the passage must have, and of a paraphrase's: that one is to use other words.
SUPPORTED, SAID_AGAIN = 0.6, 0.35
# A paraphrase has this share of the passage's names, is not longer or shorter than so many times, and not a copy.
NAMES_KEPT, SHORTEST, LONGEST, COPY = 0.8, 0.4, 2.5, 90.0
STEM = 5
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_UNPARTED = regex.compile(rf"[[{UNSPACED}\uac00-\ud7af]&&[\p{{L}}\p{{N}}]]\p{{M}}*", regex.V1)
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\n\"“(]\s*|^\W+)([^\W\d_]+)", re.MULTILINE)
_POINTS_AWAY = re.compile(
    r"\b(?:the|this|that|above|given|following|provided)\s+(?:\w+\s+)?(?:passage|text|paragraph|excerpt|document|"
    r"section|context|author|table)\b|\baccording to (?:it|this)\b",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not?|never|none|nor|neither|cannot|without|nicht|kein\w*|nie|ohne|pas|jamais|sans)\b|n['’]t\b", re.IGNORECASE
)
# Words that stand in any text, so that they support nothing.
_COMMON = frozenset(
    {
        "about", "after", "also", "been", "before", "being", "between", "both", "could", "does", "doing", "down",
        "during", "each", "from", "have", "having", "here", "into", "it's", "just", "made", "make", "more", "most",
        "must", "only", "other", "over", "same", "should", "some", "such", "than", "that", "their", "them", "then",
        "there", "these", "they", "this", "those", "through", "under", "until", "used", "using", "very", "want", "were",
        "what", "when", "where", "which", "while", "will", "with", "would", "your",
    }
)  # fmt: skip


def fault_of_pair(question: str, answer: str, passage: str) -> str:
    """Why a written question-answer pair is not kept, in a word or two; nothing for a good one."""
    if len(plain(question)) < 8 or not plain(answer):
        return "empty"
    if _POINTS_AWAY.search(question) or _POINTS_AWAY.search(answer):
        return "speaks of the passage"
    if plain(question) == plain(answer):
        return "repeats the question"
    if numbers(question + " " + answer) - numbers(passage):
        return "number not in the passage"
    if names(answer) - _all_words(passage) - _all_words(question):
        return "name not in the passage"
    if support(answer, passage) < SUPPORTED:
        return "words not in the passage"
    if bool(_NEGATION.search(answer)) and not _NEGATION.search(passage + question):
        return "denies what the passage does not"
    return ""


def fault_of_text(text: str, passage: str) -> str:
    """Why a written paraphrase is not kept; nothing for a good one."""
    if not plain(text):
        return "empty"
    if _POINTS_AWAY.search(text) and not _POINTS_AWAY.search(passage):
        return "speaks of the passage"
    if not SHORTEST * len(passage) <= len(text) <= LONGEST * len(passage):
        return "too short or too long"
    if fuzz.ratio(plain(text), plain(passage)) >= COPY:
        return "copy of the passage"
    if numbers(text) != numbers(passage):
        return "number lost" if numbers(passage) - numbers(text) else "number not in the passage"
    known = names(passage)
    if names(text) - _all_words(passage):
        return "name not in the passage"
    if known and len(known & _all_words(text)) < NAMES_KEPT * len(known):
        return "name lost"
    if support(text, passage) < SAID_AGAIN:
        return "words not in the passage"
    if bool(_NEGATION.search(text)) != bool(_NEGATION.search(passage)):
        return "a not came or went"
    return ""


def checked_call(question: str, answer: str, tool: Tool) -> tuple[str, str]:
    """The call in one fixed writing and no fault, or nothing and why the pair is not kept."""
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        value: Any = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping) or value.get("name") != tool.name:
        return "", "no call of this name"
    arguments = value.get("arguments", {})
    if why := faults(arguments, tool):
        return "", f"call is wrong: {why}"
    asked = plain(question)
    for key, given in arguments.items():
        part = tool.parameters["properties"][key]
        free = isinstance(given, str | int | float) and not isinstance(given, bool)
        if free and given != part.get("default") and "enum" not in part and plain(str(given)) not in asked:
            return "", "value not in the request"
    return call(tool.name, arguments), ""


def numbers(text: str) -> set[str]:
    """The numbers of a text, thousands and decimals in one writing."""
    return {re.sub(r"[.,](?=\d{3}(?:\D|$))", "", found).replace(",", ".") for found in _NUMBER.findall(text)}


def names(text: str) -> set[str]:
    """Words with a capital where no sentence begins, in small letters; a text that shouts has none."""
    starts = {match.start(1) for match in _SENTENCE_START.finditer(text)}
    words = [(match[0], match.start()) for match in _WORD.finditer(text)]
    capital = [word for word, place in words if word[0].isupper() and place not in starts and len(word) > 1]
    # German writes every noun with a capital: then a capital tells nothing.
    return set() if len(capital) > 0.25 * max(8, len(words)) else {_bare(word) for word in capital}


def support(text: str, passage: str) -> float:
    """The share of a text's telling words that the passage has too, endings aside; 1 for a text without any."""
    told = _telling(text)
    return len(told & _telling(passage)) / len(told) if told else float(plain(text) in plain(passage))


def _telling(text: str) -> set[str]:
    """Stems of the longer words; of scripts without spaces, pairs of letters."""
    words = {word[:STEM] for word in map(_bare, _WORD.findall(text)) if len(word) > 3 and word not in _COMMON}
    signs = _UNPARTED.findall(unicodedata.normalize("NFC", text))
    return set(map("".join, pairwise(signs))) if signs else words


def _all_words(text: str) -> set[str]:
    return set(map(_bare, _WORD.findall(text)))


def _bare(word: str) -> str:
    return re.sub(r"['’]s?$", "", word.casefold())
