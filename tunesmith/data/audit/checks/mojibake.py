"""Mojibake: UTF-8 decoded as Windows-1252 or Latin-1, and characters that are lost.

ftfy (https://ftfy.readthedocs.io) knows more forms; these are the ones that can be repaired with certainty, or are
certainly lost.
"""

from __future__ import annotations

import re

from tunesmith.data.audit.edits import Edit, edited

LOST = "\N{REPLACEMENT CHARACTER}"
# The bytes 0x80 to 0xBF decoded as Windows-1252, or as Latin-1 where Windows-1252 has no character.
_HIGH = [bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0xC0)]
_TAIL = re.escape("".join(_HIGH)) + "\x80-\xbf"
BROKEN = re.compile(f"(?:[\xc2-\xdf][{_TAIL}]|[\xe0-\xef][{_TAIL}]{{2}}|[\xf0-\xf4][{_TAIL}]{{3}})")
_BYTE = {letter: 0x80 + i for i, letter in enumerate(_HIGH)} | {chr(byte): byte for byte in range(0x80, 0x100)}
_WINDOWS = {chr(0x80 + i): letter for i, letter in enumerate(_HIGH[:0x20]) if letter.isprintable()}
# A broken two-byte character looks like a capital letter followed by a symbol, which also occurs in intact text. After
# these two letters it almost never does; other pairs must occur twice, and not before closing punctuation.
SURE = "\xc2\xc3"
CLOSING = frozenset("“”’‘»›…–—")
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x80-\x84\x86-\x9f]")


def damage(text: str) -> str:
    """Describe the first broken character of a text; empty for an intact text."""
    if text.isascii():
        return "control characters" if CONTROL.search(text) else ""
    if LOST in text:
        return f"{text.count(LOST)} characters lost (\\ufffd)"
    if pair := _broken_character(text):
        return f"{pair[0]!r} should be {pair[1]!r}"
    return "control characters" if CONTROL.search(text) else ""


def repaired(text: str) -> str:
    """Return the text with every repairable character restored, also after double encoding."""
    for edits in repairs(text):
        text = edited(text, edits)
    return text


def repairs(text: str) -> list[list[Edit]]:
    """Return the replacements of `repaired`, pass by pass."""
    passes: list[list[Edit]] = []
    for _ in range(3):
        if text.isascii() or not _broken_character(text):
            break
        found = ((match, _decoded(match[0])) for match in BROKEN.finditer(text))
        passes.append([Edit(*match.span(), letter) for match, letter in found if letter])
        text = edited(text, passes[-1])
    return [*passes, [Edit(*match.span(), _WINDOWS.get(match[0], "")) for match in CONTROL.finditer(text)]]


def has_lost_characters(text: str) -> bool:
    """Return whether characters of a text are lost, so that `repaired` does not restore them."""
    return LOST in repaired(text)


def _broken_character(text: str) -> tuple[str, str] | None:
    """Return the first character that is certainly broken, and its original."""
    uncertain: list[tuple[str, str]] = []
    for match in BROKEN.finditer(text):
        letter = _decoded(match[0])
        if not letter:
            continue
        if len(match[0]) > 2 or match[0][0] in SURE:
            return match[0], letter
        if letter.isalpha() and match[0][1] not in CLOSING:
            uncertain.append((match[0], letter))
    return uncertain[0] if len(uncertain) >= 2 else None


def _decoded(broken: str) -> str:
    """Return the character with these UTF-8 bytes; empty if it is not printable."""
    try:
        letter = bytes(_BYTE[char] for char in broken).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""
    return letter if letter.isprintable() or letter == "\xa0" or letter == "\xad" else ""
