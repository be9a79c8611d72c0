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
_SEARCHED = regex.compile(rf"(?P<unparted>(?:{_OWN})+)|[[\w\p{{M}}]--[{UNSPACED}]]{{2,}}", regex.V1)


def words_of(text: str) -> list[str]:
    """The runs of letters and digits in small letters, in order, marks with their letters.

    Where a script puts no spaces between words, each letter is one.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def folded(text: str) -> str:
    """The text with letter case, spacing and the way its accents are written aside."""
    # str.split also takes the separators \x1e and \x1f for spaces, so no content can imitate them.
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def spaced(text: str) -> str:
    """The text in NFC with spaces around each letter of a script without spaces."""
    text = unicodedata.normalize("NFC", text)
    return _ALONE.sub(r" \g<0> ", text) if _LETTER.search(text) else text


def searched(text: str) -> list[str]:
    """The words of two letters or more that a text is found by; where a script puts no spaces between words, every two
    letters that follow one another."""
    found: list[str] = []
    for run in _SEARCHED.finditer(unicodedata.normalize("NFC", text).lower()):
        letters = _ALONE.findall(run["unparted"] or "")
        found += map("".join, pairwise(letters)) if len(letters) > 1 else [run[0]]
    return found


def unspaced(text: str) -> int:
    """How many letters of scripts without spaces there are."""
    return len(_LETTER.findall(text))
