"""Words of a text in any script, for metrics and search."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import regex

# Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts without spaces between words.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = regex.compile(rf"[{UNSPACED}]")
_OWN = rf"[[{UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_RUN = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]*"
_WORD = regex.compile(rf"{_OWN}|{_RUN}", regex.V1)
_ALONE = regex.compile(_OWN, regex.V1)
_SEARCHED = regex.compile(rf"(?P<unparted>(?:{_OWN})+)|[[\w\p{{M}}]--[{UNSPACED}]]{{2,}}", regex.V1)


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text in order: runs of letters and digits with their combining marks.

    In scripts without spaces between words, each character is a word.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def folded(text: str) -> str:
    """Normalize letter case, spacing and Unicode composition (NFC), so that equal content compares equal."""
    # str.split also removes the separators \x1e and \x1f, so content cannot imitate them.
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def spaced(text: str) -> str:
    """Return the text in NFC with spaces around each character of scripts without spaces."""
    text = unicodedata.normalize("NFC", text)
    return _ALONE.sub(r" \g<0> ", text) if _LETTER.search(text) else text


def searched(text: str) -> list[str]:
    """Return the search terms of a text: words of two letters or more; in scripts without spaces, character bigrams."""
    words: list[str] = []
    for run in _SEARCHED.finditer(unicodedata.normalize("NFC", text).lower()):
        letters = _ALONE.findall(run["unparted"] or "")
        words += map("".join, pairwise(letters)) if len(letters) > 1 else [run[0]]
    return words


def unspaced(text: str) -> int:
    """Count the characters of scripts without spaces."""
    return len(_LETTER.findall(text))
