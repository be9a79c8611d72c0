"""Letters broken by a wrong encoding: UTF-8 that was read as Windows-1252 or Latin-1, and what cannot be told any more.

ftfy (https://ftfy.readthedocs.io) knows more forms of damage; these are the ones that keep the text recoverable with
certainty, or show beyond doubt that it is not.
"""

from __future__ import annotations

import re

LOST = "\N{REPLACEMENT CHARACTER}"
# What the bytes 0x80 to 0xBF look like when read as Windows-1252, where it has a letter, and as Latin-1.
_HIGH = [bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0xC0)]
_TAIL = re.escape("".join(_HIGH)) + "\x80-\xbf"
BROKEN = re.compile(f"(?:[\xc2-\xdf][{_TAIL}]|[\xe0-\xef][{_TAIL}]{{2}}|[\xf0-\xf4][{_TAIL}]{{3}})")
_BYTE = {letter: 0x80 + i for i, letter in enumerate(_HIGH)} | {chr(byte): byte for byte in range(0x80, 0x100)}
_WINDOWS = {chr(0x80 + i): letter for i, letter in enumerate(_HIGH[:0x20]) if letter.isprintable()}
# A broken two-byte letter looks like a capital with a mark behind it, which people write too. These first letters
# hardly ever come before such a mark in a sound text; others must come twice, and not before what ends a quotation.
SURE = "\xc2\xc3"
CLOSING = frozenset("“”’‘»›…–—")
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x80-\x84\x86-\x9f]")


def damage(text: str) -> str:
    """What is broken in a text, in a few words; blank for a sound one."""
    if text.isascii():
        return "control characters" if CONTROL.search(text) else ""
    if LOST in text:
        return f"{text.count(LOST)} letters lost for good (\\ufffd)"
    found = _mended(text)
    if found:
        return f"{found[0]!r} stands for {found[1]!r}"
    return "control characters" if CONTROL.search(text) else ""


def repaired(text: str) -> str:
    """The text with every broken letter mended that can be, also where it was broken twice."""
    for _ in range(3):
        if text.isascii() or not _mended(text):
            break
        text = BROKEN.sub(lambda match: _letter(match[0]) or match[0], text)
    return CONTROL.sub(lambda match: _WINDOWS.get(match[0], ""), text)


def _mended(text: str) -> tuple[str, str] | None:
    """The first broken letter that is surely one, and what it was."""
    unsure: list[tuple[str, str]] = []
    for match in BROKEN.finditer(text):
        letter = _letter(match[0])
        if not letter:
            continue
        if len(match[0]) > 2 or match[0][0] in SURE:
            return match[0], letter
        if letter.isalpha() and match[0][1] not in CLOSING:
            unsure.append((match[0], letter))
    return unsure[0] if len(unsure) >= 2 else None


def _letter(broken: str) -> str:
    """The letter whose UTF-8 bytes these are; blank if they are none that people write."""
    try:
        letter = bytes(_BYTE[one] for one in broken).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""
    return letter if letter.isprintable() or letter == "\xa0" or letter == "\xad" else ""
