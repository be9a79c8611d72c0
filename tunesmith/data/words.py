"""The words of a text in any script, as scores and searches count them."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import regex

# Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts that put no spaces between words.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = regex.compile(rf"[{UNSPACED}]")
_OWN = rf"[[{UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_RUN = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]*"
_WORD = regex.compile(rf"{_OWN}|{_RUN}", regex.V1)
_ALONE = regex.compile(_OWN, regex.V1)
_UNPARTED = regex.compile(rf"(?:{_OWN}){{2,}}", regex.V1)
_SEARCHED = regex.compile(r"[\w\p{M}]{2,}", regex.V1)


def words_of(text: str) -> list[str]:
    """The runs of letters and digits in small letters, in order, marks with their letters.

    Where a script puts no spaces between words, each letter is one.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def spaced(text: str) -> str:
    """The text in NFC with spaces around each letter of a script without spaces."""
    text = unicodedata.normalize("NFC", text)
    return _ALONE.sub(r" \g<0> ", text) if _LETTER.search(text) else text


def searched(text: str) -> list[str]:
    """The words of two letters or more that a text is found by; where a script puts no spaces between words, every two
    letters that follow one another."""
    parted = _UNPARTED.sub(_pairs, unicodedata.normalize("NFC", text).lower())
    return _SEARCHED.findall(parted)


def _pairs(run: regex.Match[str]) -> str:
    letters = _ALONE.findall(run[0])
    return " ".join(map("".join, pairwise(letters)))


def unspaced(text: str) -> int:
    """How many letters of scripts without spaces there are."""
    return len(_LETTER.findall(text))
