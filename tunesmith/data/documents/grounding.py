"""Grounding checks of synthetic rows: their words, names and digits must be in the source passage.

The checks compare strings, not meaning.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import regex
from rapidfuzz import fuzz

from tunesmith.data.documents.document import Tool, plain
from tunesmith.data.documents.formats.openapi import call, schema_errors
from tunesmith.data.text.words import UNSPACED

# Least share of the words that must be in the passage. A paraphrase is expected to use other words.
SUPPORTED = 0.6
SAID_AGAIN = 0.35
NAMES_KEPT = 0.8  # least share of the passage's names that a paraphrase must keep
# Length of a paraphrase relative to its passage.
MIN_LENGTH_RATIO = 0.4
MAX_LENGTH_RATIO = 2.5
COPY = 90.0  # rapidfuzz ratio (0 to 100) from which a paraphrase counts as a copy of the passage
STEM = 5  # letters of a word that are compared
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
# Words that occur in any text and therefore are not evidence.
_COMMON = frozenset(
    {
        "about", "after", "also", "been", "before", "being", "between", "both", "could", "does", "doing", "down",
        "during", "each", "from", "have", "having", "here", "into", "it's", "just", "made", "make", "more", "most",
        "must", "only", "other", "over", "same", "should", "some", "such", "than", "that", "their", "them", "then",
        "there", "these", "they", "this", "those", "through", "under", "until", "used", "using", "very", "want", "were",
        "what", "when", "where", "which", "while", "will", "with", "would", "your",
    }
)  # fmt: skip


def pair_problem(question: str, answer: str, passage: str) -> str:
    """Return the reason to reject a synthetic question-answer pair, or an empty string."""
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


def text_problem(text: str, passage: str) -> str:
    """Return the reason to reject a synthetic paraphrase, or an empty string."""
    if not plain(text):
        return "empty"
    if _POINTS_AWAY.search(text) and not _POINTS_AWAY.search(passage):
        return "speaks of the passage"
    if not MIN_LENGTH_RATIO * len(passage) <= len(text) <= MAX_LENGTH_RATIO * len(passage):
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
        return "negation added or lost"
    return ""


def checked_call(question: str, answer: str, tool: Tool) -> tuple[str, str]:
    """Return the call in canonical JSON and an empty reason, or an empty call and the reason to reject the pair."""
    match = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        value: Any = json.loads(match[0]) if match else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping) or value.get("name") != tool.name:
        return "", "no call of this name"
    arguments = value.get("arguments", {})
    if why := schema_errors(arguments, tool):
        return "", f"call is wrong: {why}"
    request = plain(question)
    for key, argument in arguments.items():
        schema = tool.parameters["properties"][key]
        free = isinstance(argument, str | int | float) and not isinstance(argument, bool)
        if free and argument != schema.get("default") and "enum" not in schema and plain(str(argument)) not in request:
            return "", "value not in the request"
    return call(tool.name, arguments), ""


def numbers(text: str) -> set[str]:
    """Return the digit groups of a text, with thousands separators removed and a dot as decimal separator."""
    return {re.sub(r"[.,](?=\d{3}(?:\D|$))", "", digits).replace(",", ".") for digits in _NUMBER.findall(text)}


def names(text: str) -> set[str]:
    """Return the capitalized words inside sentences, lowercased; none if capitals are common in the text."""
    starts = {match.start(1) for match in _SENTENCE_START.finditer(text)}
    words = [(match[0], match.start()) for match in _WORD.finditer(text)]
    capital = [word for word, start in words if word[0].isupper() and start not in starts and len(word) > 1]
    # German capitalizes every noun, so there a capital does not mark a name.
    return set() if len(capital) > 0.25 * max(8, len(words)) else {_bare(word) for word in capital}


def support(text: str, passage: str) -> float:
    """Return the share of the content words of a text that are in the passage, compared by stem.

    A text without content words scores 1 if the passage contains it, else 0.
    """
    stems = _content_stems(text)
    return len(stems & _content_stems(passage)) / len(stems) if stems else float(plain(text) in plain(passage))


def _content_stems(text: str) -> set[str]:
    """Return stems of words of at least 4 letters; for scripts without spaces, pairs of characters."""
    words = {word[:STEM] for word in map(_bare, _WORD.findall(text)) if len(word) > 3 and word not in _COMMON}
    characters = _UNPARTED.findall(unicodedata.normalize("NFC", text))
    return set(map("".join, pairwise(characters))) if characters else words


def _all_words(text: str) -> set[str]:
    return set(map(_bare, _WORD.findall(text)))


def _bare(word: str) -> str:
    return re.sub(r"['’]s?$", "", word.casefold())
