"""Words of a text in any script, for metrics and search."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

# Thai, Lao, Burmese, Khmer, kana and Chinese characters: scripts without spaces between words.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"[{UNSPACED}]"
_OWN = rf"[[{UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_RUN = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]*"
_WORD = rf"{_OWN}|{_RUN}"
_SEARCHED = rf"(?P<unparted>(?:{_OWN})+)|[[\w\p{{M}}]--[{UNSPACED}]]{{2,}}"


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    """Compile a pattern when it is first used: importing `regex` is a tenth of the time of `tunesmith --help`."""
    import regex

    return regex.compile(pattern, regex.V1)


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text in order: runs of letters and digits with their combining marks.

    In scripts without spaces between words, each character is a word.
    """
    return _compiled(_WORD).findall(unicodedata.normalize("NFC", text).casefold())


def folded(text: str) -> str:
    """Normalize letter case, spacing and Unicode composition (NFC), so that equal content compares equal."""
    # str.split also removes the separators \x1e and \x1f, so content cannot imitate them.
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def spaced(text: str) -> str:
    """Return the text in NFC with spaces around each character of scripts without spaces."""
    text = unicodedata.normalize("NFC", text)
    return _compiled(_OWN).sub(r" \g<0> ", text) if _compiled(_LETTER).search(text) else text


def searched(text: str) -> list[str]:
    """Return the search terms of a text: words of two letters or more; in scripts without spaces, character bigrams."""
    words: list[str] = []
    for run in _compiled(_SEARCHED).finditer(unicodedata.normalize("NFC", text).lower()):
        letters = _compiled(_OWN).findall(run["unparted"] or "")
        words += map("".join, pairwise(letters)) if len(letters) > 1 else [run[0]]
    return words


def unspaced(text: str) -> int:
    """Count the characters of scripts without spaces."""
    return len(_compiled(_LETTER).findall(text))
